"""What an algorithm of federated learning is: options, capabilities, a half at the device and a half at the aggregator.

The loop is fixed (``clients`` and ``strategies`` drive it) and an algorithm fills hooks; neither half knows Flower. One run has
one algorithm of each :class:`Role`: how updates are aggregated, what is personal, and any terms of the local objective. Every hook
has a default, that of FedAvg: an algorithm's file says what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fl.adapters.pairs import pair_names
from fl.adapters.split import tensor_kind
from fl.aggregation.mean import mean
from fl.aggregation.updates import DeviceUpdate, Tensors
from fl.algorithms.plan import LocalPlan
from fl.core.errors import ConfigError
from fl.settings.fields import Table

if TYPE_CHECKING:
    from torch import Tensor

    from fl.adapters.state import Shapes, State
    from fl.algorithms.personal.own_adapter import OwnAdapter
    from fl.settings.config import RunConfig


class Role(StrEnum):
    """Which part of a run an algorithm decides."""

    AGGREGATION = "aggregation"
    PERSONALIZATION = "personalization"
    LOCAL = "local term"
    ARM = "arm"  # an arm of its own, whatever the others are


@dataclass(frozen=True)
class About:
    """Where an algorithm comes from, and what it shares and keeps, in words for a table."""

    paper: str
    arxiv: str
    shares: str = "what the split shares"
    keeps: str = "nothing"


@dataclass(frozen=True)
class Capabilities:
    """What an algorithm can be combined with. :mod:`fl.settings.check` derives every refusal from these."""

    mean: bool = False  # the aggregate is a weighted mean of updates, so it can be noised and formed by secure sums
    sums: bool = True  # it works on sums over devices: edge aggregation
    pairs: bool = False  # it needs A and B of each layer shared
    encoded: bool = True  # updates may be compressed
    optimizer: bool = True  # a server optimizer may take the step
    ranks: str = ""  # devices of different ranks: "first" coordinates or "best" approximation; empty: not
    low_rank: bool = False  # it needs adapters with factors A and B
    sampled: bool = True  # a round may have only some of the devices


@dataclass(frozen=True)
class Round:
    """What an aggregator sees of one round, counted from 1.

    ``start`` are the shared tensors that the round started from, ``updates`` the sound updates in the order of device ids, and
    ``participation`` the share of all training examples that they stand for. ``steps`` are the local steps that were asked for.
    """

    number: int
    start: Tensors
    updates: tuple[DeviceUpdate, ...]
    participation: float = 1.0
    steps: float = inf

    @property
    def examples(self) -> list[float]:
        """Training examples of each device that count: the weights of FedAvg."""
        return [update.examples for update in self.updates]


@dataclass(kw_only=True)
class Correction:
    """A term that a device adds to the gradients of its shared tensors, and what it keeps and sends of it.

    ``sums`` and ``counts`` are of the gradients that it has seen, by name, without the term.
    """

    sums: State = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def correction(self) -> State:
        """The term, by name."""
        return {}

    def observe(self, name: str, gradient: Tensor) -> None:
        """Count a gradient of one step, without the term."""
        self.counts[name] = self.counts.get(name, 0) + 1
        self.sums[name] = self.sums[name] + gradient if name in self.sums else gradient.detach().clone()

    def sent(self) -> State:
        """What leaves with the update, by names that came with the message."""
        return {}

    def kept(self) -> State:
        """What the device keeps for its next round."""
        return {}


Load = Callable[["Shapes"], "State | None"]  # a device's stored tensors of these shapes, None in its first round


class Aggregator:
    """The aggregator's half in one arm: plain FedAvg. Its state, if it has any, survives in checkpoints."""

    def fault(self, update: DeviceUpdate) -> str:
        """What makes a sound update unusable for this algorithm, or an empty text."""
        return ""

    def moving(self, names: Sequence[str], number: int) -> tuple[str, ...]:
        """The tensors that may move in a round; a server optimizer leaves the others, whatever momentum they have."""
        return tuple(names)

    def recipients(
        self, devices: tuple[str, ...], shared: Tensors, *, training: bool, held_out: bool = False
    ) -> list[tuple[tuple[str, ...], Tensors]]:
        """Which devices are sent which tensors; ``held_out`` if all are to get what a held-out speaker gets."""
        return [(devices, shared)]

    def aggregate(self, found: Round) -> dict[str, np.ndarray]:
        """The update of the shared tensors, by name. There is at least one device's update, each with all tensors."""
        return mean(found.updates)

    def corrections(self) -> dict[str, np.ndarray]:
        """By layer (d_out, d_in), what the shared pair lacks of the exact mean product; whoever has the base adds it."""
        return {}

    def state(self) -> dict[str, np.ndarray]:
        """What must survive beside the shared tensors for a resumed run to give the same numbers."""
        return {}

    def restore(self, state: Mapping[str, np.ndarray], devices: Sequence[str]) -> None:
        """Continue from :meth:`state`; ``devices`` are those of the arm, sorted."""


def require_pairs(name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise :class:`ConfigError` unless both factors of each layer are shared."""
    paired = {tensor for pair in pair_names(shapes).values() for tensor in pair}
    lonely = [tensor for tensor in sorted(shapes) if tensor_kind(tensor) in ("A", "B") and tensor not in paired]
    if lonely or not paired:
        raise ConfigError(
            f"algorithm {name!r} needs A and B of each layer, but the split shares {lonely[0] if lonely else 'no pair'!r} alone: "
            "set adapter.split = 'gates' or 'all-shared', or choose algorithm = 'fedavg'"
        )


class Algorithm(Table, Aggregator):
    """One algorithm, and as its fields the options: a table of settings under its name.

    A subclass is one file, and one line in :data:`fl.algorithms.table.ALGORITHMS`.
    """

    name: ClassVar[str]
    about: ClassVar[About]
    role: ClassVar[Role] = Role.AGGREGATION
    can: ClassVar[Capabilities] = Capabilities()
    table: ClassVar[str] = ""  # the table of its options; empty: its own name
    split: ClassVar[str] = ""  # the only split that it works with
    decides_split: ClassVar[bool] = False  # a personalization that says itself what is private, whatever the split
    aggregates: ClassVar[bool] = False  # a personalization that aggregates by itself

    def refused(self, config: RunConfig) -> str:
        """Why it cannot work with these settings, beyond what :attr:`can` says; an empty text if it can."""
        return ""

    def require_fit(self, shapes: Mapping[str, tuple[int, ...]], devices: int) -> None:
        """Raise :class:`ConfigError` unless it works on these shared tensors with so many devices in a round."""
        if self.can.pairs:
            require_pairs(self.name, shapes)

    def trained(self, config: RunConfig) -> tuple[str, str]:
        """Gate and split of the personalized arm."""
        return "none", "all-shared"

    def local(self, plan: LocalPlan, server_round: int) -> LocalPlan:
        """A device's plan of one round as this algorithm wants it."""
        return plan

    def begin(self, incoming: State, load: Load) -> Correction | None:
        """The correction of a device's gradients in one round, None without one."""
        return None

    @property
    def second(self) -> OwnAdapter | None:
        """The second adapter that each device trains beside the shared one, None without one."""
        return None

    def aggregator(self) -> Aggregator:
        """The aggregator's half of one arm: the algorithm itself, unless it keeps state, which needs a fresh object."""
        return self
