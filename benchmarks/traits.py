"""What each trait of synthetic people alone costs a recognizer that was trained without any.

    python -m benchmarks.traits --adapter FOLDER [--pair ko-en] [--people 8] [--sentences 12] [--seed 21] [--write docs/results/traits.md]

The same people, with the same voices, say as many sentences without a trait and with one trait alone. ``--adapter`` is a shared
part of the pair, such as ``idiolect study enrol`` keeps in its folder of runs; the people took no part in its training.
Rows by person are stored in docs/studies/traits.jsonl, a line a trait.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._report import machine
from benchmarks.intelligibility import chosen
from fl.bases.base import SpeechBase
from fl.bases.resolve import load_speech_base
from fl.core.files import PUBLIC, write_atomically
from fl.core.rng import derive_generator
from fl.data.synthetic import synthesize
from fl.data.synthetic.population import POPULATION_NAME
from fl.data.synthetic.traits import TRAITS
from fl.metrics import Counts, score_utterance
from fl.metrics.intervals import SAMPLES
from fl.speech.audio import load_audio
from fl.speech.transcribe import Trained
from sim.section import ReportTable, markdown_tables, write_section

METRICS = ("mer", "mer_folded", "wer")
NONE = "none"
ROWS = Path("docs/studies/traits.jsonl")
START, END = "<!-- traits: made by benchmarks/traits.py -->", "<!-- end of traits -->"
People = Mapping[str, Mapping[str, tuple[int, int]]]  # errors and reference tokens by person and metric


def heard(manifest: Path, sentences: int, base: SpeechBase, model: torch.nn.Module) -> People:
    """What the recognizer gets wrong of each person's first sentences."""
    found = {}
    for speaker, utterances in chosen(manifest, sentences).items():
        totals = dict.fromkeys(METRICS, Counts())
        for utterance in utterances:
            features = base.features(load_audio(utterance.audio), "trimmed")
            with torch.inference_mode():
                text = base.generate(model, base.collate([features], None, "trimmed", utterance.lang))[0]
            scores = score_utterance(utterance.text, text, spans=utterance.spans, loanwords=utterance.loanwords)
            totals = {metric: totals[metric] + scores.metrics[metric] for metric in METRICS}
        found[speaker] = {metric: (total.errors, total.reference) for metric, total in totals.items()}
    return found


def difference(own: People, without: People, metric: str) -> tuple[float, float, float]:
    """Points of the pooled rate that a trait adds, with a 95 % interval over people. The sentences differ, the people do not."""
    counts = np.array([[own[name][metric], without[name][metric]] for name in own], dtype=np.float64)
    draws = derive_generator(0, "traits").integers(len(counts), size=(SAMPLES, len(counts)))
    totals = np.concatenate([counts[draws].sum(axis=1), counts.sum(axis=0, keepdims=True)])
    rates = 100 * totals[:, :, 0] / totals[:, :, 1]
    added = rates[:, 0] - rates[:, 1]
    low, high = np.percentile(added[:-1], (2.5, 97.5))
    return float(added[-1]), float(low), float(high)


def tables(found: Mapping[str, People]) -> list[ReportTable]:
    """A line for each trait."""
    lines = []
    for name, people in found.items():
        rates = [
            f"{100 * sum(p[metric][0] for p in people.values()) / sum(p[metric][1] for p in people.values()):.1f}"
            for metric in METRICS
        ]
        added = ["", ""]
        if name != NONE:
            each = (difference(people, found[NONE], metric) for metric in METRICS[:2])
            added = [f"{points:+.1f} ({low:+.1f} to {high:+.1f})" for points, low, high in each]
        lines.append((name, *rates, *added))
    heads = ("trait", "MER, %", "folded, %", "WER, %", "against none, MER points", "folded, points")
    return [ReportTable("Each trait alone", heads, tuple(lines))]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, help="a shared part; without it the stored rows are written again")
    parser.add_argument("--pair", default="ko-en")
    parser.add_argument("--voices", default="neural")
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--sentences", type=int, default=12)
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--write", type=Path)
    wanted = parser.parse_args(arguments)
    if wanted.adapter:
        lines = [json.dumps(row).encode() + b"\n" for row in measure(wanted)]
        write_atomically(wanted.rows, b"".join(lines), mode=PUBLIC)
    stored = [json.loads(line) for line in wanted.rows.read_text(encoding="utf-8").splitlines()]
    told = stored[0]["conditions"]
    conditions = (
        f"{told['people']} people of {told['pair']}, {told['voices']} voices, {told['sentences']} sentences each, seed {told['seed']}; "
        f"{told['base']} with a shared part; {told['processor']}. 95 % bootstrap CI over people."
    )
    text = markdown_tables(tables({row["trait"]: row["people"] for row in stored}), conditions)
    print(text)
    if wanted.write:
        write_section(wanted.write, START, END, text)


def measure(wanted: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each trait: counts by person, and under what they were made."""
    trained = Trained.read(wanted.adapter)
    base = load_speech_base(trained.info.base_name)
    model = trained.on(base)
    rows: dict[str, People] = {}
    voices = None
    for name in (NONE, *TRAITS):
        with tempfile.TemporaryDirectory() as folder:
            manifest = synthesize(
                Path(folder) / "people",
                pair=wanted.pair,
                devices=wanted.people,
                new_people=0,
                sentences=wanted.sentences,
                seed=wanted.seed,
                voices=wanted.voices,
                traits="" if name == NONE else name,
            )
            content = json.loads((manifest.parent / POPULATION_NAME).read_text(encoding="utf-8"))
            of_these = {person["name"]: person["voice"] for person in content["people"]}
            voices = voices or of_these
            assert of_these == voices, "people are compared with themselves"
            rows[name] = heard(manifest, wanted.sentences, base, model)
        print(f"{name}: {rows[name]}", flush=True)
    told = {key: getattr(wanted, key) for key in ("pair", "voices", "people", "sentences", "seed")}
    conditions = {**told, "base": trained.info.base_name, **machine(("onnxruntime",))}
    return [{"trait": name, "people": people, "conditions": conditions} for name, people in rows.items()]


if __name__ == "__main__":
    main()
