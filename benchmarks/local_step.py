"""One local training step, audio at its own length against audio padded to Whisper's 30 s.

    python -m benchmarks.local_step

Both sides run the same code on the same utterances, model and adapters (LoRA on q, k, v and out everywhere): forward,
backward, AdamW. Only the window differs. The content does not change the work, so the audio is noise.
"""

import argparse
import sys
from collections.abc import Callable

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from benchmarks._report import BenchmarkRow, machine, spread, time_side_by_side, write_row
from fl.bases.resolve import load_base
from fl.bases.whisper.base import WhisperBase
from fl.core.rng import derive_generator, derive_seed
from fl.speech.audio import SAMPLE_RATE
from fl.speech.features import Window

TARGET_RATIO = 8.0
TEXT = "내일 meeting 전에 presentation 파일 보내 줄 수 있어요"


def make_step(base: WhisperBase, window: Window, arguments: argparse.Namespace) -> Callable[[], float]:
    """A training step on one fixed batch; features are extracted beforehand, as in a run with a warm cache."""
    torch.manual_seed(derive_seed(arguments.seed, "adapters"))
    config = LoraConfig(r=arguments.rank, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"])
    model = get_peft_model(base.new_model(), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    noise = derive_generator(arguments.seed, "audio")
    samples = int(arguments.seconds * SAMPLE_RATE)
    audio = [0.05 * noise.standard_normal(samples, dtype=np.float32) for _ in range(arguments.batch_size)]
    features = [base.features(row, window) for row in audio]
    language = "ko" if "ko" in base.languages else None
    batch = base.collate(features, [TEXT] * arguments.batch_size, window, language)

    def step() -> float:
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
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9, help="measured trimmed steps, after one to warm up")
    parser.add_argument("--padded-repeats", type=int, default=3, help="measured padded steps, after one to warm up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: seconds, no figure")
    return parser.parse_args()


def main() -> int:
    """Measure, write ``benchmarks/results/local_step.json`` (not with ``--smoke``); 1 where the target is missed."""
    arguments = parse_arguments()
    if arguments.smoke:
        vars(arguments).update({"batch_size": 1, "repeats": 1, "padded_repeats": 1})
    torch.set_num_threads(arguments.threads)
    base = load_base(arguments.base)
    windows: tuple[Window, ...] = ("trimmed", "full")
    timings = time_side_by_side(
        {window: make_step(base, window, arguments) for window in windows},
        {"trimmed": arguments.repeats, "full": arguments.padded_repeats},
    )
    row = BenchmarkRow(
        name="local_step",
        value=round(timings["trimmed"].median, 4),
        unit="seconds a step, trimmed",
        ratio=round(timings["full"].median / timings["trimmed"].median, 2),
        target=TARGET_RATIO,
        conditions={
            **vars(arguments),
            "spread": spread([timings["full"].median / seconds for seconds in timings["trimmed"].seconds]),
            "trimmed": timings["trimmed"].describe(),
            "padded_to_30_s": timings["full"].describe(),
            "machine": machine(),
        },
    )
    written = "not written: smoke" if arguments.smoke else f"written to {write_row(row)}"
    for window, timing in timings.items():
        print(f"{window:>8}: {timing.median:7.3f} s a step ({min(timing.seconds):.3f} to {max(timing.seconds):.3f})")
    print(f"   ratio: {row.ratio:.1f} (target {row.target:.0f}: {'met' if row.met else 'MISSED'}), {written}")
    return 0 if row.met or arguments.smoke else 1


if __name__ == "__main__":
    sys.exit(main())
