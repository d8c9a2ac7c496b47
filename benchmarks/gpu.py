"""A GPU, and a processor with AMX tiles: each step in float32 and in bf16, beside the stock recipe's step.

    python -m benchmarks.gpu                              # about 3 minutes on a GPU
    taskset -c 0,1 python -m benchmarks.gpu --compute cpu --threads 2   # the processor's rows
    python -m benchmarks.gpu --smoke

Needs torch, transformers, peft, numpy, soundfile, soxr and jiwer, no Flower; a package that is missing is null in the row. Weights are
random and the audio is noise: neither changes the work. Rows:

- ``local_step``: one step of one device, batch 8 of 1.6 to 3.6 s, gated adapters, AdamW.
- ``alone_2``, ``cohort_6x2``, ``cohort_32x2``: a device-step of batch 2, one by one and in cohorts.
- ``stock_step``: PEFT's LoRA on transformers' model, audio padded to 30 s, batch 8; bf16 is torch's autocast there.
- ``serving``: 16 people with adapters of their own, 3 s each, 16 tokens.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from benchmarks._report import RESULTS, BenchmarkRow, machine, time_side_by_side, write_row
from benchmarks.cohort import TEXT, Bench
from benchmarks.serving import make_adapter, run_engine
from fl.bases.resolve import load_base
from fl.bases.whisper import decoding
from fl.bases.whisper.base import WhisperBase
from fl.core.compute import BF16, CUDA, DTYPES, FLOAT32, autocast, choose_device
from fl.core.rng import derive_generator
from fl.serving.engine.engine import BatchEngine, EngineSettings
from fl.speech.audio import SAMPLE_RATE

LOCAL_TARGET, COHORT_TARGET = 0.40, 0.33  # of the time in float32; a cohort's against one by one
COHORTS = (6, 32)


def finished(step: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """``step``, which has ended when it returns: a GPU works on behind the call."""

    def run() -> None:
        step()
        if device.type == CUDA:
            torch.cuda.synchronize(device)

    return run


def stock_step(base: WhisperBase, precision: str, batch_size: int) -> Callable[[], None]:
    """A step of the stock recipe: ordinary LoRA, transformers' own forward pass on 30 s windows."""
    device = base.model.device
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"])
    model = get_peft_model(base.new_model(), config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    audio = 0.05 * np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE).astype(np.float32)
    batch = base.collate([base.features(audio, "full")] * batch_size, [TEXT] * batch_size, "full", "ko").to(device)

    def step() -> None:
        with autocast(device, precision):
            loss = model(input_features=batch.features, labels=batch.labels, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def serving(base: WhisperBase, arguments: argparse.Namespace) -> Callable[[], object]:
    """Everybody asks at once."""
    asked = argparse.Namespace(rank=8, seed=arguments.seed, language="ko")
    adapters = [make_adapter(base, person, "self", asked) for person in range(arguments.people)]
    noise = derive_generator(arguments.seed, "audio")
    audio = [0.05 * noise.standard_normal(3 * SAMPLE_RATE, dtype=np.float32) for _ in adapters]
    engine = BatchEngine(base, EngineSettings(rows=arguments.people), start=False)
    return lambda: run_engine(engine, audio, adapters, arguments.tokens)


def cohort(base: WhisperBase, arguments: argparse.Namespace, devices: int, batch_size: int) -> Bench:
    """``devices`` devices that take a step of ``batch_size``."""
    return Bench(
        argparse.Namespace(base=arguments.base, devices=devices, steps=1, seed=arguments.seed), batch_size, base
    )


def measure(base: WhisperBase, precision: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each row; of cohorts, of one device's step."""
    device = base.model.device
    narrow = base.to(DTYPES[precision])
    sizes = COHORTS if device.type == CUDA else COHORTS[:1]
    local, several = cohort(narrow, arguments, 1, 8), {n: cohort(narrow, arguments, n, 2) for n in sizes}
    steps: dict[str, Callable[[], object]] = {
        "local_step": local.one_by_one,
        "alone_2": several[COHORTS[0]].one_by_one,
        **{f"cohort_{n}x2": bench.together for n, bench in several.items()},
        "stock_step": stock_step(base, precision, 8),
        "serving": serving(narrow, arguments),
    }
    found = time_side_by_side(
        {name: finished(step, device) for name, step in steps.items()}, dict.fromkeys(steps, arguments.repeats)
    )
    share = {"alone_2": COHORTS[0], **{f"cohort_{n}x2": n for n in sizes}}
    return {name: round(timing.median / share.get(name, 1), 5) for name, timing in found.items()}


def rows_of(
    name: str, seconds: Mapping[str, Mapping[str, float]], conditions: Mapping[str, object]
) -> list[BenchmarkRow]:
    """The two figures of a machine, with all that was measured in the first one's conditions."""
    wide, narrow = seconds[FLOAT32], seconds[BF16]
    local = round(narrow["local_step"] / wide["local_step"], 3)
    cohort = round(narrow["cohort_6x2"] / wide["alone_2"], 3)
    ratios = {
        "bf16_of_float32": {n: round(narrow[n] / wide[n], 3) for n in narrow},
        "cohort_float32_of_alone_float32": round(wide["cohort_6x2"] / wide["alone_2"], 3),
    }
    unit, said = "of float32's time", {"seconds": seconds, **ratios, **conditions}
    return [
        BenchmarkRow(f"{name}_local_step", local, unit, local, LOCAL_TARGET, said, at_most=True),
        BenchmarkRow(f"{name}_cohort", cohort, unit, cohort, COHORT_TARGET, {"machine": said["machine"]}, at_most=True),
    ]


def measure_rows(arguments: argparse.Namespace) -> list[BenchmarkRow]:
    """The rows of a machine: what it does in both precisions."""
    decoding.MIN_REPEATS = 10**9  # no guard against loops: as many tokens each time
    device = choose_device(arguments.compute)
    base = load_base(arguments.base).to(device)
    seconds = {precision: measure(base, precision, arguments) for precision in (FLOAT32, BF16)}
    names = [torch.cuda.get_device_name(device)] if device.type == CUDA else []
    conditions = {**vars(arguments), "gpu": names, "machine": machine()}
    return rows_of("gpu" if device.type == CUDA else "tiles", seconds, conditions)


def main() -> int:
    """Measure, write ``benchmarks/results/gpu_*.json`` or ``tiles_*.json`` (not with ``--smoke``)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="random:whisper-base")
    parser.add_argument("--compute", default="auto", help="auto, cuda or cpu")
    parser.add_argument("--people", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: seconds, no figure")
    arguments = parser.parse_args()
    if arguments.smoke:
        vars(arguments).update({"base": "random:whisper-nano", "people": 2, "tokens": 2, "repeats": 1})
    torch.set_num_threads(arguments.threads)
    rows = measure_rows(arguments)
    for name, value in rows[0].conditions.items():
        print(f"{name}: {value}")
    print(
        "not written: smoke" if arguments.smoke else f"written to {', '.join(str(write_row(r, RESULTS)) for r in rows)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
