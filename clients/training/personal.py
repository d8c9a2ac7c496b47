"""A device's second adapter beside the shared one, trained and kept by itself, and the adapter with which it decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clients.store import PrivateState
from clients.training.own import train_own
from clients.training.single import LocalResult
from clients.worker import Worker
from fl.adapters.config import GatedLoraConfig
from fl.adapters.gates.table import GATES
from fl.adapters.state import State, adapter_parameters, load_state
from fl.algorithms.arms import Arm, adapter_name
from fl.algorithms.base import SecondAdapter
from fl.algorithms.plan import LocalPlan, Phase
from fl.core.rng import derive_seed
from fl.protocol.wire import Job
from fl.tasks.task import Example

ALL_PRIVATE = "all-private"  # of an adapter in which shared and own are one


@dataclass(frozen=True)
class Placed:
    """Where a device's adapter lies in the model, which part of it is private, and whether it is a second adapter's."""

    slot: str
    split: str
    second: bool = False


def own_folder(arm: Arm) -> str:
    """Under which name the device store keeps what a device has beside its adapter in this arm."""
    return f"{arm.name}-own"


def stored_own(worker: Worker, arm: Arm, device_id: str, shared: State, *, before: int) -> State | None:
    """A device's own tensors from before a round, None if it has none yet."""
    second = arm.personal.second
    if second is None:
        return None
    shapes = {name: tuple(tensor.shape) for name, tensor in _start(worker, second, shared).items()}
    found = worker.store.load(own_folder(arm), device_id, shapes, before=before)
    return None if found is None else found.tensors


def _start(worker: Worker, second: SecondAdapter, shared: State) -> State:
    return second.start(shared, derive_seed(worker.config.seed, "personal-adapter"))


def second_slot(worker: Worker, second: SecondAdapter) -> str:
    """Make the adapter slot in which both decode active, adding it at first use; returns its PEFT name."""
    lone = worker.slot("none")
    if second.ranks == 1 and not GATES.find(second.gate).parameters:
        return lone
    name = f"blend-{second.gate}"
    if name not in worker.adapted.peft_config:
        plain = worker.recipe("none")
        config = GatedLoraConfig(
            r=second.ranks * plain.size,
            lora_alpha=second.ranks * plain.alpha,
            gate=second.gate,
            target_modules=worker.task.targets,
            init_seed=worker.config.seed,
        )
        worker.adapted.add_adapter(name, config)
        worker.adapted.eval()
    worker.adapted.set_adapter(name)
    return name


def place_device(
    worker: Worker, arm: Arm, device_id: str, shared: State, *, before: int, neutral: bool = False
) -> Placed:
    """Put the adapter with which a device decodes into the model, its own part being that from before round ``before``.

    With ``neutral``, and for a device that has nothing of its own yet, it is the shared adapter.
    """
    second = arm.personal.second
    own = None if neutral or second is None else stored_own(worker, arm, device_id, shared, before=before)
    if second is None or own is None:
        worker.place(arm, device_id, shared, before=before, neutral=neutral)
        return Placed(adapter_name(arm.gate), arm.split)
    slot = second_slot(worker, second)
    load_state(worker.adapted, second.build(shared, own), slot)
    return Placed(slot, ALL_PRIVATE, second=True)


def train_own_part(
    worker: Worker, job: Job, arm: Arm, device_id: str, incoming: State, examples: Sequence[Example], plan: LocalPlan
) -> tuple[State, LocalResult] | None:
    """Train and keep what is a device's own in this round, beside ``incoming``; None where there is nothing to do.

    Returns the shared adapter, which moves only where it follows the own one, and what was done. ``plan`` is that of the
    shared part.
    """
    second = arm.personal.second
    if second is None or job.phase is not Phase.FEDERATE or not plan.steps:
        return None
    own = None if second.follows else stored_own(worker, arm, device_id, incoming, before=job.round)
    slot = second_slot(worker, second)
    trained, shared, result = train_own(
        worker.adapted,
        adapter_parameters(worker.adapted, slot),
        second,
        incoming,
        own or _start(worker, second, incoming),
        worker.task,
        examples,
        second.plan(plan),
        seed=derive_seed(worker.config.seed, job.round, device_id, "train-own"),
    )
    worker.store.save(own_folder(arm), device_id, PrivateState(job.round, trained))
    return shared, result
