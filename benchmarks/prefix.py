"""One local training step with adapters in the decoder only and cached encoder states, against adapters everywhere.

    python -m benchmarks.prefix [--repeats N] [--smoke]

Both sides train a Gated LoRA of the same rank and gate on the same utterances: forward, backward, AdamW. On one side adapters
sit at ``encoder.self,decoder.self,decoder.cross``; on the other at ``decoder.self,decoder.cross``, where the
encoder's states come from the disk (read, checked and padded in every step, as in a run whose cache is warm). A third
figure, the decoder's adapters without the cache, says what of the difference is the cache's. The content does not change
the work, so the audio is noise.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from peft import get_peft_model

from benchmarks._report import BenchmarkRow, machine, time_side_by_side, write_row
from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.bases.resolve import load_base
from fl.bases.whisper.base import WhisperBase
from fl.core.rng import derive_generator, derive_seed
from fl.speech.audio import SAMPLE_RATE
from fl.speech.features import Features
from fl.speech.prefix import PrefixCache, frozen_layers

TARGET_RATIO = 3.0
TEXT = "내일 meeting 전에 presentation 파일 보내 줄 수 있어요"
EVERYWHERE = ("encoder.self", "decoder.self", "decoder.cross")
DECODER = ("decoder.self", "decoder.cross")


def make_features(base: WhisperBase, arguments: argparse.Namespace) -> list[Features]:
    """A batch of noise, as the feature cache would return it."""
    noise = derive_generator(arguments.seed, "audio")
    samples = int(arguments.seconds * SAMPLE_RATE)
    rows = (0.05 * noise.standard_normal(samples, dtype=np.float32) for _ in range(arguments.batch_size))
    return [base.features(row) for row in rows]


def make_step(
    base: WhisperBase, sites: Sequence[str], cache: PrefixCache | None, arguments: argparse.Namespace
) -> Callable[[], float]:
    """A training step with adapters at ``sites``; with a ``cache`` it takes the encoder's states from there."""
    config = GatedLoraConfig(
        r=arguments.rank,
        gate=arguments.gate,
        target_modules=target_pattern(sites),
        init_seed=derive_seed(arguments.seed, "adapters"),
    )
    model = get_peft_model(base.new_model(), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    features = make_features(base, arguments)
    language = "ko" if "ko" in base.languages else None
    layers = frozen_layers(base, config.target_modules or [])

    def step() -> float:
        batch = base.collate(features, [TEXT] * len(features), "trimmed", language)
        if cache is not None:
            batch = base.with_prefix(batch, [cache.states(base, row, layers) for row in features], layers)
        optimizer.zero_grad(set_to_none=True)
        loss = base.loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    return step


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="whisper-base")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each utterance")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--gate", default="self")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7, help="measured steps of each, after one to warm up")
    parser.add_argument("--smoke", action="store_true", help="sizes that only show that it runs; nothing is written")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.base, arguments.batch_size, arguments.repeats = "random:whisper-nano", 2, 2
    return arguments


def main() -> int:
    """Measure, write ``benchmarks/results/prefix.json``; 1 where the target is missed."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    base = load_base(arguments.base)
    with tempfile.TemporaryDirectory() as folder:
        cache = PrefixCache(Path(folder))
        timings = time_side_by_side(
            {
                "everywhere": make_step(base, EVERYWHERE, None, arguments),
                "decoder": make_step(base, DECODER, None, arguments),
                "decoder_cached": make_step(base, DECODER, cache, arguments),
            },
            dict.fromkeys(("everywhere", "decoder", "decoder_cached"), arguments.repeats),
        )
    row = BenchmarkRow(
        name="prefix",
        value=round(timings["decoder_cached"].median, 4),
        unit="seconds a step, adapters in the decoder, cached states",
        ratio=round(timings["everywhere"].median / timings["decoder_cached"].median, 2),
        target=TARGET_RATIO,
        conditions={
            **vars(arguments),
            **{name: timing.describe() for name, timing in timings.items()},
            "machine": machine(),
        },
    )
    for name, timing in timings.items():
        print(f"{name:>15}: {timing.median:7.3f} s a step ({min(timing.seconds):.3f} to {max(timing.seconds):.3f})")
    where = "not written" if arguments.smoke else f"written to {write_row(row)}"
    print(f"          ratio: {row.ratio:.1f} (target {row.target:.0f}: {'met' if row.met else 'MISSED'}), {where}")
    return 0 if row.met else 1


if __name__ == "__main__":
    sys.exit(main())
