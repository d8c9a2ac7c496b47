"""What a private phase costs: a person's part trained in a cohort on the shared adapter, against the same one person at a time.

    python -m benchmarks.private_phase [--smoke]

Each person has a few sentences of noise with the lengths of the default population and trains one part for some steps of batch 2.
Sides take turns: one by one (:func:`clients.training.single.train_locally`), a cohort, and the cohort without what it computes once
for the phase (:meth:`fl.tasks.task.Task.precomputed`), which is what it did before. One row for each part: seconds of processor time
for a person in the cohort, and the ratio of one by one to that.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from benchmarks._report import BenchmarkRow, machine, spread, write_row
from clients.training.cohort import Member, train_cohort
from clients.training.single import train_locally
from clients.worker import Worker
from fl.adapters.split import make_split
from fl.adapters.stacked import Slot
from fl.adapters.state import load_state
from fl.algorithms.plan import LocalPlan
from fl.core.rng import derive_generator
from fl.data.manifest import Utterance, write_manifest
from fl.settings.config import make_config
from fl.speech.audio import SAMPLE_RATE
from fl.tasks.task import Task

PARTS = {  # name: gate, split, rate of factors
    "gates": ("self", "gates", 0.0),
    "gates_of_the_decoder": ("self", "layers:decoder.*_gate", 0.0),
    "b": ("none", "layers:_B$", 4e-4),
    "b_of_the_decoder": ("none", "layers:decoder.*_B$", 4e-4),
}
TARGET = 1.0  # a cohort is no slower than one by one
TEXT = "내일 meeting 전에 presentation 파일 보내 줄 수 있어요"
SECONDS = (1.6, 3.6)  # of the default population's utterances
BUDGET = 2 * 2**30


def manifest(folder: Path, arguments: argparse.Namespace) -> Path:
    """The recordings of everybody, as a manifest."""
    noise = derive_generator(arguments.seed, "speech")
    utterances = []
    for person in range(arguments.people):
        for i in range(arguments.sentences):
            audio = (0.05 * noise.standard_normal(int(noise.uniform(*SECONDS) * SAMPLE_RATE))).astype(np.float32)
            path = folder / f"{person}-{i}.wav"
            soundfile.write(path, audio, SAMPLE_RATE)
            utterances.append(
                Utterance(
                    f"{person}-{i}", path, f"{TEXT} {i}", f"person {person}", split="train" if i else "test", lang="ko"
                )
            )
    write_manifest(folder / "manifest.jsonl", utterances)
    return folder / "manifest.jsonl"


class Plain:
    """A task without what it can compute once."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def precomputed(self, model: object, examples: Any, trained: object) -> Any:
        """The examples as they are."""
        return examples


def measure(worker: Worker, name: str, arguments: argparse.Namespace) -> BenchmarkRow:
    """The row of one part."""
    gate, preset, rate = PARTS[name]
    initial = worker.initial(gate)
    generator = torch.Generator().manual_seed(arguments.seed)
    start = {n: t + 0.01 * torch.randn(t.shape, generator=generator) for n, t in initial.items() if "gate" not in n}
    start = {**initial, **start}
    split, config = make_split(preset, initial), worker.config
    plan = LocalPlan(0, 2, rate, 3e-3, private_steps=arguments.steps)
    slot = Slot(config.adapter.rank, config.adapter.alpha / config.adapter.rank, gate)
    ids = [d for d in worker.task.device_ids() if worker.task.device(d).train]
    members = [Member(d, slot, start, worker.task.device(d).train, plan, seed) for seed, d in enumerate(ids)]

    def one_by_one() -> None:
        for member in members:
            active = worker.active(gate)
            load_state(worker.adapted, member.state, worker.slot(gate))
            train_locally(
                worker.adapted, active.parameters, split, worker.task, member.examples, plan, seed=member.seed
            )

    def cohort(task: Any) -> Callable[[], None]:
        def train() -> None:
            for one in train_cohort(worker.host, task, split, members, budget=BUDGET):
                if isinstance(one, Exception):
                    raise one

        return train

    sides = {
        "one_by_one": one_by_one,
        "encoded_in_each_step": cohort(Plain(worker.task)),
        "cohort": cohort(worker.task),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    wall: dict[str, list[float]] = {side: [] for side in sides}
    for train in sides.values():  # what a process does once
        train()
    for _ in range(arguments.repeats):
        for side, train in sides.items():
            began, processor = time.perf_counter(), time.process_time()
            train()
            seconds[side].append((time.process_time() - processor) / len(members))
            wall[side].append((time.perf_counter() - began) / len(members))
    ratios = {side: [s / c for s, c in zip(seconds[side], seconds["cohort"], strict=True)] for side in sides}
    return BenchmarkRow(
        f"private_phase_{name}",
        round(statistics.median(seconds["cohort"]), 3),
        "seconds of processor time a person",
        round(statistics.median(ratios["one_by_one"]), 3),
        TARGET,
        {
            **vars(arguments),
            "seconds": {side: round(statistics.median(found), 3) for side, found in seconds.items()},
            "seconds_wall": {side: round(statistics.median(found), 3) for side, found in wall.items()},
            "without_what_is_computed_once": round(statistics.median(ratios["encoded_in_each_step"]), 3),
            "spread": spread(ratios["one_by_one"]),
            "machine": machine(),
        },
    )


def main() -> int:
    """Measure, write the rows (not with ``--smoke``); 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="whisper-base")
    parser.add_argument("--people", type=int, default=6)
    parser.add_argument("--sentences", type=int, default=6, help="of which one is for testing")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: seconds, no figure")
    arguments = parser.parse_args()
    if arguments.smoke:
        vars(arguments).update({"base": "random:whisper-nano", "people": 2, "sentences": 3, "steps": 2, "repeats": 1})
    torch.set_num_threads(arguments.threads)
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        settings = {"base": arguments.base, "manifest": str(manifest(Path(folder), arguments)), "language": "ko"}
        worker = Worker(make_config({**settings, "new-people": 0, "output": folder}), Path(folder) / "devices")
        for name in arguments.parts.split(","):
            row = measure(worker, name, arguments)
            missed = missed or not row.met
            where = "not written: smoke" if arguments.smoke else f"written to {write_row(row)}"
            print(
                f"{row.name}: {row.value} s a person, {row.conditions['seconds']}, ratio {row.ratio}, {where}",
                flush=True,
            )
    return 1 if missed and not arguments.smoke else 0


if __name__ == "__main__":
    sys.exit(main())
