"""Client-rounds per second of ours against the stock recipe, in one run, with the final WER of both beside the time.

    python -m benchmarks.client_round [--smoke]
    python -m benchmarks.client_round --arms global,personalized --cohort 6 --repeats 3

Both train the same devices on the same batches with the same steps, learning rates and initial A: ours as ``idiolect run``
does it, the stock recipe as :mod:`benchmarks.stock_recipe` describes. They take turns, so that a busy moment of the machine
meets both; the machine's own matrix-product rate is measured before each. The stock recipe trains in float32 or under bf16
autocast, whichever makes its step faster: both are timed first, and stand in the row. A client-round is one device's local phase
with its share of everything around it. The first round of either is left out, because the stock recipe loads the
base in it. ``personalized`` has self gates here and trains them in the last round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks._report import BenchmarkRow, machine, matrix_rate, spread, write_row
from benchmarks.stock_recipe import add_options, configuration, run_stock, step_seconds, stock_counts, training_people
from benchmarks.table import target_here
from fl.metrics import Counts
from fl.protocol.wire import add_counts
from fl.settings.config import RunConfig
from fl.settings.fields import words
from sim.backends.run import run_simulation


@dataclass(frozen=True)
class Measured:
    """One way of training in one repeat: seconds of each measured round, seconds of the whole run, WER counts."""

    round_seconds: tuple[float, ...]
    whole_seconds: float
    wer: Counts
    gflops: float


def after_first(seconds: Sequence[float]) -> tuple[float, ...]:
    """The rounds that count: all but the first, if there are more."""
    return tuple(seconds[1:] or seconds)


class RoundClock:
    """A progress callback of the round loop: an arm's rounds are the times between its calls."""

    def __init__(self) -> None:
        self.stamps: dict[str, list[float]] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        """Called before each round and after the last."""
        self.stamps.setdefault(what, []).append(time.perf_counter())

    def round_seconds(self, arm: str) -> tuple[float, ...]:
        """Seconds of each round of ``arm``."""
        stamps = self.stamps[arm]
        return tuple(after - before for before, after in itertools.pairwise(stamps))


def final_counts(rows: list[dict[str, Any]], arm: str, split: str, last_round: int) -> Counts:
    """Summed WER counts of the arm's final evaluation."""
    found = [
        {"wer": Counts(**row["metrics"]["wer"])}
        for row in rows
        if row["arm"] == arm and row["split"] == split and row["round"] == last_round and row["metrics"]
    ]
    return add_counts(found)["wer"]


def measure_ours(config: RunConfig, workers: int) -> dict[str, Measured]:
    """One run of ours; each arm's figures."""
    gflops, clock = matrix_rate(workers), RoundClock()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run = run_simulation(config.changed({"output": str(Path(folder) / "run")}), workers=workers, progress=clock)
        seconds = time.perf_counter() - started
        rows = [json.loads(line) for line in (run / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    split, last = config.federation.final_split, config.federation.rounds
    return {
        arm: Measured(
            after_first(clock.round_seconds(arm)), seconds, final_counts(rows, arm, split, last), round(gflops, 1)
        )
        for arm in config.arms
    }


def measure_stock(config: RunConfig, workers: int, cpus: int) -> Measured:
    """One run of the stock recipe."""
    gflops = matrix_rate(workers)
    run = run_stock(config, workers, cpus)
    counts = stock_counts(config, run.state)["wer"]
    return Measured(after_first(run.round_seconds), run.seconds, counts, round(gflops, 1))


def rates(repeats: Sequence[Measured], devices: int) -> list[float]:
    """Client-rounds per second of every measured round."""
    return [devices / seconds for one in repeats for seconds in one.round_seconds]


def wer(repeats: Sequence[Measured]) -> float | None:
    """Word error rate over all repeats."""
    return add_counts([{"wer": one.wer} for one in repeats])["wer"].rate


def describe(repeats: Sequence[Measured], devices: int) -> dict[str, object]:
    """One side of a row."""
    error = wer(repeats)
    return {
        "client_rounds_per_second": spread(rates(repeats, devices)),
        "wer": None if error is None else round(error, 4),
        "whole_run_seconds": [round(one.whole_seconds, 1) for one in repeats],
        "matrix_gflops_before": [one.gflops for one in repeats],
    }


def make_row(
    arm: str, ours: Sequence[Measured], stock: Sequence[Measured], devices: int, conditions: dict[str, object]
) -> BenchmarkRow:
    """The figure of one arm."""
    ours_rate, stock_rate = (statistics.median(rates(side, devices)) for side in (ours, stock))
    gpu = torch.cuda.is_available()
    ours_wer, stock_wer = wer(ours), wer(stock)
    worse = ours_wer is not None and stock_wer is not None and ours_wer > stock_wer
    name = ("gpu_" if gpu else "") + "client_round" + ("" if arm == "global" else f"_{arm}")
    return BenchmarkRow(
        name=name,
        value=round(ours_rate, 4),
        unit="client-rounds/s",
        ratio=round(ours_rate / stock_rate, 2),
        target=target_here(name),
        conditions={
            **conditions,
            "arm": arm,
            "note": f"WER {percent(ours_wer)}, stock {percent(stock_wer)}" + (": worse" if worse else ""),
            "wer_not_worse": not worse,
            "spread": spread([a / b for a, b in zip(rates(ours, devices), rates(stock, devices), strict=False)]),
            "ours": describe(ours, devices),
            "stock": describe(stock, devices),
            "machine": machine(),
        },
    )


def percent(rate: float | None) -> str:
    """A rate for a line of text."""
    return "-" if rate is None else f"{100 * rate:.1f} %"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--arms", default="global,personalized")
    parser.add_argument("--cohort", type=int, default=None, help="devices trained in one computation (setting cohort)")
    parser.add_argument("--set", nargs="*", default=[], metavar="SETTING=VALUE", help="further settings of ours")
    parser.add_argument("--repeats", type=int, default=1)
    return parser.parse_args()


def main() -> int:
    """Measure, write one row for each arm (none with ``--smoke``); 1 where a target is missed."""
    arguments = parse_arguments()
    stock_config = configuration(arguments)
    extra: dict[str, object] = dict(pair.split("=", 1) for pair in arguments.set)
    if arguments.cohort is not None:
        extra["cohort"] = arguments.cohort
    config = configuration(arguments, **{"arms": arguments.arms, "gate": "self", **extra})
    devices = len(training_people(config))
    ours: dict[str, list[Measured]] = {arm: [] for arm in config.arms}
    stock: list[Measured] = []
    seconds = step_seconds(stock_config, arguments.stock_cpus)
    stock_config = stock_config.changed({"base.precision": min(seconds, key=seconds.__getitem__)})
    print(f"a step of the stock recipe, seconds: {seconds}; it trains in {stock_config.base.precision}", flush=True)
    for turn in range(arguments.repeats):
        print(f"repeat {turn + 1} of {arguments.repeats}: stock recipe, then ours", flush=True)
        stock.append(measure_stock(stock_config, arguments.workers, arguments.stock_cpus))
        for arm, measured in measure_ours(config, arguments.workers).items():
            ours[arm].append(measured)
    met = True
    conditions = {**vars(arguments), "arms": list(words(arguments.arms)), "devices": devices}
    conditions |= {"stock_precision": stock_config.base.precision, "stock_step_seconds": seconds}
    for arm, repeats in ours.items():
        row = make_row(arm, repeats, stock, devices, conditions)
        met &= row.met and bool(row.conditions["wer_not_worse"])
        written = "not written: smoke" if arguments.smoke else f"written to {write_row(row)}"
        print(
            f"{row.name}: {row.value:.3f} against {statistics.median(rates(stock, devices)):.3f} client-rounds/s, "
            f"{row.ratio:.1f}x (target {row.target:.0f}x), {row.conditions['note']}; {written}"
        )
    return 0 if met or arguments.smoke else 1


if __name__ == "__main__":
    sys.exit(main())
