"""A device's second adapter beside the shared one: kept by itself, trained, and the adapter with which both decode.

The model holds the blend of both (:mod:`fl.adapters.blend`); its gradient goes back through the blend to the person's own tensors,
which alone move. The optimizer is that of :mod:`clients.training.single`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clients.training.single import AdapterOptimizer, LocalResult, draw_batches, no_examples, require_finite
from clients.worker import Worker
from fl.adapters.blend import MIXING, own
from fl.adapters.config import GatedLoraConfig
from fl.adapters.gates.table import GATES
from fl.adapters.split import OWN, covering
from fl.adapters.state import State, load_state
from fl.algorithms.arms import Arm, adapter_name
from fl.algorithms.personal.own_adapter import OwnAdapter
from fl.algorithms.plan import LocalPlan
from fl.core.rng import derive_generator, derive_seed
from fl.tasks.task import Example, Task

ALL_PRIVATE = "all-private"  # of an adapter in which shared and own are one


@dataclass(frozen=True)
class Placed:
    """Where a device's adapter lies in the model, which part of it is private, and whether it is a second adapter's.

    What is enrolled is a part of the shared adapter, and lacks of the exact mean what that lacks.
    """

    slot: str
    split: str
    second: bool = False


def own_folder(arm: Arm) -> str:
    """Under which name the device store keeps what a device has beside its adapter in this arm."""
    return f"{arm.name}-own"


def fresh_own(worker: Worker, second: OwnAdapter, shared: State) -> State:
    """A device's own tensors before its first round."""
    return second.start(shared, derive_seed(worker.config.seed, "personal-adapter"))


def stored_own(
    worker: Worker, second: OwnAdapter, arm: Arm, device_id: str, shared: State, *, before: int
) -> State | None:
    """A device's own tensors from before a round, None if it has none yet."""
    shapes = {name: tuple(tensor.shape) for name, tensor in fresh_own(worker, second, shared).items()}
    return worker.store.load(own_folder(arm), device_id, shapes, before=before)


def second_slot(worker: Worker, second: OwnAdapter) -> str:
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
    second = None if neutral else arm.personal.second
    kept = None if second is None else stored_own(worker, second, arm, device_id, shared, before=before)
    if second is None or kept is None:
        worker.place(arm, device_id, shared, before=before, neutral=neutral)
        return Placed(adapter_name(arm.gate), arm.split)
    slot = second_slot(worker, second)
    load_state(worker.adapted, second.build(worker.at_rank(shared, device_id), kept), slot)
    split = covering(arm.split, shared, (n.removeprefix(OWN) for n in kept)) if second.afterwards else ALL_PRIVATE
    return Placed(slot, split, second=not second.afterwards)


@dataclass(frozen=True)
class Own:
    """What one device trains beside the shared adapter: its own tensors, on its examples, by a plan and a seed."""

    shared: State
    personal: State
    examples: Sequence[Example]
    plan: LocalPlan
    seed: int


@dataclass(frozen=True)
class OwnResult:
    """The own tensors after the steps, the shared adapter, which moves only where it follows them, and what was done."""

    personal: State
    shared: State
    result: LocalResult


class _OwnTraining:
    """A person's own tensors as parameters, the shared adapter beside them, and the ``live`` parameters where both decode."""

    def __init__(self, second: OwnAdapter, live: dict[str, nn.Parameter], start: Own) -> None:
        self.second, self.live, self.plan = second, live, start.plan
        device = next(iter(live.values())).device
        self.shared = {name: tensor.detach().to(device, copy=True) for name, tensor in start.shared.items()}
        self.own = {name: nn.Parameter(t.detach().to(device, copy=True)) for name, t in start.personal.items()}
        adapter = {name: p for name, p in self.own.items() if name != MIXING}
        self.optimizer = AdapterOptimizer({}, adapter, start.plan, {own(name): t for name, t in self.shared.items()})
        for parameter in live.values():
            parameter.requires_grad_(True)

    def step(self, loss_of: Callable[[], Tensor]) -> float:
        """One step on one batch; returns its loss."""
        built = self.second.build(self.shared, dict(self.own))  # with a graph back to the own tensors
        with torch.no_grad():
            for name, parameter in self.live.items():
                parameter.copy_(built[name])
                parameter.grad = None
        loss = loss_of()
        require_finite(loss, "the loss")
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = {n: p.grad for n, p in self.live.items() if p.grad is not None and built[n].requires_grad}
        for parameter in self.own.values():
            parameter.grad = None
        torch.autograd.backward([built[name] for name in gradients], list(gradients.values()))
        for parameter in self.live.values():
            parameter.grad = None
        self.optimizer.step()
        weight = self.own.get(MIXING)
        if weight is not None and weight.grad is not None:
            with torch.no_grad():  # a plain gradient step, kept between 0 and 1 (arXiv 2003.13461, section 4)
                weight.sub_(self.plan.mixing_learning_rate * weight.grad).clamp_(0.0, 1.0)
        return float(loss.detach())

    def follow(self) -> None:
        """The shared adapter goes ``outer`` of the way to the own one: w <- w - eta lambda (w - theta)."""
        for name, tensor in self.shared.items():
            tensor.lerp_(self.own[own(name)].detach(), self.plan.outer)


def train_own(
    model: nn.Module, parameters: dict[str, nn.Parameter], second: OwnAdapter, task: Task, start: Own
) -> OwnResult:
    """Train a device's own tensors alone: the reference for a cohort. Nothing of ``start`` is changed in place.

    ``parameters`` are the live ones of the slot in ``model`` where the blend decodes; they end as what the last step saw. Raises
    :class:`fl.core.errors.AdapterError` if there are no examples, or if the loss or a gradient stops being finite.
    """
    examples, plan = start.examples, start.plan
    if not examples:
        raise no_examples()
    started = time.perf_counter()
    training = _OwnTraining(second, parameters, start)
    losses: list[float] = []
    batches = draw_batches(len(examples), plan.batch_size, plan.steps, derive_generator(start.seed, "local-steps"))
    for batch in batches:
        chosen = [examples[i] for i in batch]
        for _ in range(plan.repeat):
            losses.append(training.step(lambda: task.loss(model, chosen)))  # noqa: B023 - called at once
        if plan.outer:
            training.follow()
    result = LocalResult(
        loss=sum(losses) / len(losses) if losses else 0.0,
        examples=plan.repeat * sum(map(len, batches)),
        steps=len(losses),
        seconds=time.perf_counter() - started,
    )
    trained = {name: p.detach().to("cpu", copy=True) for name, p in training.own.items()}
    return OwnResult(trained, {name: tensor.cpu() for name, tensor in training.shared.items()}, result)
