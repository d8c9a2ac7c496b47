"""A run whose nodes are threads of one process against one on Flower's simulation runtime, a process for each: time and memory.

    python -m benchmarks.backends [--workers 2] [--repeats 3] [--smoke]

The same devices, rounds and steps, in turns, each run in a process of its own with warm caches. Of each: seconds of a round (the first is
left out), processor seconds of all processes meanwhile, the most memory they take together (a page that several share counts once), and
whether both leave the same rows and transcripts. The figure is how many times as fast rounds are with threads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks._report import BenchmarkRow, machine, spread, write_row
from benchmarks.table import target_here
from fl.core.machine import available_cores
from fl.settings.config import make_config
from sim.backends.noop import peak_memory
from sim.backends.run import run_simulation

KINDS = ("threads", "processes")
ARM = "global"


def processor_seconds() -> float:
    """Of this process and those below it."""
    found = 0.0
    for process in (root := psutil.Process(), *root.children(recursive=True)):
        try:
            found += sum(process.cpu_times()[:2])
        except psutil.Error:  # it ended while we looked
            continue
    return found


def digest(folder: Path) -> str:
    """Of a run's results and transcripts, without what a clock measured."""
    made = hashlib.sha256()
    for name in ("results.jsonl", "transcripts.jsonl"):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            kept = {k: v for k, v in json.loads(line).items() if not k.startswith(("seconds_", "crc32"))}
            made.update(json.dumps(kept, sort_keys=True).encode())
    return made.hexdigest()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One run in this process."""
    marks: list[tuple[float, float]] = []

    def progress(what: str, done: int, total: int) -> None:
        if what == ARM:
            marks.append((time.perf_counter(), processor_seconds()))

    settings = {"base": arguments.base, "devices": arguments.devices, "sentences": 60, "rounds": arguments.rounds}
    settings |= {"local-steps": arguments.steps, "new-people": 0, "evaluate-every": 0, "arms": ARM, "language": "ko"}
    with tempfile.TemporaryDirectory() as folder, peak_memory(0.5) as peak:
        config = make_config({**settings, "output": str(Path(folder) / "run")})
        run = run_simulation(
            config, workers=arguments.workers, processes=arguments.here == "processes", progress=progress
        )
        found = digest(run)
    (began, used), (ended, used_then), rounds = marks[1], marks[-1], len(marks) - 2
    return {
        "seconds": round((ended - began) / rounds, 3),
        "processor_seconds": round((used_then - used) / rounds, 3),
        "peak_mib": round(peak.bytes / 2**20),
        "digest": found,
    }


def main() -> int:
    """Measure, write ``benchmarks/results/backends.json`` (not with ``--smoke``); 1 where threads are slower or give other numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="whisper-base")
    parser.add_argument("--devices", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: a minute, no figure")
    parser.add_argument("--here", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.smoke:
        vars(arguments).update({"base": "random:whisper-nano", "devices": 2, "rounds": 2, "steps": 1, "repeats": 1})
    if arguments.here:
        print(json.dumps(measure(arguments)))
        return 0
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for _ in range(arguments.repeats):
        for kind in KINDS:
            command = [sys.executable, "-m", "benchmarks.backends", *sys.argv[1:], "--here", kind]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[kind].append(json.loads(said.splitlines()[-1]))
            print(kind, found[kind][-1], flush=True)
    keys = ("seconds", "processor_seconds", "peak_mib")
    median = {kind: {k: statistics.median(one[k] for one in each) for k in keys} for kind, each in found.items()}
    same = len({one["digest"] for each in found.values() for one in each}) == 1
    row = BenchmarkRow(
        "backends",
        median["threads"]["seconds"],
        "seconds a round",
        round(median["processes"]["seconds"] / median["threads"]["seconds"], 3),
        target_here("backends"),
        {
            **{name: value for name, value in vars(arguments).items() if name != "here"},
            **median,
            "same_rows": same,
            "spread": spread([p["seconds"] / t["seconds"] for t, p in zip(*found.values(), strict=True)]),
            "machine": machine(("ray",)),
        },
    )
    print(f"{median}, rows {'the same' if same else 'NOT THE SAME'}; rounds with threads {row.ratio} times as fast")
    print("not written: smoke" if arguments.smoke else f"written to {write_row(row)}")
    return 0 if same and (row.met or arguments.smoke) else 1


if __name__ == "__main__":
    sys.exit(main())
