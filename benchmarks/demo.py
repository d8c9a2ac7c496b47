"""``idiolect demo`` from its first line to its report, with empty caches but for the base: minutes, where they go, and what it shows.

    python -m benchmarks.demo [--smoke] [--keep FOLDER]

Two figures: the time, with the seconds of each arm and the peak memory beside it, and by how much ``personalized`` is below ``global``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks._report import BenchmarkRow, machine, write_row
from benchmarks.table import target_here
from fl.core.paths import cache_root
from sim.backends.noop import PeakMemory, peak_memory

SMOKE = ["--base", "random:whisper-nano", "--rounds", "2", "--local-steps", "1", "--sentences", "12", "--devices", "2"]


def run_demo(options: list[str], keep: Path | None = None) -> tuple[dict[str, Any], float, PeakMemory]:
    """Summary, seconds and peak memory of all processes of one demo. ``keep`` is an empty folder for its caches and its run."""
    bases = cache_root() / "bases"
    bases.mkdir(parents=True, exist_ok=True)
    if keep is not None:
        keep.mkdir(parents=True)
    own = nullcontext(str(keep.resolve())) if keep else tempfile.TemporaryDirectory(prefix="idiolect-demo-")
    with own as folder, peak_memory() as peak:
        (Path(folder) / "bases").symlink_to(bases)
        command = [sys.executable, "-m", "sim.cli.app", "demo", "--json", "--output", f"{folder}/run", *options]
        started = time.perf_counter()
        done = subprocess.run(
            command, env={**os.environ, "IDIOLECT_HOME": folder}, stdout=subprocess.PIPE, text=True, check=False
        )
        seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {done.returncode} (above)")
    return json.loads(done.stdout.splitlines()[-1]), seconds, peak


def rows_of(summary: dict[str, Any], seconds: float, peak: PeakMemory) -> list[BenchmarkRow]:
    """The figures of a demo."""
    costs, better = summary["costs"], summary["comparisons"]["personalized_vs_global"]["mer"]
    rates = {arm: round(found["mer"]["rate"], 4) for arm, found in summary["arms"].items()}
    conditions = {"seconds": costs["seconds"], "mer": rates, "machine": machine(("ray",))}
    conditions["peak_gib"] = round(peak.bytes / 2**30, 2)
    minutes, fewer = (
        round(seconds / 60, 2),
        {key: -better[key] for key in ("relative", "relative_low", "relative_high")},
    )
    spread = {"spread": {"min": round(fewer["relative_high"], 3), "max": round(fewer["relative_low"], 3)}}
    return [
        BenchmarkRow("demo", minutes, "minutes", minutes, target_here("demo"), conditions, at_most=True),
        BenchmarkRow(
            "demo_personalized",
            round(100 * rates["personalized"], 1),
            "% MER",
            round(fewer["relative"], 3),
            target_here("demo_personalized"),
            {**conditions, **spread},
        ),
    ]


def main() -> int:
    """Measure, write ``benchmarks/results/demo*.json`` (not with ``--smoke``); 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: a minute, no figure")
    parser.add_argument("--keep", type=Path, help="a new folder, for pictures of FOLDER/run")
    arguments = parser.parse_args()
    smoke = arguments.smoke
    rows = rows_of(*run_demo(SMOKE if smoke else [], arguments.keep))
    for row in rows:
        if not smoke:
            write_row(row)
        print(f"{row.name:>18}: {row.value} {row.unit}, {row.ratio} (target {row.target:g}), {row.conditions}")
    return 0 if smoke or all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
