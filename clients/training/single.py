"""Local training of one device: a few steps on its own examples, in which shared and private tensors have rates of their own.

Second adapters step through the same optimizer; a cohort's :class:`clients.training.slots.SlotAdamW` is the same arithmetic on the
matrix of many devices, and is tested against this one.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from fl.adapters.model import neutral_gates
from fl.adapters.split import Split, tensor_kind
from fl.algorithms.base import Correction
from fl.algorithms.plan import LocalPlan
from fl.core.errors import AdapterError
from fl.core.rng import derive_generator
from fl.tasks.task import Example, Task


def diverged(what: str) -> AdapterError:
    """The error of a training whose ``what`` stopped being finite."""
    return AdapterError(f"training diverged: {what} is not finite; lower learning-rate or private-learning-rate")


def require_finite(value: Tensor, what: str) -> None:
    """Raise :class:`AdapterError` unless a scalar is finite."""
    if not bool(torch.isfinite(value)):
        raise diverged(what)


def no_examples() -> AdapterError:
    """The error of a device that has nothing to train on."""
    return AdapterError("device has no training examples: leave it out of training or give it data")


class AdapterOptimizer:
    """AdamW (Loshchilov & Hutter 2019) over a shared and a private part, each clipped by the norm of its gradients.

    Only private gates have a rate of their own and no weight decay. A private A or B (fedsa, all-private) is an ordinary factor.
    The pulls of the plan go beside AdamW's step, to ``towards`` by name, by default to where a tensor is now.
    """

    def __init__(
        self,
        shared: Mapping[str, nn.Parameter],
        private: Mapping[str, nn.Parameter],
        plan: LocalPlan,
        towards: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._parts, self._norm = (list(shared.values()), list(private.values())), plan.clipping_norm
        gates = [p for name, p in private.items() if tensor_kind(name) == "gate"]
        factors = [*shared.values(), *(p for name, p in private.items() if tensor_kind(name) != "gate")]
        groups = [
            {"params": factors, "lr": plan.learning_rate, "weight_decay": plan.weight_decay},
            {"params": gates, "lr": plan.private_learning_rate, "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW([group for group in groups if group["params"]])
        rates = [plan.private_learning_rate if tensor_kind(n) == "gate" else plan.learning_rate for n in private]
        pulls = [plan.learning_rate * plan.proximal] * len(shared) + [rate * plan.shrinkage for rate in rates]
        self._pulled = [
            (parameter, parameter.detach().clone() if towards is None else towards[name], min(1.0, pull))
            for (name, parameter), pull in zip([*shared.items(), *private.items()], pulls, strict=True)
            if pull
        ]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Clip and step; a parameter without gradient keeps its value and its moments. :class:`AdapterError` if one is not finite."""
        for part in self._parts:
            with_gradient = [p for p in part if p.grad is not None]
            if with_gradient:
                require_finite(nn.utils.clip_grad_norm_(with_gradient, self._norm), "a gradient")
        with torch.no_grad():
            for parameter, centre, pull in self._pulled:
                if parameter.grad is not None:
                    parameter.lerp_(centre, pull)
        self._adamw.step()


@dataclass(frozen=True)
class LocalResult:
    """What a local phase did: mean loss over its steps, examples seen (with repetition), steps, seconds."""

    loss: float = 0.0
    examples: int = 0
    steps: int = 0
    seconds: float = 0.0


def trained_split(split: Split, plan: LocalPlan) -> Split:
    """The split of one local phase: what it does not train is fixed in it, so that no gradient is computed for it.

    That are shared tensors of the kind ``plan.frozen``, and all of them where no step trains them.
    """
    alone = not plan.steps and bool(split.private)
    shared = tuple(n for n in split.shared if not (alone or tensor_kind(n) == plan.frozen))
    return replace(split, shared=shared, fixed=(*split.fixed, *(n for n in split.shared if n not in {*shared})))


def step_kinds(plan: LocalPlan) -> list[str]:
    """What each step trains: ``private`` what is private alone, ``shared`` what is shared alone, ``neutral`` that with neutral gates,
    ``joint`` all."""
    steps = "neutral" if plan.neutral else "shared" if plan.first_private else "joint"
    return ["private"] * plan.first_private + [steps] * plan.steps + ["private"] * plan.private_steps


def step_batches(plan: LocalPlan, count: int, seed: int) -> list[list[int]]:
    """The indices into ``count`` examples of each step of ``plan``."""
    generator = derive_generator(seed, "local-steps")
    generator.random()
    generator.permutation(plan.steps)  # stored results hang on the batches that come after these two draws
    return draw_batches(count, plan.batch_size, len(step_kinds(plan)), generator)


def draw_batches(count: int, batch_size: int, batches: int, generator: np.random.Generator) -> list[list[int]]:
    """Indices of ``batches`` batches: shuffled passes over ``count`` examples, each example as often as any other within one.

    A device with fewer examples than ``batch_size`` gives batches of all it has, never the same example twice in one.
    """
    size = min(batch_size, count)
    order: list[int] = []
    result: list[list[int]] = []
    for _ in range(batches):
        batch = order[:size]
        order = order[size:]
        if len(batch) < size:
            fresh = [int(i) for i in generator.permutation(count)]
            fill = [i for i in fresh if i not in batch][: size - len(batch)]
            order = [i for i in fresh if i not in fill]
            batch = batch + fill
        result.append(batch)
    return result


def train_locally(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    split: Split,
    task: Task,
    examples: Sequence[Example],
    plan: LocalPlan,
    *,
    seed: int,
    control: Correction | None = None,
) -> LocalResult:
    """Train the adapter in ``model`` in place on one device's examples, with ``control`` by SCAFFOLD.

    ``parameters`` are the live adapter parameters by name. Optimizer state lives for this call. Raises :class:`fl.core.errors.AdapterError`
    if the loss or a gradient stops being finite; the caller still has the tensors from before.
    """
    if not examples:
        raise no_examples()
    if not plan.first_private + plan.steps + plan.private_steps:
        return LocalResult()
    started = time.perf_counter()
    kinds, batches = step_kinds(plan), step_batches(plan, len(examples), seed)
    parts = _Parts(parameters, trained_split(split, plan), plan, control)
    losses: list[float] = []
    for kind, batch in zip(kinds, batches, strict=True):
        with neutral_gates(model) if kind == "neutral" else nullcontext():
            loss = task.loss(model, [examples[i] for i in batch])
        require_finite(loss, "the loss")
        parts.step(loss, kind)
        losses.append(float(loss.detach()))
    return LocalResult(
        loss=float(np.mean(losses)) if losses else 0.0,
        examples=sum(len(batch) for batch in batches),
        steps=len(kinds),
        seconds=time.perf_counter() - started,
    )


class _Parts:
    """Shared and private parameters of one device with their optimizer, and which of them a step moves."""

    def __init__(
        self, parameters: dict[str, nn.Parameter], split: Split, plan: LocalPlan, control: Correction | None
    ) -> None:
        self.control = control
        self.correction = {} if control is None else control.correction
        for name, parameter in parameters.items():
            parameter.requires_grad_(name not in split.fixed)
        self.shared = {name: parameters[name] for name in split.shared}
        self.private = {name: parameters[name] for name in split.private}
        self.optimizer = AdapterOptimizer(self.shared, self.private, plan)

    def step(self, loss: Tensor, kind: str) -> None:
        """One update from ``loss``. ``private`` steps leave the shared part, ``shared`` ones the private; ``neutral`` ones give
        gates no gradient anyway."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in {"private": self.shared, "shared": self.private}.get(kind, {}).values():
            parameter.grad = None
        for name, parameter in self.shared.items():
            if parameter.grad is not None and self.control is not None:
                self.control.observe(name, parameter.grad)
                parameter.grad.add_(self.correction[name].to(parameter.device))
        self.optimizer.step()
