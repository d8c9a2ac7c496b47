"""Seconds from ``idiolect run`` to its first training step, and when each part of the start was reached.

    python -m benchmarks.run_start [--repeats 3] [--smoke]

A run without any option but its folder, in a process of its own. One run before fills the caches (base, population, features) and
is not counted. Every process of a run notes when it first imports what takes long and when it first differentiates, and
the run is then stopped. The figure is the wall time on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks._report import BenchmarkRow, machine, spread, write_row

ROOT = Path(__file__).parent.parent
TARGET_SECONDS = 12.0
MOST_SECONDS = 900.0  # for the first run, which makes the population
STEP = "first step"
SMOKE = ("--base", "random:whisper-nano", "--language", "ko", "--devices", "2", "--sentences", "12", "--arms", "global")
# Put before everything that a process of the run imports; "peft" comes behind torch and before any training.
WATCH = f"""
import os, sys, time

def note(what):
    with open(os.environ["RUN_START_NOTES"], "a") as file:
        file.write(f"{{time.time()}} {{what}}\\n")

def noted(function):
    def call(*arguments, **more):
        note({STEP!r})
        return function(*arguments, **more)
    return call

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "ray", "flwr", "peft", "clients.app", "clients.worker"):
            note(name + (" in a worker" if "default_worker.py" in sys.argv[0] else ""))
        if name == "peft":
            import torch
            torch.autograd.grad, torch.Tensor.backward = noted(torch.autograd.grad), noted(torch.Tensor.backward)

sys.meta_path.insert(0, Watch())
"""


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a run and the processes below it."""
    below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    for one in below:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def measure(options: tuple[str, ...]) -> dict[str, float]:
    """Seconds from the start of one run to each thing that its processes noted, when it was first noted."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        notes = folder / "notes"
        (folder / "sitecustomize.py").write_text(WATCH, encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "RUN_START_NOTES": str(notes)}
        command = [sys.executable, "-m", "sim.cli.app", "run", "--output", str(folder / "run"), *options]
        notes.touch()
        started = time.time()
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            while STEP not in (text := notes.read_text(encoding="utf-8")):
                if process.poll() is not None or time.time() - started > MOST_SECONDS:
                    raise SystemExit(f"the run did not come to a step:\n{(folder / 'log').read_text()[-2000:]}")
                time.sleep(0.02)
        finally:
            stop(process)
    found: dict[str, float] = {}
    for line in text.splitlines():
        moment, _, what = line.partition(" ")
        found.setdefault(what, round(float(moment) - started, 2))
    return found


def main() -> int:
    """Measure, write ``benchmarks/results/run_start.json``; 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="a tiny run, once; nothing is written")
    arguments = parser.parse_args()
    options = SMOKE if arguments.smoke else ()
    first = measure(options)
    each = [measure(options) for _ in range(0 if arguments.smoke else arguments.repeats)] or [first]
    seconds = spread([found[STEP] for found in each])
    row = BenchmarkRow(
        name="run_start",
        value=float(seconds["median"]),
        unit="s from the command to the first training step",
        ratio=float(seconds["median"]),
        target=TARGET_SECONDS,
        conditions={
            "spread": seconds,
            "seconds_until": min(each, key=lambda found: found[STEP]),
            "seconds_with_empty_caches": first[STEP],
            "machine": machine(("ray",)),
        },
        at_most=True,
    )
    for what, when in row.conditions["seconds_until"].items():  # type: ignore[attr-defined]
        print(f"{when:>8.2f} s {what}")
    print(f"run_start: {row.value:.1f} s (at most {row.target:g}: {'met' if row.met else 'MISSED'})")
    if not arguments.smoke:
        write_row(row)
    return 0 if row.met else 1


if __name__ == "__main__":
    sys.exit(main())
