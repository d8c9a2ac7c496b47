"""Whether a base in bf16 changes the error rate of a run by more than the chance in training does.

    python -m benchmarks.precision [--runs runs/precision] [--smoke]

The default run, shorter, of the same people with three seeds of training in float32 and in bf16. A seed is another initialisation and
another order of batches, so the deviation between the float32 runs is the chance in training. Differences are paired by person and
seed; their interval resamples people and seeds. A run that is finished is read and not run again. The figure is the size of the mean
difference in units of that deviation. Without AMX tiles bf16 is slower than float32; the arithmetic is the same.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks._report import BenchmarkRow, machine, write_row
from benchmarks.table import target_here
from fl.core.compute import BF16, FLOAT32
from fl.core.rng import derive_generator
from sim.section import markdown_table
from sim.study.plan import Study, StudyCell, StudySize
from sim.study.run import StudyRun
from sim.study.scores import CellScores

ARMS = ("global", "personalized")
SAMPLES = 10_000
SIZE = StudySize("precision", {"devices": 6, "sentences": 60, "new-people": 0, "evaluate-every": 0, "rounds": 5}, (1,))
SMOKE = StudySize(
    "smoke", {**SIZE.settings, "base": "random:whisper-nano", "devices": 2, "sentences": 14, "rounds": 2}, (1,)
)

Errors = npt.NDArray[np.int64]  # (people, seeds)


def name_of(precision: str, seed: int) -> str:
    """The cell of one run."""
    return f"{precision}, seed {seed}"


def make_study(seeds: int) -> Study:
    """Both precisions of each seed, one behind the other, so that what is finished can be compared already."""
    cells = tuple(
        StudyCell(name_of(precision, seed), {"base.precision": precision}, again=seed)
        for seed, precision in itertools.product(range(1, seeds + 1), (FLOAT32, BF16))
    )
    question = "Does bf16 change the error rate by more than the chance in training?"
    return Study("precision", question, cells, cells[0].name, ARMS, ARMS)


def person_errors(scores: CellScores, arm: str) -> dict[str, tuple[int, int]]:
    """Errors and reference tokens of each person in one run."""
    found: dict[str, tuple[int, int]] = {}
    for each in scores.arms[arm]:
        counts, (errors, reference) = each.counts[scores.metric], found.get(each.row.device, (0, 0))
        found[each.row.device] = (errors + counts.errors, reference + counts.reference)
    return found


def compare(wide: Errors, narrow: Errors, reference: npt.NDArray[np.int64], seed: int) -> dict[str, float]:
    """Rates and their paired difference, in points, with an interval over people and seeds; ``reference`` is (people,).

    ``deviation`` is the standard deviation between the runs of ``wide``: the chance in training.
    """
    people, seeds = wide.shape
    generator = derive_generator(seed, "precision")
    rows = generator.integers(people, size=(SAMPLES, people))
    columns = generator.integers(seeds, size=(SAMPLES, seeds))
    drawn = (narrow - wide)[rows[:, :, None], columns[:, None, :]].sum(axis=(1, 2)) / reference[rows].sum(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975]) / seeds * 100
    rates = {name: 100 * errors.sum(axis=0) / reference.sum() for name, errors in ((FLOAT32, wide), (BF16, narrow))}
    return {
        **{name: float(rate.mean()) for name, rate in rates.items()},
        "difference": float((rates[BF16] - rates[FLOAT32]).mean()),
        "low": float(low),
        "high": float(high),
        "deviation": statistics.stdev(rates[FLOAT32].tolist()) if seeds > 1 else float("nan"),
    }


def compare_arms(scores: Mapping[str, CellScores], seeds: int) -> dict[str, dict[str, float]]:
    """:func:`compare` for each arm."""
    found = {}
    for arm in ARMS:
        runs = {name: person_errors(one, arm) for name, one in scores.items()}
        people = sorted(next(iter(runs.values())))
        wide, narrow = (
            np.array([[runs[name_of(p, s)][who][0] for s in range(1, seeds + 1)] for who in people])
            for p in (FLOAT32, BF16)
        )
        reference = np.array([next(iter(runs.values()))[who][1] for who in people])
        found[arm] = {name: round(value, 3) for name, value in compare(wide, narrow, reference, seed=1).items()}
    return found


def table(found: Mapping[str, Mapping[str, float]], metric: str) -> str:
    """The comparison as Markdown."""
    heads = ("arm", f"float32, % {metric.upper()}", "bf16", "difference, points", "chance in training, points")
    return markdown_table(
        heads,
        [
            (
                arm,
                f"{one[FLOAT32]:.1f}",
                f"{one[BF16]:.1f}",
                f"{one['difference']:+.1f} ({one['low']:+.1f} to {one['high']:+.1f})",
                f"{one['deviation']:.1f}",
            )
            for arm, one in found.items()
        ],
    )


def main() -> int:
    """Run or go on, write ``benchmarks/results/precision.json`` (not with ``--smoke``) and print the table; 1 where missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/precision"), help="where the runs are kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="tiny runs that are not kept apart from others; no figure")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size = SMOKE if arguments.smoke else SIZE
    run = StudyRun(make_study(arguments.seeds), size, arguments.runs / size.name)
    run.run(lambda what, done, total: print(f"{what} ({done} of {total})", flush=True))
    scores = {cell.name: CellScores.read([run.folder(cell, 1)], seeds=size.seeds) for cell in run.study.cells}
    metric = next(iter(scores.values())).metric
    found = compare_arms(scores, arguments.seeds)
    main_arm = found[ARMS[-1]]
    row = BenchmarkRow(
        name="precision",
        value=main_arm["difference"],
        unit=f"points of {metric.upper()}",
        ratio=round(abs(main_arm["difference"]) / main_arm["deviation"], 3) if main_arm["deviation"] else float("inf"),
        target=target_here("precision"),
        conditions={"arms": found, "settings": size.settings, "seeds": arguments.seeds, "machine": machine()},
        at_most=True,
    )
    print(table(found, metric))
    print("not written: smoke" if arguments.smoke else f"written to {write_row(row)}")
    return 0 if row.met or arguments.smoke else 1


if __name__ == "__main__":
    sys.exit(main())
