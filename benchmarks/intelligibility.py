"""How well a recognizer that has heard none of it writes a synthetic population: the measure of its voices.

    python -m benchmarks.intelligibility [--pair ko-en es-en ja-en] [--voices neural] [--people 6] [--sentences 4]
    python -m benchmarks.intelligibility --manifest FOLDER/manifest.jsonl [--sentences 4]

Each person's first sentences are transcribed by the frozen base in a full window, told the matrix language. Rates are of all
errors over all tokens; ``folded`` reads both spellings of a loanword as one. Japanese has no spaces: look at CER there.
One row a voice, with its counts, is stored in benchmarks/results/intelligibility_<pair>_<voices>.json.
"""

import argparse
import json
import tempfile
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks._report import BenchmarkRow, machine, write_row
from fl.bases.resolve import load_speech_base
from fl.data.manifest import Utterance, read_manifest
from fl.data.synthetic import synthesize
from fl.data.synthetic.population import POPULATION_NAME
from fl.metrics import score_utterance
from fl.speech.audio import load_audio

METRICS = ("mer", "mer_folded", "wer", "cer", "cer_folded")
TARGET = 60.0  # percent: above it a federation learns the synthesizer before it learns anybody
Row = dict[str, Any]


def chosen(manifest: Path, sentences: int) -> dict[str, list[Utterance]]:
    """The first ``sentences`` utterances of each person."""
    spoken: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in read_manifest(manifest):
        spoken[utterance.speaker].append(utterance)
    return {speaker: list(islice(found, sentences)) for speaker, found in spoken.items()}


def rows(manifest: Path, sentences: int, base_name: str) -> list[Row]:
    """A row for each person: the voice, the counts and the rates of the frozen base."""
    base = load_speech_base(base_name)
    model = base.new_model()
    content = json.loads((manifest.parent / POPULATION_NAME).read_text(encoding="utf-8"))
    voices = {person["name"]: person["voice"] for person in content["people"]}
    found: list[Row] = []
    for speaker, utterances in chosen(manifest, sentences).items():
        errors: Counter[str] = Counter()
        tokens: Counter[str] = Counter()
        for utterance in utterances:
            with torch.inference_mode():
                features = base.features(load_audio(utterance.audio), "full")
                heard = base.generate(model, base.collate([features], None, "full", utterance.lang))[0]
            scores = score_utterance(utterance.text, heard, spans=utterance.spans, loanwords=utterance.loanwords)
            for name in METRICS:
                errors[name] += scores.metrics[name].errors
                tokens[name] += scores.metrics[name].reference
        found.append(
            {
                "speaker": speaker,
                "voice": voices[speaker],
                "errors": dict(errors),
                "tokens": dict(tokens),
                **rates(errors, tokens),
            }
        )
        print(f"{speaker}: {rates(errors, tokens)}", flush=True)
    return found


def rates(errors: Counter[str], tokens: Counter[str]) -> dict[str, float]:
    """Percent of tokens in error."""
    return {name: round(100 * errors[name] / tokens[name], 2) for name in METRICS}


def measure(manifest: Path, sentences: int, base_name: str, name: str) -> None:
    """Measure one population and store its rows."""
    found = rows(manifest, sentences, base_name)
    errors, tokens = (Counter[str](), Counter[str]())
    for row in found:
        errors.update(row["errors"])
        tokens.update(row["tokens"])
    settings = json.loads((manifest.parent / POPULATION_NAME).read_text(encoding="utf-8"))["settings"]
    total = rates(errors, tokens)
    conditions = {"base": base_name, "sentences": sentences, "population": settings, "rates": total, "people": found}
    conditions |= machine(("onnxruntime",) if settings.get("voices") == "neural" else ())
    write_row(
        BenchmarkRow(
            f"intelligibility_{name}", total["mer"], "% MER, zero-shot", total["mer"], TARGET, conditions, at_most=True
        )
    )
    print(f"{name}: {total}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", nargs="+", default=["ko-en", "es-en", "ja-en"])
    parser.add_argument("--voices", default="neural")
    parser.add_argument("--traits", default="")
    parser.add_argument("--people", type=int, default=6, help="voices to hear")
    parser.add_argument("--sentences", type=int, default=4, help="sentences of each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--base", default="whisper-base")
    parser.add_argument("--manifest", type=Path, help="an existing population instead")
    wanted = parser.parse_args()
    if wanted.manifest:
        pair = json.loads((wanted.manifest.parent / POPULATION_NAME).read_text(encoding="utf-8"))["settings"]
        measure(wanted.manifest, wanted.sentences, wanted.base, f"{pair['pair']}_{pair.get('voices', 'espeak')}")
        return
    for pair in wanted.pair:
        with tempfile.TemporaryDirectory() as folder:
            manifest = synthesize(
                Path(folder) / "people",
                pair=pair,
                devices=wanted.people,
                new_people=0,
                sentences=wanted.sentences,
                seed=wanted.seed,
                voices=wanted.voices,
                traits=wanted.traits,
            )
            measure(
                manifest,
                wanted.sentences,
                wanted.base,
                "_".join(filter(None, (pair, wanted.voices, wanted.traits.replace(",", "-")))),
            )


if __name__ == "__main__":
    main()
