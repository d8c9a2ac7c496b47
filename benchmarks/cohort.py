"""A cohort in one computation against the same trimmed steps driven one device at a time, and both against the machine.

    python -m benchmarks.cohort [--smoke]

Both sides train the same devices from the same adapters on the same utterances with the same seeds: the plain loop with PEFT
modules (:func:`clients.training.single.train_locally`), the cohort with stacked adapters (:func:`clients.training.cohort.train_cohort`).
They take turns, and the largest relative difference of what they learned is in the row. Utterances have lengths as in the default
population; their content does not change the work, so the audio is noise.

``matrix_share`` is the rate of floating-point operations of a cohort's step (counted by torch for the forward and backward
pass) over the rate of a large float32 matrix product on the same threads, measured beside it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._report import BenchmarkRow, conclude, machine, matrix_rate, spread, time_side_by_side
from benchmarks.table import target_here
from clients.training.cohort import Member, train_cohort
from clients.training.single import train_locally
from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.layer import fresh_adapter
from fl.adapters.split import make_split
from fl.adapters.stacked import Slot, StackedModel
from fl.adapters.state import adapter_parameters, adapter_state, load_state
from fl.algorithms.plan import LocalPlan
from fl.bases.resolve import load_base
from fl.bases.whisper.base import WhisperBase
from fl.core.rng import derive_generator, derive_seed
from fl.settings.names import SITES
from fl.speech.audio import SAMPLE_RATE
from fl.tasks.task import Example

TARGETS = {8: 1.1, 1: 1.8}
TEXT = "내일 meeting 전에 presentation 파일 보내 줄 수 있어요"
SECONDS = (1.6, 3.6)  # of the default population's utterances
BUDGET = 4 * 2**30


@dataclass
class Speech:
    """The part of a speech task that training needs, on noise."""

    base: WhisperBase
    language: str

    def _sums(self, model: nn.Module, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        batch = self.base.collate([e.inputs for e in examples], [e.target for e in examples], "trimmed", self.language)
        return self.base.row_losses(model, batch.to(self.base.model.device))

    def losses(self, model: nn.Module, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Each example's summed loss and number of labels."""
        return self._sums(model, examples)

    def loss(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        """Mean loss of a batch."""
        sums, labels = self._sums(model, examples)
        return sums.sum() / labels.sum()

    def precomputed(self, model: nn.Module, examples: Sequence[Example], trained: Collection[str]) -> Sequence[Example]:
        """The examples as they are: something trains in the encoder."""
        return examples

    def training_bytes(self, example: Example) -> int:
        """Bytes of activations in a training step."""
        return self.base.training_bytes(example.size, example.target)


class Bench:
    """The same devices for both sides."""

    def __init__(self, arguments: argparse.Namespace, batch_size: int, base: WhisperBase | None = None) -> None:
        self.arguments = arguments
        self.base = base or load_base(arguments.base)
        self.task = Speech(self.base, "ko")
        targets = target_pattern([s for s in SITES if s != "ffn"])
        config = GatedLoraConfig(r=8, lora_alpha=16.0, gate="self", target_modules=targets, init_seed=arguments.seed)
        state = fresh_adapter(self.base.model, config)
        self.split = make_split("gates", state)
        self.plan = LocalPlan(arguments.steps, batch_size, learning_rate=1e-3, private_learning_rate=1e-2)
        self.members = [
            Member(
                f"device-{i}", Slot.of(config), state, self._examples(i, batch_size), self.plan, derive_seed(i, "plan")
            )
            for i in range(arguments.devices)
        ]
        self.alone: PeftModel = get_peft_model(self.base.new_model(), config)
        self.alone.eval()
        self.host = StackedModel(self.base.new_model(), targets)

    def _examples(self, device: int, batch_size: int) -> list[Example]:
        noise = derive_generator(self.arguments.seed, "speech", device)
        examples = []
        for i in range(4 * batch_size):
            audio = 0.05 * noise.standard_normal(int(noise.uniform(*SECONDS) * SAMPLE_RATE)).astype(np.float32)
            features = self.base.features(audio)
            examples.append(Example(f"{device}-{i}", features, TEXT, int(features.shape[1]), {}))
        return examples

    def one_by_one(self) -> list[dict[str, Tensor]]:
        """Each device by the single-device trainer."""
        learned = []
        for member in self.members:
            load_state(self.alone, member.state)
            train_locally(
                self.alone, adapter_parameters(self.alone), self.split, self.task, member.examples, self.plan,  # type: ignore[arg-type]
                seed=member.seed,
            )  # fmt: skip
            learned.append(adapter_state(self.alone))
        return learned

    def together(self) -> list[dict[str, Tensor]]:
        """All devices in one computation."""
        trained = train_cohort(self.host, self.task, self.split, self.members, budget=BUDGET)  # type: ignore[arg-type]
        return [one.state for one in trained if not isinstance(one, Exception)]

    def difference(self) -> float:
        """The largest distance between what the two sides learn, relative to how far training moves an adapter."""
        worst = 0.0
        for alone, together, member in zip(self.one_by_one(), self.together(), self.members, strict=True):
            moved, apart = (
                torch.cat([(alone[n] - other[n]).flatten() for n in alone]).norm() for other in (member.state, together)
            )
            worst = max(worst, float(apart / moved))
        return worst

    def operations(self) -> int:
        """Floating-point operations of one run of the cohort."""
        with FlopCounterMode(display=False) as counter:
            self.together()
        return int(counter.get_total_flops())


def measure(arguments: argparse.Namespace, batch_size: int) -> list[BenchmarkRow]:
    """The rows of one local batch size."""
    bench = Bench(arguments, batch_size)
    difference, operations = bench.difference(), bench.operations()
    rates = [matrix_rate(arguments.threads)]
    timings = time_side_by_side(
        {"one by one": bench.one_by_one, "together": bench.together},
        {"one by one": arguments.repeats, "together": arguments.repeats},
        warm_up=0,
    )
    rates.append(matrix_rate(arguments.threads))
    device_steps = arguments.devices * arguments.steps
    together, alone = timings["together"], timings["one by one"]
    conditions = {
        **vars(arguments),
        "batch_size": batch_size,
        "one_by_one": alone.describe(),
        "together": together.describe(),
        "relative_difference_of_adapters": difference,
        "machine": machine(),
    }
    rows = [
        BenchmarkRow(
            f"cohort_batch_{batch_size}",
            round(device_steps / together.median, 3),
            "device-steps a second",
            round(alone.median / together.median, 3),
            TARGETS[batch_size],
            {**conditions, "spread": spread([a / t for a, t in zip(alone.seconds, together.seconds, strict=True)])},
        )
    ]
    if batch_size == max(TARGETS):
        share = [operations / seconds / 1e9 / statistics.mean(rates) for seconds in together.seconds]
        rate = round(operations / together.median / 1e9, 1)
        details = {**conditions, "matrix_rate_gflops": [round(r, 1) for r in rates], "operations": operations}
        rows.append(
            BenchmarkRow("matrix_share", rate, "GFLOP/s", round(statistics.median(share), 3), target_here("matrix_share"),
                {**details, "spread": spread(share)})
        )  # fmt: skip
    return rows


def main() -> int:
    """Measure, write the rows (not with ``--smoke``); 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="whisper-base")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: seconds, no figure")
    arguments = parser.parse_args()
    if arguments.smoke:
        vars(arguments).update({"base": "random:whisper-nano", "devices": 2, "steps": 1, "repeats": 1})
    torch.set_num_threads(arguments.threads)
    return conclude((row for size in TARGETS for row in measure(arguments, size)), arguments.smoke)


if __name__ == "__main__":
    sys.exit(main())
