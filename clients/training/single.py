"""Local training of one device: a few steps on its own examples, with a schedule of its own for the private part.

The private part (gates) needs another learning rate than A and B, and a shared part that trains only under trained gates comes
to lean on them and is bad without. So the last rounds train the gates alone, on a shared part that rests. Before them,
*gate dropout* is the share of the steps that run with neutral gates and train the shared part alone: with all of them (the
default) the shared tensors are as good an adapter for a new person as those of plain federated LoRA.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fl.adapters.model import neutral_gates
from fl.adapters.split import Split, tensor_kind
from fl.core.errors import AdapterError
from fl.core.rng import derive_generator
from fl.settings.config import TrainConfig
from fl.tasks.task import Example, Task


class Correction(Protocol):
    """What is added to the gradients of shared tensors, and wants to see them first (:mod:`clients.training.control`)."""

    @property
    def correction(self) -> Mapping[str, Tensor]:
        """The term, by name."""
        ...

    def observe(self, name: str, gradient: Tensor) -> None:
        """A gradient of one step, without the term."""
        ...


@dataclass(frozen=True)
class LocalPlan:
    """The local phase of one device in one round.

    ``proximal`` is mu of FedProx (arXiv 1812.06127): the loss has mu / 2 times the squared distance of the shared tensors from
    where the round began. ``rests`` is a kind of shared tensor, ``A`` or ``B``, that is not trained in this round. With
    ``first_private`` steps the private part trains before, alone, and the shared part after it, alone (FedRep).
    """

    steps: int
    batch_size: int
    learning_rate: float
    private_learning_rate: float
    gate_dropout: float = 0.0
    private_steps: int = 0
    clipping_norm: float = 1.0
    weight_decay: float = 0.0
    proximal: float = 0.0
    rests: str = ""
    first_private: int = 0


@dataclass(frozen=True)
class LocalResult:
    """What a local phase did: mean loss over its steps, examples seen (with repetition), steps, seconds."""

    loss: float
    examples: int
    steps: int
    seconds: float


def schedule_factor(name: str, round_index: int, rounds: int) -> float:
    """Factor of the learning rates in round ``round_index`` (from 1) of ``rounds``: 1 at the start, towards 0.1 at the end."""
    progress = (round_index - 1) / max(1, rounds)
    if name == "linear":
        return 1.0 - 0.9 * progress
    if name == "cosine":
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0


def make_plan(train: TrainConfig, round_index: int, *, steps: int, gated: bool) -> LocalPlan:
    """The plan of one round. Gate dropout and private steps only mean something where there are gates.

    In every arm the rates decay over the rounds before the last ``train.private_rounds`` and stay where they end. In those last
    ones an arm with gates trains its private part alone, in one round of as many steps: nothing is exchanged in between,
    and an optimizer that starts anew in every round cost a point of the error rate. Gates learn there at their full rate, since
    what they learn is new.
    """
    decaying = train.rounds - train.private_rounds
    alone = gated and train.private_rounds > 0 and round_index > decaying
    factor = schedule_factor(train.schedule, min(round_index, decaying + 1), decaying)
    warm = gated and round_index <= train.private_warmup_rounds
    return LocalPlan(
        steps=0 if alone else steps,
        batch_size=train.batch_size,
        learning_rate=train.learning_rate * factor,
        private_learning_rate=train.private_learning_rate * (1.0 if alone else factor),
        gate_dropout=1.0 if warm else train.gate_dropout if gated else 0.0,
        private_steps=steps * train.private_rounds if alone else train.private_steps if gated and not warm else 0,
        clipping_norm=train.clipping_norm,
        weight_decay=train.weight_decay,
        proximal=train.proximal,
    )


def trained_split(split: Split, rests: str) -> Split:
    """The split of one local phase: shared tensors of the kind that ``rests`` are fixed in it."""
    resting = [name for name in split.shared if rests and tensor_kind(name) == rests]
    if not resting:
        return split
    shared = tuple(name for name in split.shared if name not in resting)
    return replace(split, shared=shared, fixed=(*split.fixed, *resting))


def step_kinds(plan: LocalPlan, generator: np.random.Generator) -> list[str]:
    """``neutral`` or ``joint`` for each of ``plan.steps``, shuffled, then ``private`` for the extra steps.

    After ``plan.first_private`` steps that are ``private`` too, ``shared`` stands in the place of ``joint``.
    Exactly ``round(gate_dropout * steps)`` are neutral; a fraction that rounding would lose is drawn.
    """
    expected = plan.gate_dropout * plan.steps
    neutral = math.floor(expected) + int(generator.random() < expected - math.floor(expected))
    kinds = ["neutral"] * neutral + ["shared" if plan.first_private else "joint"] * (plan.steps - neutral)
    shuffled = [kinds[i] for i in generator.permutation(plan.steps)]
    return ["private"] * plan.first_private + shuffled + ["private"] * plan.private_steps


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

    ``parameters`` are the live adapter parameters by name. Optimizer state lives for this call. Raises :class:`AdapterError`
    if the loss or a gradient stops being finite; the caller still has the tensors from before.
    """
    if not examples:
        raise AdapterError("device has no training examples: leave it out of training or give it data")
    if not plan.first_private + plan.steps + plan.private_steps:
        return LocalResult(0.0, 0, 0, 0.0)
    started = time.perf_counter()
    generator = derive_generator(seed, "local-steps")
    kinds = step_kinds(plan, generator)
    batches = draw_batches(len(examples), plan.batch_size, len(kinds), generator)
    groups = _Groups(parameters, trained_split(split, plan.rests), plan, control)
    losses: list[float] = []
    for kind, batch in zip(kinds, batches, strict=True):
        with neutral_gates(model) if kind == "neutral" else nullcontext():
            loss = task.loss(model, [examples[i] for i in batch])
        if not bool(torch.isfinite(loss)):
            raise AdapterError(
                "training diverged: the loss is not finite; lower learning-rate or private-learning-rate"
            )
        groups.step(loss, kind)
        losses.append(float(loss.detach()))
    return LocalResult(
        loss=float(np.mean(losses)) if losses else 0.0,
        examples=sum(len(batch) for batch in batches),
        steps=len(kinds),
        seconds=time.perf_counter() - started,
    )


class _Groups:
    """Shared and private parameters, each with its own AdamW (Loshchilov & Hutter 2019) and gradient clipping."""

    def __init__(
        self, parameters: dict[str, nn.Parameter], split: Split, plan: LocalPlan, control: Correction | None
    ) -> None:
        self.plan = plan
        self.names, self.control = split.shared, control
        self.correction = {} if control is None else control.correction
        self.all = list(parameters.values())
        for name, parameter in parameters.items():
            parameter.requires_grad_(name not in split.fixed)
        self.shared = [parameters[name] for name in split.shared]
        self.private = [parameters[name] for name in split.private]
        self.start = [p.detach().clone() for p in self.shared] if plan.proximal else []
        # A private A or B (fedsa, all-private) is an ordinary factor and learns at the factors' rate; only gates need more.
        self.gates = {id(parameters[name]) for name in split.private if "gated_lora_gate" in name}
        groups = [
            {
                "params": [p for p in self.shared + self.private if id(p) not in self.gates],
                "lr": plan.learning_rate,
                "weight_decay": plan.weight_decay,
            },
            {
                "params": [p for p in self.private if id(p) in self.gates],
                "lr": plan.private_learning_rate,
                "weight_decay": 0.0,
            },
        ]
        self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]])

    def step(self, loss: torch.Tensor, kind: str) -> None:
        """One update from ``loss``. ``private`` steps leave the shared part, ``shared`` ones the private; ``neutral`` ones give
        gates no gradient anyway."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in {"private": self.shared, "shared": self.private}.get(kind, ()):
            parameter.grad = None
        if self.control is not None:
            for name, parameter in zip(self.names, self.shared, strict=True):
                if parameter.grad is not None:
                    self.control.observe(name, parameter.grad)
                    parameter.grad.add_(self.correction[name].to(parameter.device))
        for parameter, start in zip(self.shared, self.start, strict=False):  # no start without a proximal term
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=self.plan.proximal)
        for group in (self.shared, self.private):
            with_gradient = [p for p in group if p.grad is not None]
            if with_gradient:
                norm = nn.utils.clip_grad_norm_(with_gradient, self.plan.clipping_norm)
                if not bool(torch.isfinite(norm)):
                    raise AdapterError(
                        "training diverged: a gradient is not finite; lower learning-rate or private-learning-rate"
                    )
        self.optimizer.step()
