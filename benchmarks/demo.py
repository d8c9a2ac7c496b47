"""``idiolect demo`` from its first line to its report, with empty caches but for the base: minutes, and where they go.

    python -m benchmarks.demo [--smoke] [--keep FOLDER]

The seconds of each arm, its error rate and the peak memory stand beside the time.
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


def row_of(summary: dict[str, Any], seconds: float, peak: PeakMemory) -> BenchmarkRow:
    """The time of a demo; its error rates are stored by :mod:`benchmarks.personalization`."""
    rates = {arm: round(found["mer"]["rate"], 4) for arm, found in summary["arms"].items()}
    conditions = {"seconds": summary["costs"]["seconds"], "mer": rates, "machine": machine(("ray",))}
    conditions["peak_gib"] = round(peak.bytes / 2**30, 2)
    minutes = round(seconds / 60, 2)
    return BenchmarkRow("demo", minutes, "minutes", minutes, target_here("demo"), conditions, at_most=True)


def main() -> int:
    """Measure, write ``benchmarks/results/demo.json`` (not with ``--smoke``); 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: a minute, no figure")
    parser.add_argument("--keep", type=Path, help="a new folder, for pictures of FOLDER/run")
    arguments = parser.parse_args()
    smoke = arguments.smoke
    row = row_of(*run_demo(SMOKE if smoke else [], arguments.keep))
    if not smoke:
        write_row(row)
    print(f"{row.name}: {row.value} {row.unit} (target {row.target:g}), {row.conditions}")
    return 0 if smoke or row.met else 1


if __name__ == "__main__":
    sys.exit(main())
