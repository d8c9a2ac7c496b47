"""A training step beside another program on the same cores: OpenMP's threads that wait briefly against its own spinning.

    python -m benchmarks.shared_cores [--smoke]

A process trains three devices, two sentences each, with a thread for each core: alone, beside a loop that keeps one core busy, and
beside another process like itself. Each is done with GNU OpenMP's own way of waiting and with that of the command
(:func:`fl.core.machine.wait_briefly`), in turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

from benchmarks._report import BenchmarkRow, conclude, machine, spread
from benchmarks.table import target_here
from fl.core.machine import SPINS, available_cores, wait_briefly

BUSY = (sys.executable, "-c", "while True: pass")
NAMES = {"alone": "shared_cores_alone", "busy": "shared_cores_busy", "twin": "shared_cores_twin"}


def steps(arguments: argparse.Namespace) -> None:
    """In a process of its own: train for some seconds and print the seconds of a step."""
    if arguments.briefly:
        wait_briefly()
    import torch

    from benchmarks.cohort import Bench

    torch.set_num_threads(arguments.threads)
    bench = Bench(
        argparse.Namespace(base=arguments.base, devices=3, steps=1, threads=arguments.threads, repeats=1, seed=0), 2
    )
    bench.together()
    begun, done = time.perf_counter(), 0
    while not done or time.perf_counter() - begun < arguments.seconds:
        bench.together()
        done += 1
    print((time.perf_counter() - begun) / done)


def seconds_of_step(beside: str, briefly: bool, arguments: argparse.Namespace) -> float:
    """The mean seconds of a step with ``beside`` on the same cores."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    options = ("--base", arguments.base, "--seconds", str(arguments.seconds), "--threads", str(arguments.threads))
    train = [sys.executable, "-m", "benchmarks.shared_cores", "--steps", *options, *(["--briefly"] if briefly else [])]
    others = [subprocess.Popen(BUSY)] if beside == "busy" else []
    trained = [
        subprocess.Popen(train, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(1 + (beside == "twin"))
    ]
    try:
        return statistics.mean(float(process.communicate()[0]) for process in trained)
    finally:
        for other in (*others, *trained):
            other.kill()
            other.wait()


def measure(beside: str, arguments: argparse.Namespace) -> BenchmarkRow:
    """The row of one neighbour, both ways of waiting in turns. Alone, the ratio is what waiting briefly costs."""
    own, brief = [], []
    for _ in range(arguments.repeats):
        own.append(seconds_of_step(beside, False, arguments))
        brief.append(seconds_of_step(beside, True, arguments))
    name, alone = NAMES[beside], beside == "alone"
    ratios = [ours / theirs if alone else theirs / ours for theirs, ours in zip(own, brief, strict=True)]
    details: dict[str, object] = {key: getattr(arguments, key) for key in ("base", "threads", "seconds", "repeats")}
    details |= {"machine": machine(), "spins": int(SPINS), "openmp_seconds": spread(own), "spread": spread(ratios)}
    value, ratio = round(statistics.median(brief), 3), round(statistics.median(ratios), 3)
    return BenchmarkRow(name, value, "seconds a step", ratio, target_here(name), details, at_most=alone)


def main() -> int:
    """Measure, write the rows (not with ``--smoke``); 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="whisper-base")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: seconds, no figure")
    parser.add_argument("--steps", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--briefly", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.smoke:
        vars(arguments).update({"base": "random:whisper-nano", "seconds": 0.0, "repeats": 1})
    if arguments.steps:
        steps(arguments)
        return 0
    return conclude((measure(beside, arguments) for beside in NAMES), arguments.smoke)


if __name__ == "__main__":
    sys.exit(main())
