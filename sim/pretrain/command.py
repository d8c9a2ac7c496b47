"""``idiolect pretrain``: a small Wav2Vec2-CTC from random weights, on the speech of people who use one language.

What comes out is a base like any other: a folder in transformers' layout, named by its path. It is small and knows synthetic
voices only; it exists so that adapting a base can be compared with training from scratch on the CTC side too.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from fl.core.errors import ConfigError
from fl.core.paths import cache_root
from fl.data.manifest import Utterance, read_manifest
from fl.settings.names import OWN, TOKENS
from sim.cli.app import progress_bars
from sim.cli.options import Json, with_fields
from sim.pretrain.settings import PretrainSettings

log = logging.getLogger("idiolect.pretrain")
SMOKE = {"speakers": 2, "sentences": 30, "steps": 40, "batch_size": 4, "warmup": 10, "checkpoint_every": 20}


def one_language(utterances: list[Utterance]) -> list[Utterance]:
    """Those with no switch of language in them: whose words, where languages are marked, are all in the same one.

    Which one it is, is that of the most of them: a mixed corpus gives the sentences in its matrix language.
    """
    alone = [u for u in utterances if u.level is None and len({language for _, language in u.spans}) <= 1]
    spoken = [u.spans[0][1] if u.spans else u.lang or "" for u in alone]
    if not alone:
        raise ConfigError("no utterance is in one language throughout: give a monolingual manifest, or more sentences")
    most = max(sorted(set(spoken)), key=spoken.count)
    return [u for u, language in zip(alone, spoken, strict=True) if language == most]


def speech_of(settings: PretrainSettings, manifest: str, progress: Callable[[int, int], None]) -> list[Utterance]:
    """The utterances to learn from: of ``manifest``, or of a synthetic population."""
    if manifest:
        return one_language(read_manifest(Path(manifest).expanduser()))
    from fl.data.synthetic import population_digest, synthesize  # scipy

    size: dict[str, Any] = {
        "devices": settings.speakers,
        "new_people": 0,
        "sentences": settings.sentences,
        "seed": settings.seed,
    }
    folder = cache_root() / "populations" / f"pretrain-{settings.pair}-{population_digest(pair=settings.pair, **size)}"
    return one_language(read_manifest(synthesize(folder, pair=settings.pair, progress=progress, **size)))


@with_fields
def pretrain(
    settings: PretrainSettings,
    out: Annotated[Path, Option(help="Folder of the base, made at the end.")],
    manifest: Annotated[str, Option(help="Recordings instead of synthetic ones.")] = "",
    smoke: Annotated[bool, Option("--smoke", help="A few steps: that it runs.")] = False,
    as_json: Json = False,
) -> None:
    """Pretrain a small Wav2Vec2-CTC from random weights on synthetic speech in one language, as a base for --base.

    Stopped, it goes on from its last checkpoint when the same command is given again, to the same weights.
    """
    from fl.bases.ctc.loading import CTC_ARCHITECTURES  # torch
    from sim.pretrain.loop import pretrain_base

    if settings.architecture not in CTC_ARCHITECTURES:
        raise ConfigError(
            f"architecture {settings.architecture!r} is not known. Known: {', '.join(CTC_ARCHITECTURES)}."
        )
    if settings.tokens not in TOKENS or settings.tokens == OWN:
        raise ConfigError(f"tokens {settings.tokens!r}: one of {', '.join(t for t in TOKENS if t != OWN)}")
    settings = replace(settings, **SMOKE) if smoke else settings  # type: ignore[arg-type]

    with progress_bars(as_json) as show:

        def stepped(step: int, loss: float) -> None:
            show("pretraining", step, settings.steps)
            log.info("step %d/%d: loss %.3f", step, settings.steps, loss)

        speech = speech_of(settings, manifest, lambda done, total: show("speech", done, total))
        show("pretraining", 0, settings.steps)
        facts = pretrain_base(out, settings, speech, stepped)
    if as_json:
        print(json.dumps({"base": str(out.resolve()), **asdict(facts)}))
    else:
        print(
            f"{out}: {facts.fingerprint}, {facts.parameters:,} parameters, {facts.utterances} utterances, {facts.steps} steps\n"
            f"loss {facts.first_loss:.3f} at first, {facts.last_loss:.3f} at last; "
            f"{facts.cer:.1%} CER on {facts.held_out} held-out sentences\nUse it with: idiolect run --base {out}"
        )
