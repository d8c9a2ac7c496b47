"""Memory and time of one training step for the published architectures, with random weights: what a machine must have for them.

    python -m benchmarks.architectures [--names whisper-small,wav2vec2-large] [--write docs/bases.md] [--smoke]

Each architecture is trained with a Gated LoRA and with all of its weights, each in a process of its own, so that the peak of
one is not that of another. Weights decide neither shapes nor work, and the audio is noise. A step is what a device does: forward,
backward, AdamW, nothing of it cached.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._report import machine
from fl.adapters.config import target_pattern
from fl.bases.base import SpeechBase
from fl.bases.resolve import load_speech_base
from fl.core.machine import available_cores
from fl.core.rng import derive_generator
from fl.methods.base import Recipe
from fl.methods.recipes import attach
from fl.speech.audio import SAMPLE_RATE
from sim.section import write_section

NAMES = ("whisper-tiny", "whisper-base", "whisper-small", "wav2vec2-base", "wav2vec2-large")
SMALL = ("whisper-nano", "wav2vec2-nano")
METHODS = ("gated-lora", "full")
TEXT = "내일 meeting 전에 파일 보내 줘요"
START, END = "<!-- architectures: made by benchmarks/architectures.py -->", "<!-- end of architectures -->"
MEBI = 2**20
HEADS = (
    "architecture",
    "trained",
    "parameters",
    "a step, s",
    "forward alone, s",
    "peak memory, MiB",
    "of it before the step, MiB",
)


def sites_of(base: SpeechBase) -> tuple[str, ...]:
    """All attention; in a recognizer without decoder, which has less of it, the feed-forward maps too."""
    return ("encoder.self", "decoder.self", "decoder.cross") if base.mels else ("encoder.self", "ffn")


def peak() -> int:
    """The most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load, attach, and take steps, in this process."""
    torch.set_num_threads(arguments.threads)
    base = load_speech_base(f"random:{arguments.child}")
    targets = target_pattern(sites_of(base))
    recipe = Recipe(arguments.method, arguments.rank, 2.0 * arguments.rank, "self", targets, arguments.seed)
    attached = attach(base.new_model(), recipe)
    noise = derive_generator(arguments.seed, "audio")
    samples = int(arguments.seconds * SAMPLE_RATE)
    rows = [0.05 * noise.standard_normal(samples, dtype=np.float32) for _ in range(arguments.batch_size)]
    language = "ko" if "ko" in base.languages else None
    batch = base.collate([base.features(row) for row in rows], [TEXT] * len(rows), "trimmed", language)
    optimizer = torch.optim.AdamW(attached.parameters.values(), lr=1e-4)
    before = peak()
    steps, forwards = [], []
    for _ in range(arguments.repeats + 1):  # the first makes the optimizer's state
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        base.loss(attached.model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        steps.append(time.perf_counter() - start)
    most = peak()
    with torch.inference_mode():
        for _ in range(arguments.repeats + 1):
            start = time.perf_counter()
            base.loss(attached.model, batch)
            forwards.append(time.perf_counter() - start)
    return {
        "name": arguments.child,
        "method": arguments.method,
        "parameters": sum(parameter.numel() for parameter in attached.parameters.values()),
        "steps": steps[1:],
        "forwards": forwards[1:],
        "peak": most,
        "before": before,
    }


def in_a_process(name: str, method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """:func:`measure` in a process of its own."""
    passed = [f"--{key.replace('_', '-')}={vars(arguments)[key]}" for key in PASSED]
    command = [sys.executable, "-m", "benchmarks.architectures", f"--child={name}", f"--method={method}", *passed]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def spread(seconds: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def table(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """As Markdown, with the conditions under it."""
    lines = [f"| {' | '.join(HEADS)} |", "| --- | --- |" + " ---: |" * (len(HEADS) - 2)]
    for row in rows:
        cells = (
            f"`{row['name']}`",
            row["method"],
            f"{row['parameters']:,}",
            spread(row["steps"]),
            spread(row["forwards"]),
            f"{row['peak'] / MEBI:,.0f}",
            f"{row['before'] / MEBI:,.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    where = machine()
    versions = ", ".join(f"{name} {version}" for name, version in dict(where["versions"]).items())  # type: ignore[call-overload]
    lines += [
        "",
        f"Batch of {arguments.batch_size}, {arguments.seconds:g} s of noise each, float32, rank {arguments.rank} on all attention "
        f"(and `ffn` of a Wav2Vec2), `self` gates; {arguments.repeats} steps after one to warm up, median and range; peaks are "
        f"resident memory of the whole process, Python and torch with it. {where['processor']}, {arguments.threads} threads, Python "
        f"{where['python']}; {versions}, seed {arguments.seed}.",
    ]
    return "\n".join(lines) + "\n"


PASSED = ("batch_size", "seconds", "rank", "threads", "repeats", "seed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", default=",".join(NAMES), help="architectures, with commas between")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each utterance")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="the page, docs/bases.md")
    parser.add_argument("--smoke", action="store_true", help="the smallest architectures: seconds, no figure")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--method", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments)))
        return
    if arguments.smoke:
        arguments.names, arguments.repeats, arguments.write = ",".join(SMALL), 1, None
    rows = []
    for name in arguments.names.split(","):
        for method in METHODS:
            print(f"{name}, {method} ...", file=sys.stderr)
            rows.append(in_a_process(name, method, arguments))
    text = table(rows, arguments)
    print(text)
    if arguments.write:
        write_section(arguments.write, START, END, text)


if __name__ == "__main__":
    main()
