"""A second adapter of one's own beside the shared one: what Ditto, pFedMe and mixtures have in common.

The shared part is trained as the arm ``global`` trains it, to the bit, except by pFedMe. What is a person's own is trained beside
it in the same round, on the shared adapter as it came with the round, and is kept in the device store under names that no message
may hold. Where the papers leave freedom, or speak of whole models:

- All train with AdamW and the run's schedule, as every arm does; a person's own part takes ``steps`` steps a round, by default as
  many as the shared part. Its batches are drawn from a seed of their own.
- Both adapters together are an ordinary adapter (:mod:`fl.adapters.blend`), so serving needs nothing new.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from fl.algorithms.base import Algorithm, Capabilities, Role
from fl.algorithms.plan import LocalPlan
from fl.settings.fields import setting

if TYPE_CHECKING:
    from fl.adapters.state import State


class OwnAdapter(Algorithm):
    """A person's own tensors beside the shared adapter, and the ordinary adapter that both make. By default the own adapter
    starts as the shared one and decodes alone."""

    role = Role.PERSONALIZATION
    decides_split = True
    can = Capabilities(mean=True, low_rank=True)
    gate: ClassVar[str] = "none"
    ranks: ClassVar[int] = 1  # times the shared adapter's rank and alpha
    follows: ClassVar[bool] = False  # the shared adapter follows the own one, instead of being trained
    afterwards: ClassVar[bool] = False  # it is enrolled after the last round, instead of being trained in each
    steps: int = setting(0, "steps of a round for the personal adapter; 0 takes train.local-steps", low=0, high=100_000)

    @property
    def second(self) -> OwnAdapter:
        """This object."""
        return self

    def start(self, shared: State, seed: int) -> State:
        """A person's own tensors before the first round: the shared adapter as it is when the person first takes part."""
        from fl.adapters.blend import copied

        return copied(shared)

    def build(self, shared: State, own: State) -> State:
        """The adapter that decodes, the own one alone; differentiable with respect to the own tensors.

        All tensors may have a leading dimension of K people.
        """
        from fl.adapters.blend import alone

        return alone(shared, own)

    def kept_bytes(self, own: State) -> int:
        """What a device's own tensors take in its store: float32."""
        return sum(tensor.numel() * tensor.element_size() for tensor in own.values())

    def plan(self, plan: LocalPlan) -> LocalPlan:
        """What a device does for the own adapter in a round, given what it does for the shared one: as many steps, or those set."""
        return replace(plan, steps=self.steps or plan.steps)


class BesideShared(OwnAdapter):
    """An own adapter that trains in every round beside the shared one, at a rate of its own."""

    rate: float = setting(
        0.1, "learning rate of the personal adapter, as a multiple of train.learning-rate", low=0.0, high=100.0
    )

    def plan(self, plan: LocalPlan) -> LocalPlan:
        """With that rate."""
        return replace(super().plan(plan), learning_rate=self.rate * plan.learning_rate)
