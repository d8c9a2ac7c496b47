"""Seconds of one batch against the people in it, each with an adapter and as much speech: 1 to 64, with the exponent.

    python -m benchmarks.growth_people [--people 1 2 4 8 16 32 64] [--repeats 3] [--smoke]

The exponent is the slope of a least-squares line through the logarithms: 1 is a batch that saves nothing, below it people share
the reading of the weights. The work is that of benchmarks.serving: `self` gates, 3 s of audio, 16 tokens.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from benchmarks._report import BenchmarkRow, machine, time_side_by_side, write_row
from benchmarks.serving import make_adapter, run_engine
from fl.bases.resolve import load_base
from fl.bases.whisper import decoding
from fl.core.rng import derive_generator
from fl.serving.engine.engine import BatchEngine, EngineSettings
from fl.speech.audio import SAMPLE_RATE

LINEAR = 1.0


def main() -> int:
    """Measure, write ``benchmarks/results/growth_people.json``; 1 where a batch costs more than its people one by one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="whisper-base")
    parser.add_argument("--people", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each utterance")
    parser.add_argument("--tokens", type=int, default=16, help="of each transcript")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--language", default="ko")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="sizes that only show that it runs; nothing is written")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.base, arguments.people, arguments.repeats, arguments.tokens = "random:whisper-nano", [1, 2, 4], 1, 4
    decoding.MIN_REPEATS = 10**9  # no guard against loops: as many tokens from everybody
    base = load_base(arguments.base)
    base.rules = replace(base.rules, suppress=(*base.rules.suppress, base.rules.end))
    most = max(arguments.people)
    noise, samples = derive_generator(arguments.seed, "audio"), int(arguments.seconds * SAMPLE_RATE)
    audio = [0.05 * noise.standard_normal(samples, dtype=np.float32) for _ in range(most)]
    adapters = [make_adapter(base, person, "self", arguments) for person in range(most)]
    engines = {
        n: BatchEngine(base, EngineSettings(rows=n, frames=10**9, waiting=n), start=False) for n in arguments.people
    }
    timings = time_side_by_side(
        {
            str(n): partial(run_engine, engine, audio[:n], adapters[:n], arguments.tokens)
            for n, engine in engines.items()
        },
        {str(n): arguments.repeats for n in engines},
    )
    seconds = {name: round(timing.median, 3) for name, timing in timings.items()}
    exponent = statistics.linear_regression(
        [float(np.log(int(name))) for name in seconds], [float(np.log(value)) for value in seconds.values()]
    ).slope
    for name, value in seconds.items():
        print(f"{name:>4} people {value:>8.3f} s, {value / int(name):.3f} s each")
    row = BenchmarkRow(
        name="growth_people",
        value=seconds[str(most)],
        unit=f"s for {most} people in a batch",
        ratio=round(exponent, 3),
        target=LINEAR,
        conditions={
            **vars(arguments),
            "seconds_by_people": seconds,
            "threads": torch.get_num_threads(),
            "machine": machine(),
        },
        at_most=True,
    )
    print(f"growth_people: exponent {row.ratio} (at most {row.target:g}: {'met' if row.met else 'MISSED'})")
    if not arguments.smoke:
        write_row(row)
    return 0 if row.met or arguments.smoke else 1


if __name__ == "__main__":
    sys.exit(main())
