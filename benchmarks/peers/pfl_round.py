"""The same trimmed local step inside pfl-research's simulator, one user after the other, beside our cohort and our plain loop.

    build/pfl/bin/python -m benchmarks.peers.pfl_round [--smoke]      (environment: requirements-pfl.txt beside this file)

pfl (Apple, github.com/apple/pfl-research) is the fastest simulator of federated learning that is published: it keeps one
model, trains users in the same process and sums their differences. Here its ``SimulatedBackend`` and
``FederatedAveraging`` drive a module whose trainable parameters are the adapter and whose loss is ours: Whisper at the
utterance's own length, no padding to 30 s. Users, batches, steps, AdamW, clipping and initial adapter are ours, and after the
first round all three must hold the same shared tensors, which is checked. They take turns, round by round. Then pfl, and cohorts
after it, run alone in as many processes as there are cores (:mod:`benchmarks.peers.pfl_workers`), for what each can do at its best.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from peft import PeftModel, get_peft_model
from pfl.aggregate.simulate import SimulatedBackend  # type: ignore[import-not-found]
from pfl.aggregate.weighting import WeightByDatapoints  # type: ignore[import-not-found]
from pfl.algorithm.base import NNAlgorithmParams  # type: ignore[import-not-found]
from pfl.algorithm.federated_averaging import FederatedAveraging  # type: ignore[import-not-found]
from pfl.data.dataset import Dataset as PflDataset  # type: ignore[import-not-found]
from pfl.data.federated_dataset import FederatedDataset  # type: ignore[import-not-found]
from pfl.data.sampling import MinimizeReuseUserSampler  # type: ignore[import-not-found]
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams  # type: ignore[import-not-found]
from pfl.metrics import Weighted  # type: ignore[import-not-found]
from pfl.model.pytorch import PyTorchModel  # type: ignore[import-not-found]
from torch import Tensor, nn

from benchmarks._report import BenchmarkRow, machine, spread, write_row
from benchmarks.peers.pfl_workers import run_processes
from benchmarks.table import target_here
from clients.training.cohort import Member, train_cohort
from clients.training.single import step_batches, train_locally
from fl.adapters.config import GatedLoraConfig
from fl.adapters.split import make_split
from fl.adapters.stacked import Slot, StackedModel
from fl.adapters.state import adapter_parameters, adapter_state, load_state
from fl.algorithms.plan import LocalPlan
from fl.core.machine import available_cores
from fl.core.rng import derive_seed
from fl.settings.config import RunConfig, make_config
from fl.tasks.speech.task import SpeechTask
from fl.tasks.task import DeviceExamples, Example

# Of what was learned in the first round: other batches differ by more than all of it. AdamW's first steps are signs of
# gradients, so float32's rounding shows, and each further round multiplies it.
TOLERANCE = 0.01
SLOT = "default"
BUDGET = 4 * 2**30  # bytes of the cohort's adapters and activations


class Setting:
    """What both sides train: the task, the people, and the plan of each local phase."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.task = SpeechTask(config)
        found = [self.task.device(d) for d in self.task.device_ids() if not self.task.is_new(d)]
        self.devices: tuple[DeviceExamples, ...] = tuple(device for device in found if device.train)
        train = config.train
        self.plan = LocalPlan(
            train.local_steps, train.batch_size, train.learning_rate, 0.0, clipping_norm=train.clipping_norm
        )

        self.adapter = GatedLoraConfig(
            r=config.adapter.rank,
            lora_alpha=config.adapter.alpha,
            gate="none",
            target_modules=self.task.targets,
            init_seed=config.seed,
        )

    def new_model(self) -> PeftModel:
        """A model of its own modules on the same frozen base, with the initial adapter."""
        return get_peft_model(self.task.base.new_model(), self.adapter, adapter_name=SLOT).eval()

    def phase_seed(self, device: DeviceExamples, round_index: int) -> int:
        """Seed of one device's local phase, as in a run."""
        return derive_seed(self.config.seed, round_index, device.device_id, "train")

    def batches(self, device: DeviceExamples, round_index: int) -> list[list[int]]:
        """The batches that our trainer draws from that seed."""
        return step_batches(self.plan, len(device.train), self.phase_seed(device, round_index))


class PlainLoop:
    """Our trainer, one device at a time, and the weighted average of what comes out."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.rounds = setting, 0
        self.model = setting.new_model()
        self.shared = adapter_state(self.model, SLOT)
        self.split = make_split("all-shared", self.shared)

    def round(self) -> None:
        """One round of all devices."""
        self.rounds += 1
        devices = self.setting.devices
        weight = sum(len(device.train) for device in devices)
        total = {name: torch.zeros_like(tensor) for name, tensor in self.shared.items()}
        for device, state in zip(devices, self.trained(), strict=True):
            for name, tensor in state.items():
                total[name].add_(tensor.detach(), alpha=len(device.train) / weight)
        self.shared = total

    def trained(self) -> Iterator[Mapping[str, Tensor]]:
        """Each device's tensors after its local phase, in the order of the devices."""
        parameters = adapter_parameters(self.model, SLOT)
        for device in self.setting.devices:
            load_state(self.model, self.shared, SLOT)
            seed = self.setting.phase_seed(device, self.rounds)
            task, plan = self.setting.task, self.setting.plan
            train_locally(self.model, parameters, self.split, task, device.train, plan, seed=seed)
            yield parameters

    def state(self) -> dict[str, Tensor]:
        """The shared tensors."""
        return self.shared


class Cohort(PlainLoop):
    """Our trainer, all devices in one computation."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.host = StackedModel(setting.task.base.new_model(), setting.task.targets)

    def trained(self) -> Iterator[Mapping[str, Tensor]]:
        """As the plain loop's."""
        setting, slot = self.setting, Slot.of(self.setting.adapter)
        members = [
            Member(d.device_id, slot, self.shared, d.train, setting.plan, setting.phase_seed(d, self.rounds))
            for d in setting.devices
        ]
        trained = train_cohort(self.host, setting.task, self.split, members, budget=BUDGET)
        for member, one in zip(members, trained, strict=True):
            if isinstance(one, Exception):
                raise RuntimeError(f"device {member.device_id} failed: {one}")
            yield one.state


class AdaptedWhisper(nn.Module):
    """The adapted model as pfl wants it: ``loss`` of a batch (here its indices) and ``metrics``, which cost nothing."""

    def __init__(self, model: PeftModel, task: SpeechTask) -> None:
        super().__init__()
        self.model, self.task = model, task

    def loss(self, indices: Tensor, examples: tuple[Example, ...]) -> Tensor:
        """Our mean cross-entropy."""
        return self.task.loss(self.model, [examples[i] for i in indices.tolist()])

    def metrics(self, indices: Tensor, examples: tuple[Example, ...] = ()) -> dict[str, Any]:
        """The number of utterances: pfl insists on evaluating before and after the first round."""
        return {"utterances": Weighted(len(indices), 1)}


class PlannedDataset(PflDataset):  # type: ignore[misc]
    """One user's data in one round: the indices of the batches of our trainer, in its order."""

    def __init__(self, setting: Setting, device: DeviceExamples, round_index: int) -> None:
        super().__init__(
            (torch.arange(len(device.train)),), user_id=device.device_id, train_kwargs={"examples": device.train}
        )
        self.planned = setting.batches(device, round_index)

    def iter(self, batch_size: int | None) -> Iterator[tuple[Tensor]]:
        """The planned batches."""
        for batch in self.planned:
            yield (torch.tensor(batch),)


class PflSide:
    """pfl's simulated backend and federated averaging over the same users."""

    def __init__(self, setting: Setting) -> None:
        np.random.seed(setting.config.seed)  # pfl draws its own seeds from numpy's global generator
        self.setting, self.rounds = setting, 0
        model = setting.new_model()
        trained = [p for p in model.parameters() if p.requires_grad]

        def local_optimizer(_: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
            return torch.optim.AdamW(trained, lr=lr, weight_decay=setting.plan.weight_decay)

        self.model = PyTorchModel(
            AdaptedWhisper(model, setting.task), local_optimizer, torch.optim.SGD(trained, lr=1.0)
        )
        by_name = {device.device_id: device for device in setting.devices}

        def dataset_of(name: str) -> PlannedDataset:
            return PlannedDataset(setting, by_name[name], self.rounds)

        data = FederatedDataset(dataset_of, MinimizeReuseUserSampler(list(by_name)))
        self.backend = SimulatedBackend(data, data, postprocessors=[WeightByDatapoints()])
        self.algorithm = FederatedAveraging()

    def round(self) -> None:
        """One round: running the algorithm again goes on from where it stopped."""
        self.rounds += 1
        plan = self.setting.plan
        self.algorithm.run(
            NNAlgorithmParams(
                central_num_iterations=self.rounds,
                evaluation_frequency=10**9,
                train_cohort_size=len(self.setting.devices),
                val_cohort_size=None,
            ),
            self.backend,
            self.model,
            NNTrainHyperParams(
                local_batch_size=plan.batch_size,
                local_num_epochs=None,
                local_num_steps=plan.steps,
                local_learning_rate=plan.learning_rate,
                local_max_grad_norm=plan.clipping_norm,
            ),
            NNEvalHyperParams(local_batch_size=plan.batch_size),
            send_metrics_to_platform=False,
        )

    def state(self) -> dict[str, Tensor]:
        """The shared tensors."""
        return adapter_state(self.model.pytorch_model.model, SLOT)


def relative_difference(left: dict[str, Tensor], right: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """Norm of the difference of two results over the norm of what the first learned since ``start``."""
    assert left.keys() == right.keys() == start.keys()

    def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
        return math.sqrt(sum(float((one[name] - other[name]).square().sum()) for name in one))

    return distance(left, right) / distance(left, start)


def take_turns(sides: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of ``rounds`` rounds of each side; who begins alternates."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            started = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def measure(config: RunConfig, rounds: int, arguments: argparse.Namespace) -> list[BenchmarkRow]:
    """The figures at one local batch size. Raises RuntimeError if the three did not do the same work."""
    setting = Setting(config)
    loop, cohort, peer = PlainLoop(setting), Cohort(setting), PflSide(setting)
    start = peer.state()
    sides = {"plain loop": loop.round, "cohort": cohort.round, "pfl": peer.round}
    take_turns(sides, 1)  # warms up, and shows whether all do the same
    differences = {
        name: relative_difference(loop.state(), side.state(), start)
        for name, side in (("cohort", cohort), ("pfl", peer))
    }
    if max(differences.values()) > TOLERANCE:
        raise RuntimeError(f"not the same work: of what the plain loop learned, the others differ by {differences}")
    seconds = take_turns(sides, rounds)
    devices, batch = len(setting.devices), config.train.batch_size
    if arguments.processes > 1:
        threads = max(1, arguments.threads // arguments.processes)
        try:
            for side in ("pfl", "cohort"):
                seconds[f"{side} in processes"] = run_processes(side, config, rounds, arguments.processes, threads)
        except (
            subprocess.CalledProcessError
        ) as error:  # torchrun needs free ports; the main figure does not depend on it
            print(f"{arguments.processes} processes failed (above), left out: exit code {error.returncode}")
    median = {name: statistics.median(found) for name, found in seconds.items()}
    conditions = {
        **vars(arguments),
        "batch_size": batch,
        "devices": devices,
        "note": f"{median['plain loop'] / median['cohort']:.2f}x our plain loop",
        "difference_of_what_was_learned": {name: float(f"{found:.2g}") for name, found in differences.items()},
        "client_rounds_per_second": {n: spread([devices / s for s in found]) for n, found in seconds.items()},
        "machine": machine(("pfl",)),
    }
    names = {"": f"pfl_round_batch_{batch}", " in processes": f"pfl_processes_batch_{batch}"}
    return [
        BenchmarkRow(
            name=name,
            value=round(devices / median[f"cohort{where}"], 4),
            unit="client-rounds/s",
            ratio=round(median[f"pfl{where}"] / median[f"cohort{where}"], 3),
            target=target_here(name),
            conditions={
                **conditions,
                "spread": spread(
                    [p / c for p, c in zip(seconds[f"pfl{where}"], seconds[f"cohort{where}"], strict=True)]
                ),
            },
        )
        for where, name in names.items()
        if f"cohort{where}" in median
    ]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="whisper-base")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--sentences", type=int, default=30)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[8, 1])
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one to warm up")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--processes", type=int, default=available_cores(), help="of both sides at their best; 1 leaves that out"
    )
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: about a minute, no figure")
    return parser.parse_args()


def main() -> int:
    """Measure, write one row for each batch size (none with ``--smoke``); 1 where a target is missed."""
    arguments = parse_arguments()
    if arguments.smoke:
        vars(arguments).update({"devices": 2, "sentences": 8, "steps": 1, "rounds": 1})
    torch.set_num_threads(arguments.threads)
    settings = partial(
        dict[str, object],
        base=arguments.base,
        devices=arguments.devices,
        new_people=0,
        sentences=arguments.sentences,
        local_steps=arguments.steps,
        rank=arguments.rank,
        learning_rate=1e-3,
        seed=arguments.seed,
        arms="global",
    )
    met = True
    for batch in arguments.batch_sizes:
        for row in measure(make_config(settings(batch_size=batch)), arguments.rounds, arguments):
            met &= row.met
            written = "not written: smoke" if arguments.smoke else f"written to {write_row(row)}"
            print(
                f"{row.name}: {row.value:.3f} client-rounds/s, {row.ratio:.2f}x pfl (target {row.target}x), "
                f"{row.conditions['note']}; {written}"
            )
    return 0 if met or arguments.smoke else 1


if __name__ == "__main__":
    sys.exit(main())
