"""A second adapter of one's own beside the shared one: what Ditto, APFL, pFedMe, FedDPA and interpolation have in common.

The shared part is trained as the arm ``global`` trains it, to the bit, except by pFedMe. What is a person's own is trained beside
it in the same round, on the shared adapter as it came with the round, and is kept in the device store under names that no message
may hold. Where the papers leave freedom, or speak of whole models:

- All train with AdamW and the run's schedule, as every arm does; a person's own part takes ``steps`` steps a round, by default as
  many as the shared part. Its batches are drawn from a seed of their own.
- Both adapters together are an ordinary adapter (:mod:`fl.adapters.blend`), so serving needs nothing new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from fl.algorithms.base import Algorithm, Capabilities, Role, SecondAdapter
from fl.algorithms.plan import LocalPlan, SecondPlan
from fl.settings.fields import Table, setting

if TYPE_CHECKING:
    from fl.adapters.state import State


class StepOptions(Table):
    """Options of every second adapter."""

    steps: int = setting(0, "steps of a round for the personal adapter; 0 takes train.local-steps", low=0, high=100_000)


class OwnAdapter(Algorithm):
    """An algorithm that is its own :class:`SecondAdapter`. By default the own adapter starts as the shared one and decodes alone."""

    role: ClassVar[Role] = Role.PERSONALIZATION
    decides_split: ClassVar[bool] = True
    can: ClassVar[Capabilities] = Capabilities(mean=True, low_rank=True)
    Options: ClassVar[type[Table]] = StepOptions
    options: StepOptions
    gate: ClassVar[str] = "none"
    ranks: ClassVar[int] = 1
    follows: ClassVar[bool] = False

    @property
    def second(self) -> SecondAdapter:
        """This object."""
        return self

    def start(self, shared: State, seed: int) -> State:
        """The shared adapter as it is when the person first takes part."""
        from fl.adapters.blend import copied

        return copied(shared)

    def build(self, shared: State, own: State) -> State:
        """The own adapter alone."""
        from fl.adapters.blend import alone

        return alone(shared, own)

    def plan(self, plan: LocalPlan) -> SecondPlan:
        """As many steps as the shared adapter takes, or those that are set."""
        return SecondPlan(
            batches=self.options.steps or plan.steps,
            batch_size=plan.batch_size,
            learning_rate=plan.learning_rate,
            gate_learning_rate=plan.private_learning_rate,
            clipping_norm=plan.clipping_norm,
            weight_decay=plan.weight_decay,
        )
