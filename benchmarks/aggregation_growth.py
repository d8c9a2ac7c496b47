"""How aggregation grows: seconds and memory against devices and rank, and the exponents of both.

    python -m benchmarks.aggregation_growth [--most 100000] [--smoke]

Updates of two layers (one a core) lie in memory, 64 KiB a device at rank 8; whole adapters take as many times longer as they have layers.
Numbers of devices whose updates would take more than a third of the free memory are left out. Memory is the peak of what an algorithm
allocates beside the updates. An exponent p (processor seconds grow as devices^p) is the slope of a line through the logarithms, from 1,000
devices on for the linear algorithms, where fixed costs no longer count, and over all rows for those that compare devices in pairs.
Target: at most 1.1 for the linear ones.
"""

import argparse
import statistics
import sys
import time
import tracemalloc
from typing import Any

import numpy as np
import psutil

from benchmarks._report import BenchmarkRow, machine, write_row
from benchmarks.aggregation import QUADRATIC, RANK, WIDTH, as_sent, make_updates
from fl.aggregation.mean import product_gaps
from fl.aggregation.updates import Updates
from fl.algorithms.base import Round
from fl.algorithms.table import make_algorithm
from fl.settings.config import RunConfig

ALGORITHMS = (
    "fedavg",
    "fednova",
    "scaffold",
    "sparsity-weighted",
    "fedex",
    "flora",
    "flexlora",
    "median",
    "geometric-median",
    "krum",
)
GAP = "product-gap"  # which each round reports beside
DEVICES = (10, 100, 1_000, 10_000, 100_000)
RANKS = (2, 4, 8, 16, 32)
LAYERS, TARGET, LINEAR_FROM, QUADRATIC_MOST = 2, 1.1, 1_000, 1_000


def step(name: str, start: dict[str, np.ndarray], updates: Updates) -> None:
    """One aggregate, from checked replies; or the diagnostic of a round."""
    if name == GAP:
        product_gaps(updates, start)
    else:
        make_algorithm(RunConfig(), name).aggregator().aggregate(Round(1, start, tuple(updates)))


def measure(name: str, start: dict[str, np.ndarray], updates: Updates, repeats: int) -> dict[str, float]:
    """Median wall and processor seconds, and the peak of what was allocated in MiB."""
    wall, cpu = [], []
    for _ in range(repeats):
        began, used = time.perf_counter(), time.process_time()
        step(name, start, updates)
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
    tracemalloc.start()
    step(name, start, updates)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"seconds": statistics.median(wall), "cpu_seconds": statistics.median(cpu), "peak_mib": peak / 2**20}


def exponent(rows: list[dict[str, Any]], key: str, value: str) -> float | None:
    """p of value ~ key^p, None for fewer than two rows."""
    if len(rows) < 2:
        return None
    slope = np.polyfit(np.log([row[key] for row in rows]), np.log([max(row[value], 1e-9) for row in rows]), 1)[0]
    return round(float(slope), 3)


def sweep(cases: list[tuple[int, int]], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each algorithm at each number of devices and rank that fits."""
    rows: list[dict[str, Any]] = []
    for devices, rank in cases:
        size = devices * LAYERS * 2 * rank * WIDTH * 4
        if size > psutil.virtual_memory().available / 3:
            print(f"{devices} devices of rank {rank} are left out: {size / 2**30:.1f} GiB", flush=True)
            continue
        start, updates = make_updates(devices, LAYERS, arguments.seed, rank)
        for name in (*ALGORITHMS, GAP):
            if name in QUADRATIC and devices > QUADRATIC_MOST:
                continue
            found = measure(name, start, as_sent(name, updates), arguments.repeats if devices <= 10_000 else 1)
            rows.append(
                {"algorithm": name, "devices": devices, "rank": rank, **{k: round(v, 5) for k, v in found.items()}}
            )
            print(
                f"{devices:>7} devices, rank {rank:>2}, {name:>17}: "
                + ", ".join(f"{k} {v:.4g}" for k, v in found.items()),
                flush=True,
            )
    return rows


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=DEVICES[-1], help="no more devices than these")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="sizes that only show that it runs; nothing is written")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    """Measure, write ``benchmarks/results/aggregation_growth.json``; 1 where a linear algorithm grows faster than the target."""
    arguments = parse_arguments()
    most = 100 if arguments.smoke else arguments.most
    counts = [count for count in DEVICES if count <= most]
    by_devices = sweep([(count, RANK) for count in counts], arguments)
    by_rank = sweep([(min(1_000, most), rank) for rank in RANKS], arguments)
    exponents: dict[str, dict[str, float | None]] = {}
    for name in (*ALGORITHMS, GAP):
        own = [row for row in by_devices if row["algorithm"] == name]
        large = (
            own if name in QUADRATIC or most <= LINEAR_FROM else [row for row in own if row["devices"] >= LINEAR_FROM]
        )
        ranks = [row for row in by_rank if row["algorithm"] == name]
        exponents[name] = {
            "seconds by devices": exponent(large, "devices", "cpu_seconds"),
            "memory by devices": exponent(large, "devices", "peak_mib"),
            "seconds by rank": exponent(ranks, "rank", "cpu_seconds"),
        }
    linear = {name: found["seconds by devices"] or 0.0 for name, found in exponents.items() if name not in QUADRATIC}
    steepest = max(linear, key=lambda name: linear[name])
    row = BenchmarkRow(
        name="aggregation_growth",
        value=linear[steepest],
        unit=f"exponent of seconds by devices, {steepest}, the steepest of the linear algorithms",
        ratio=linear[steepest],
        target=TARGET,
        conditions={
            **vars(arguments),
            "layers": LAYERS,
            "exponents": exponents,
            "by_devices": by_devices,
            "by_rank": by_rank,
            "machine": machine(),
        },
        at_most=True,
    )
    for name, found in exponents.items():
        print(f"{name:>17}: " + ", ".join(f"{what} {value}" for what, value in found.items()))
    print("not written" if arguments.smoke else f"written to {write_row(row)}")
    return 0 if row.met or arguments.smoke else 1


if __name__ == "__main__":
    sys.exit(main())
