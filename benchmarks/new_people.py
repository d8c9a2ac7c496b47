"""What the federation gives to held-out speakers: all that they said, transcribed by ``global`` and by ``neutral``.

    python -m benchmarks.new_people [--runs runs/personalization/seed-*] [--write docs/results/three-seeds.md]

The runs of benchmarks/personalization.py test a held-out speaker on 12 sentences; this tests all sentences of each, from the
same checkpoints. No training text is among them: the division of the population forbids it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks._report import machine
from clients.training.evaluate import evaluate
from clients.worker import Worker
from fl.algorithms.arms import evaluated_as
from fl.core.errors import RunError
from fl.metrics import Counts, paired_difference, rate_interval
from fl.protocol.wire import from_arrays
from fl.settings.config import load_config
from sim.cli.app import progress_bars
from sim.section import write_section
from strategies.checkpoint import load_checkpoint

ARMS = ("global", "neutral")
METRICS = ("mer", "wer", "mer_folded")
EVERYTHING = 100_000
START, END = "<!-- new people: made by benchmarks/new_people.py -->", "<!-- end of new people -->"


@dataclass(frozen=True)
class Scored:
    """Counts of one sentence of one held-out speaker, by metric."""

    person: str
    counts: dict[str, Counts]


def scores_of(folder: Path, arm: str) -> Iterator[list[Scored]]:
    """Person by person, every sentence transcribed with the final shared tensors that an arm has in ``folder``."""
    config = load_config(folder / "config.toml")
    config = config.changed({"data.new-people-tests": EVERYTHING})
    form, _ = evaluated_as(arm, config)
    assert form is not None
    with tempfile.TemporaryDirectory() as store:  # empty: nobody has gates of their own
        worker = Worker(config, Path(store))
        found = load_checkpoint(folder / "checkpoints", form.name, worker.task.fingerprint)
        if found is None:
            raise RunError(f"{folder} has no checkpoint of arm {form.name}: run benchmarks.personalization first")
        for person in (name for name in worker.task.device_ids() if worker.task.is_new(name)):
            worker.place(form, person, from_arrays(found.arrays), before=0, neutral=True)
            examples = worker.task.device(person).test
            result = evaluate(worker.adapted, worker.task, examples, beams=config.federation.beams)
            name = f"seed {config.seed}, {person}"
            yield [
                Scored(name, dict(worker.task.score(example, text)))
                for example, text in zip(examples, result.predictions, strict=True)
            ]


def percent(*values: float | None) -> list[float]:
    """Rates for the table."""
    return [100 * value if value is not None else float("nan") for value in values]


def table(scores: dict[str, list[Scored]], seeds: list[int]) -> str:
    """The result as Markdown."""
    people = [each.person for each in scores[ARMS[0]]]
    lines = ["| arm | " + " | ".join(METRICS) + " |", "| --- |" + " --- |" * len(METRICS)]

    def column(arm: str, metric: str) -> tuple[list[int], list[int]]:
        counts = [each.counts[metric] for each in scores[arm]]
        return [one.errors for one in counts], [one.reference for one in counts]

    for arm in ARMS:
        cells = []
        for metric in METRICS:
            errors, reference = column(arm, metric)
            found = rate_interval(errors, reference, people, seed=0)
            cells.append("{:.1f} ({:.1f}-{:.1f})".format(*percent(found.rate, found.low, found.high)))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    cells = []
    for metric in METRICS:
        errors, reference = column("neutral", metric)
        between = paired_difference(errors, column("global", metric)[0], reference, people, seed=0)
        cells.append("{:+.1f} ({:+.1f} to {:+.1f})".format(*percent(between.difference, between.low, between.high)))
    lines.append("| neutral against global, points | " + " | ".join(cells) + " |")
    where = machine()
    versions = ", ".join(f"{name} {version}" for name, version in dict(where["versions"]).items())  # type: ignore[call-overload]
    lines += [
        "",
        f"Seeds {', '.join(map(str, seeds))}; {len(set(people))} new people, {len(people)} sentences; {where['processor']}, "
        f"{where['cores']} cores, Python {where['python']}; {versions}. "
        "95 % bootstrap intervals, sentences within people, 2,000 samples.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=Path, nargs="+", default=[Path(f"runs/personalization/seed-{seed}") for seed in (1, 2, 3)]
    )
    parser.add_argument("--write", type=Path, default=None)
    arguments = parser.parse_args()
    scores: dict[str, list[Scored]] = {arm: [] for arm in ARMS}
    with progress_bars() as show:
        for folder in arguments.runs:
            for arm in ARMS:
                for done, person in enumerate(scores_of(folder, arm), 1):
                    scores[arm] += person
                    show(f"{folder.name}: {arm}", done, done)
    seeds = [load_config(folder / "config.toml").seed for folder in arguments.runs]
    text = table(scores, seeds)
    print(text)
    if arguments.write:
        write_section(arguments.write, START, END, text)


if __name__ == "__main__":
    main()
