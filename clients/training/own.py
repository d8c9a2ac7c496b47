"""Training of what a person has beside the shared adapter, through the adapter that decodes (:mod:`fl.adapters.blend`).

The model holds the blend of both; its gradient goes back through the blend to the person's own tensors, which alone move. The
optimizer is that of :mod:`clients.training.single`: AdamW, gates at a rate of their own, gradients clipped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from clients.training.optimizer import AdapterOptimizer, Rates, require_examples, require_finite
from clients.training.single import LocalResult, draw_batches
from fl.adapters.blend import MIXING, own
from fl.adapters.split import tensor_kind
from fl.adapters.state import State
from fl.algorithms.base import SecondAdapter
from fl.algorithms.plan import SecondPlan
from fl.core.rng import derive_generator
from fl.tasks.task import Example, Task


@dataclass
class _Own:
    """A person's own tensors as parameters, and the shared adapter beside them."""

    blend: SecondAdapter
    shared: State
    plan: SecondPlan
    parameters: dict[str, nn.Parameter]
    optimizer: AdapterOptimizer = field(init=False)

    def __post_init__(self) -> None:
        trained = {name: p for name, p in self.parameters.items() if name != MIXING}
        gates = [p for name, p in trained.items() if tensor_kind(name) == "gate"]
        factors = [p for name, p in trained.items() if tensor_kind(name) != "gate"]
        plan = self.plan
        rates = Rates(plan.learning_rate, plan.gate_learning_rate, plan.weight_decay, plan.clipping_norm)
        self.optimizer = AdapterOptimizer(factors, gates, [list(trained.values())], rates)

    def built(self) -> State:
        """The adapter that decodes, with a graph back to the own tensors."""
        return self.blend.build(self.shared, dict(self.parameters))

    def step(self, built: State, gradients: dict[str, Tensor]) -> None:
        """One step from the gradients of the loss with respect to the adapter that decodes."""
        for parameter in self.parameters.values():
            parameter.grad = None
        torch.autograd.backward([built[name] for name in gradients], list(gradients.values()))
        if self.plan.pull:
            for name, tensor in self.shared.items():
                parameter = self.parameters[own(name)]
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - tensor, alpha=self.plan.pull)
        self.optimizer.step()
        weight = self.parameters.get(MIXING)
        if weight is not None and weight.grad is not None:
            with torch.no_grad():  # a plain gradient step, kept between 0 and 1 (APFL, arXiv 2003.13461, section 4)
                weight.sub_(self.plan.mixing_learning_rate * weight.grad).clamp_(0.0, 1.0)

    def follow(self) -> None:
        """The shared adapter goes ``outer`` of the way to the own one: w <- w - eta lambda (w - theta)."""
        for name, tensor in self.shared.items():
            tensor.lerp_(self.parameters[own(name)].detach(), self.plan.outer)


def train_own(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    blend: SecondAdapter,
    shared: State,
    personal: State,
    task: Task,
    examples: Sequence[Example],
    plan: SecondPlan,
    *,
    seed: int,
) -> tuple[State, State, LocalResult]:
    """Train ``personal``; returns it, the shared adapter (moved only with ``plan.outer``) and what was done. Neither is changed in place.

    ``parameters`` are the live ones of the slot in ``model`` where the blend decodes; they end as what the last step saw. Raises
    :class:`fl.core.errors.AdapterError` if there are no examples, or if the loss or a gradient stops being finite.
    """
    require_examples(examples)
    started = time.perf_counter()
    device = next(iter(parameters.values())).device
    mine = _Own(
        blend,
        {name: tensor.detach().to(device, copy=True) for name, tensor in shared.items()},
        plan,
        {name: nn.Parameter(tensor.detach().to(device, copy=True)) for name, tensor in personal.items()},
    )
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    generator = derive_generator(seed, "local-steps")
    losses: list[float] = []
    batches = draw_batches(len(examples), plan.batch_size, plan.batches, generator)
    for batch in batches:
        chosen = [examples[i] for i in batch]
        for _ in range(plan.repeat):
            losses.append(_step(mine, parameters, lambda: task.loss(model, chosen)))  # noqa: B023 - called at once
        if plan.outer:
            mine.follow()
    result = LocalResult(
        loss=sum(losses) / len(losses) if losses else 0.0,
        examples=plan.repeat * sum(map(len, batches)),
        steps=len(losses),
        seconds=time.perf_counter() - started,
    )
    trained = {name: p.detach().to("cpu", copy=True) for name, p in mine.parameters.items()}
    return trained, {name: tensor.cpu() for name, tensor in mine.shared.items()}, result


def _step(mine: _Own, parameters: dict[str, nn.Parameter], loss_of: Callable[[], Tensor]) -> float:
    """One step on one batch."""
    built = mine.built()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(built[name])
            parameter.grad = None
    loss = loss_of()
    require_finite(loss, "the loss")
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {n: p.grad for n, p in parameters.items() if p.grad is not None and built[n].requires_grad}
    mine.step(built, gradients)
    for parameter in parameters.values():
        parameter.grad = None
    return float(loss.detach())
