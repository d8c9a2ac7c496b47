"""Whether ``torch.compile`` pays for its start in local training: seconds until it runs, and of a step.

    python -m benchmarks.compiled [--smoke]

Every layer of encoder and decoder is compiled in place, adapters inside, with dynamic shapes: the six layers of a stack share their code,
and batches of speech have ever new lengths. Both sides train on the same batches of 1.6 to 3.6 s, one after the other, in one process.
The start is what the first pass over all batches takes beyond an uncompiled one; it is measured with an empty cache of compiled code, and
again in a second process that finds the first one's. The figure is how many times as fast all local steps of an arm of the default run
are on one worker, start with an empty cache included. Needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peft import get_peft_model

from benchmarks._report import BenchmarkRow, machine, time_side_by_side, write_row
from benchmarks.cohort import SECONDS, TEXT
from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.bases.resolve import load_base
from fl.bases.whisper.base import WhisperBase
from fl.bases.whisper.forward import unwrap
from fl.core.rng import derive_generator
from fl.settings.config import RunConfig
from fl.settings.names import SITES
from fl.speech.audio import SAMPLE_RATE

TARGET = 1.0  # it costs no time
WORKERS = 2


def make_pass(base: WhisperBase, arguments: argparse.Namespace, *, compiled: bool) -> Callable[[], None]:
    """A training step on each of the batches."""
    targets = target_pattern([site for site in SITES if site != "ffn"])
    model = get_peft_model(base.new_model(), GatedLoraConfig(r=8, gate="none", target_modules=targets, init_seed=0))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    if compiled:
        inner = unwrap(model).model
        for layer in (*inner.encoder.layers, *inner.decoder.layers):
            layer.compile(dynamic=True)
    noise = derive_generator(arguments.seed, "speech")
    batches = []
    for _ in range(arguments.batches):
        rows = []
        for _ in range(arguments.batch_size):
            samples = int(noise.uniform(*SECONDS) * SAMPLE_RATE)
            rows.append(base.features(0.05 * noise.standard_normal(samples, dtype=np.float32)))
        batches.append(base.collate(rows, [TEXT] * len(rows), "trimmed", "ko"))

    def train() -> None:
        for batch in batches:
            optimizer.zero_grad(set_to_none=True)
            base.loss(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return train


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """In this process: the start in wall and processor seconds (compilers included), and seconds of a step on both sides."""
    torch.set_num_threads(arguments.threads)
    base = load_base(arguments.base)
    plain, compiled = (make_pass(base, arguments, compiled=one) for one in (False, True))
    plain()
    before, used = time.perf_counter(), sum(os.times()[:4])
    compiled()
    first, first_used = time.perf_counter() - before, sum(os.times()[:4]) - used
    found = time_side_by_side(
        {"plain": plain, "compiled": compiled}, {"plain": arguments.repeats, "compiled": arguments.repeats}, warm_up=0
    )
    return {
        "start": round(first - found["plain"].median, 2),
        "start_processor": round(first_used - found["plain"].median * arguments.threads, 2),
        **{side: round(timing.median / arguments.batches, 4) for side, timing in found.items()},
    }


def in_a_process(cache: str) -> dict[str, float]:
    """:func:`measure` in a new process with its compiled code under ``cache``."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    command = [sys.executable, "-m", "benchmarks.compiled", *sys.argv[1:], "--here"]
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return found


def main() -> int:
    """Measure, write ``benchmarks/results/compiled.json`` (not with ``--smoke``); 1 where it does not pay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="whisper-base")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--batches", type=int, default=6, help="of different lengths, in each pass")
    parser.add_argument("--threads", type=int, default=1, help="as a worker has")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: a minute, no figure")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.smoke:
        vars(arguments).update({"base": "random:whisper-nano", "batches": 3, "repeats": 1})
    if arguments.here:
        print(json.dumps(measure(arguments)))
        return 0
    with tempfile.TemporaryDirectory() as cache:
        empty, filled = in_a_process(cache), in_a_process(cache)
    run = RunConfig()
    steps = run.data.devices * run.federation.rounds * run.train.local_steps // WORKERS
    plain, compiled = steps * empty["plain"], empty["start"] + steps * empty["compiled"]
    gain = empty["plain"] - empty["compiled"]
    conditions: dict[str, Any] = {
        **{name: value for name, value in vars(arguments).items() if name != "here"},
        "empty_cache": empty,
        "filled_cache": filled,
        "steps_of_an_arm": steps,
        "steps_until_it_pays": round(empty["start"] / gain) if gain > 0 else None,
        "machine": machine(),
    }
    row = BenchmarkRow(
        "compiled",
        round(empty["compiled"] / empty["plain"], 3),
        "of an uncompiled step's time",
        round(plain / compiled, 3),
        TARGET,
        conditions,
    )
    print(f"empty cache {empty}, filled {filled}; over {steps} steps {row.ratio} times as fast")
    print("not written: smoke" if arguments.smoke else f"written to {write_row(row)}")
    return 0 if row.met or arguments.smoke else 1


if __name__ == "__main__":
    sys.exit(main())
