"""Rounds without training at 10 to 100,000 registered devices: what the framework itself costs, and how it grows.

Each size is ``idiolect run --no-op`` in a process of its own, so that memory is that of one run, on Flower's simulation with as
many workers as there are cores. A device does everything but local steps: its adapter is assembled, its update and numbers
travel, are checked and averaged, a row is written; with private state, its gates are read from and durably written to the disk.

    python -m benchmarks.population [--sizes 10,100,1000,10000,100000] [--sample 1000] [--rounds 5] [--repeats 3] [--serial]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks._report import BenchmarkRow, exponent, machine, spread, write_row
from benchmarks.table import target_here

ROOT = Path(__file__).parents[1]
# Name of a row, what it is in the run's summary, with which state, unit, upper bound, and what the value is divided by.
FIGURES = (
    ("population_framework", "framework_ms", "shared", "ms a device in a round", 1.0, 1),
    ("population_framework_private", "framework_ms", "private", "ms a device in a round", 3.0, 1),
    ("population_seconds", "seconds", "private", "s for the whole run", 60.0, 1),
    ("population_memory", "peak_bytes", "private", "GiB, all processes together", 2.0, 2**30),
)
GROWTH = {"population_seconds": "growth_devices_seconds", "population_memory": "growth_devices_memory"}
# With every tensor shared a device has no private state, and without gates nothing else differs in kind.
SETTINGS = {"shared": ["--split", "all-shared"], "private": ["--gate", "self"]}


def run(devices: int, state: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run; what ``idiolect run --no-op --json`` says of it."""
    command = [sys.executable, "-m", "sim.cli.app", "run", "--no-op", "--json", "--devices", str(devices)]
    command += ["--sample", str(min(arguments.sample, devices)), "--rounds", str(arguments.rounds), *SETTINGS[state]]
    command += ["--serial"] if arguments.serial else []
    command += ["--aggregation", arguments.aggregation, "--seed", str(arguments.seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2_000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows_of(found: dict[tuple[int, str], list[dict[str, Any]]], arguments: argparse.Namespace) -> list[BenchmarkRow]:
    """The figures of the largest population, each with those of the others beside it."""
    conditions = {**vars(arguments), "machine": machine(("ray",))}
    largest = max(size for size, _ in found)
    rows = []
    for name, key, state, unit, target, scale in FIGURES:
        by_size = {
            size: spread([r[key] / scale for r in runs]) for (size, kind), runs in found.items() if kind == state
        }
        value = by_size[largest]["median"]
        details = {**conditions, "by_population": by_size}
        rows.append(BenchmarkRow(name, value, unit, value, target, details, at_most=True))
        if name in GROWTH:
            grows = exponent({size: one["median"] for size, one in by_size.items()})
            growth = GROWTH[name]
            rows.append(BenchmarkRow(growth, value, unit, grows, target_here(growth), details, at_most=True))
    return rows


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10,100,1000,10000,100000", help="registered devices, with commas between")
    parser.add_argument("--sample", type=int, default=1000, help="devices in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--aggregation", default="device", choices=("device", "edge"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serial", action="store_true", help="in one process, without Ray")
    parser.add_argument("--smoke", action="store_true", help="small sizes, to see that it works; writes nothing")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.sizes, arguments.sample, arguments.rounds, arguments.repeats = "50,100", 10, 2, 1
    return arguments


def main() -> int:
    """Measure, write ``benchmarks/results/population_*.json``; 1 where a target is missed."""
    arguments = parse_arguments()
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for _ in range(arguments.repeats):  # taking turns, so that a busy moment of the machine meets them all
        for size in map(int, arguments.sizes.split(",")):
            for state in SETTINGS:
                found.setdefault((size, state), []).append(run(size, state, arguments))
    rows = rows_of(found, arguments)
    for row in rows:
        if not arguments.smoke:
            write_row(row)
        state = "met" if row.met else "MISSED"
        print(f"{row.name:>28}: {row.value:8.2f} {row.unit}, {row.ratio:.2f} (at most {row.target:g}: {state})")
    return 0 if arguments.smoke or all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
