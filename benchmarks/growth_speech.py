"""A training step and a transcription by the length of speech, 2 to 29 s: seconds, peak memory, and the exponent of their growth.

    python -m benchmarks.growth_speech [--lengths 2,4,8,16,29] [--repeats N] [--smoke]

The step is forward, backward and AdamW of a gated LoRA over a batch of two; its text grows with the speech. A transcription is the
encoder's pass over one utterance and six tokens for each second of it: where a transcript of noise would end is chance, so neither
the token that ends one nor a loop ends it here.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from peft import get_peft_model

from benchmarks._report import BenchmarkRow, exponent, machine, spread, write_row
from benchmarks.table import target_here
from fl.adapters.config import GatedLoraConfig
from fl.bases.base import SpeechBase
from fl.bases.resolve import load_speech_base
from fl.bases.whisper import decoding
from fl.bases.whisper.base import WhisperBase
from fl.core.machine import return_free_memory
from fl.core.rng import derive_generator
from fl.speech.audio import SAMPLE_RATE
from fl.speech.features import Features

TOKENS_A_SECOND = 6
UNITS = {"training": "seconds", "memory": "MiB", "transcription": "seconds"}
TEXT = "내일 meeting 전에 presentation 파일"  # of about three seconds
TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]


def peak_mib(step: Callable[[], object]) -> float:
    """By how much ``step`` raises the peak resident memory of this process above what it had before, in MiB."""
    return_free_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
    before = _status_mib("VmRSS")
    step()
    return _status_mib("VmHWM") - before


def _status_mib(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def noise(base: SpeechBase, seconds: float, rows: int, seed: int) -> list[Features]:
    """Features of ``rows`` utterances of noise."""
    generator = derive_generator(seed, "audio")
    samples = int(seconds * SAMPLE_RATE)
    return [base.features(0.05 * generator.standard_normal(samples, dtype=np.float32)) for _ in range(rows)]


def make_step(base: SpeechBase, seconds: float, arguments: argparse.Namespace) -> Callable[[], object]:
    """A training step."""
    model = get_peft_model(base.new_model(), GatedLoraConfig(target_modules=TARGETS, init_seed=0))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    texts = [" ".join([TEXT] * max(1, round(seconds / 3)))] * 2
    batch = base.collate(noise(base, seconds, 2, arguments.seed), texts, "trimmed", "ko")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        base.loss(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def make_transcription(base: WhisperBase, seconds: float, arguments: argparse.Namespace) -> Callable[[], object]:
    """Transcribes one utterance, to six tokens for each second."""
    batch = base.collate(noise(base, seconds, 1, arguments.seed), None, "trimmed", "ko")
    tokens = int(TOKENS_A_SECOND * seconds)
    endless = replace(base.rules, suppress=(*base.rules.suppress, base.rules.end))

    def transcribe() -> None:
        with patch.object(base, "rules", endless), patch.object(decoding, "loop_length", lambda _: None):
            (found,) = base.transcribe(base.model, batch, max_new_tokens=tokens)
        assert len(found.tokens) == tokens, found

    return transcribe


def timed(step: Callable[[], object]) -> float:
    """Seconds of a step."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def main() -> int:
    """Measure, write ``benchmarks/results/growth_speech_*.json`` (not with ``--smoke``); 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="whisper-base")
    parser.add_argument("--lengths", default="2,4,8,16,29", help="seconds, with commas between")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: seconds, no figure")
    arguments = parser.parse_args()
    if arguments.smoke:
        vars(arguments).update({"base": "random:whisper-nano", "lengths": "2,4", "repeats": 1})
    torch.set_num_threads(arguments.threads)
    base = load_speech_base(arguments.base)
    assert isinstance(base, WhisperBase), "where a transcript ends is a matter of a decoder"
    lengths = [float(length) for length in arguments.lengths.split(",")]
    steps = {length: make_step(base, length, arguments) for length in lengths}
    transcriptions = {length: make_transcription(base, length, arguments) for length in lengths}
    found: dict[str, dict[float, list[float]]] = {name: {length: [] for length in lengths} for name in UNITS}
    for warm_up in (steps, transcriptions):
        for one in warm_up.values():
            one()
    for length in lengths:
        found["memory"][length].append(peak_mib(steps[length]))
    for _ in range(arguments.repeats):  # taking turns, so that a busy moment of the machine meets all lengths
        for length in lengths:
            found["training"][length].append(timed(steps[length]))
            found["transcription"][length].append(timed(transcriptions[length]))
    met = True
    for name, by_length in found.items():
        medians = {length: statistics.median(values) for length, values in by_length.items()}
        row = BenchmarkRow(
            f"growth_speech_{name}",
            round(medians[lengths[-1]], 3),
            f"{UNITS[name]} at {lengths[-1]:g} s",
            exponent(medians),
            target_here(f"growth_speech_{name}"),
            {
                **vars(arguments),
                "by_seconds": {f"{length:g}": spread(values) for length, values in by_length.items()},
                "machine": machine(),
            },
            at_most=True,
        )
        met &= row.met
        if not arguments.smoke:
            write_row(row)
        table = ", ".join(f"{length:g} s {median:.3g}" for length, median in medians.items())
        print(f"{row.name}: {table} {UNITS[name]}; exponent {row.ratio} (at most {row.target:g})")
    return 0 if met or arguments.smoke else 1


if __name__ == "__main__":
    sys.exit(main())
