"""Every algorithm by name, and those that a run chooses. A new one is a file and a line here, or another package's entry point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from fl.adapters.gates.table import GATES
from fl.algorithms.base import Algorithm, Role
from fl.algorithms.fedprox import FedProx
from fl.algorithms.personal.clusters import Clusters
from fl.algorithms.personal.ditto import Ditto
from fl.algorithms.personal.dual_adapter import DualAdapter
from fl.algorithms.personal.enrolment import EnrolledPart
from fl.algorithms.personal.fedper import FedPer
from fl.algorithms.personal.fedrep import FedRep
from fl.algorithms.personal.finetune import Finetune
from fl.algorithms.personal.gates import Gates
from fl.algorithms.personal.interpolation import Interpolation
from fl.algorithms.personal.mixture import Mixture
from fl.algorithms.personal.pfedme import PFedMe
from fl.algorithms.shared.fedavg import FedAvg
from fl.algorithms.shared.fedex import FedEx
from fl.algorithms.shared.fednova import FedNova
from fl.algorithms.shared.fedsa import FedSa
from fl.algorithms.shared.ffa import Ffa
from fl.algorithms.shared.flexlora import FlexLora
from fl.algorithms.shared.flora import Flora
from fl.algorithms.shared.robust import (
    Bulyan,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    MultiKrum,
    NormBound,
    TrimmedMean,
)
from fl.algorithms.shared.rolora import RoLora
from fl.algorithms.shared.scaffold import Scaffold
from fl.algorithms.shared.sparsity_weighted import SparsityWeighted
from fl.core.errors import ConfigError
from fl.core.registry import Registry
from fl.methods.table import METHODS
from fl.settings.fields import Table, words
from fl.settings.names import PERSONALIZED

if TYPE_CHECKING:
    from fl.settings.config import RunConfig

Kind = TypeVar("Kind", bound=Algorithm)
_OWN: tuple[type[Algorithm], ...] = (
    FedAvg,
    FedNova,
    Scaffold,
    Ffa,
    FedSa,
    RoLora,
    FlexLora,
    SparsityWeighted,
    FedEx,
    Flora,
    CoordinateMedian,
    TrimmedMean,
    Krum,
    MultiKrum,
    Bulyan,
    NormBound,
    GeometricMedian,
    FedProx,
    Gates,
    EnrolledPart,
    FedPer,
    FedRep,
    Ditto,
    Mixture,
    PFedMe,
    DualAdapter,
    Interpolation,
    Clusters,
    Finetune,
)
ALGORITHMS: Registry[type[Algorithm]] = Registry("algorithm", {algorithm.name: algorithm for algorithm in _OWN})


def names_of(*roles: Role) -> tuple[str, ...]:
    """The names of the algorithms with one of these roles."""
    return tuple(name for name, algorithm in ALGORITHMS.items() if algorithm.role in roles)


def choosable() -> tuple[str, ...]:
    """What the setting ``algorithm.name`` takes."""
    return tuple(name for name, algorithm in ALGORITHMS.items() if algorithm.role is not Role.ARM)


def option_tables() -> dict[str, type[Table]]:
    """The algorithms that have options of their own, by name: each is a table of settings."""
    return {cls.name: cls for cls in ALGORITHMS.values() if cls.model_fields and not cls.table}


@dataclass(frozen=True)
class Chosen:
    """The algorithms of a run, one or more a role."""

    shared: Algorithm
    personal: Algorithm
    local: tuple[Algorithm, ...] = ()

    @property
    def all(self) -> tuple[Algorithm, ...]:
        """All of them."""
        return (self.shared, self.personal, *self.local)


def with_options(config: RunConfig, kind: type[Kind]) -> Kind:
    """An algorithm with its options of these settings."""
    options = config.algorithm.options(kind.table or kind.name)
    return kind(**dict(options or {}))


def make_algorithm(config: RunConfig, name: str) -> Algorithm:
    """An algorithm by its name; :class:`ConfigError` for an unknown one."""
    return with_options(config, ALGORITHMS.find(name))


def usual_personalization(config: RunConfig) -> type[Algorithm]:
    """What is personal where no algorithm says it: enrolment, unless the settings themselves say what is private.

    They do with a gate (also that of the method), with a split or with gates in all arms: :class:`Gates` trains that. Enrolment is
    what the arm personalized does, to A or B: :class:`Gates`, which needs neither, also stands where there is no such arm and where
    the method trains something else.
    """
    adapter = config.adapter
    said = bool(GATES[config.gate].parameters) or adapter.split != Gates.name or config.gated_everywhere
    able = PERSONALIZED in config.arms and METHODS[adapter.method].low_rank
    return EnrolledPart if able and not said else Gates


def chosen(config: RunConfig) -> Chosen:
    """The algorithms that ``algorithm.name`` names, FedAvg and :func:`usual_personalization` where it names none.

    One of each role, but for local terms.
    """
    found: dict[Role, list[Algorithm]] = {Role.AGGREGATION: [], Role.PERSONALIZATION: [], Role.LOCAL: []}
    for name in dict.fromkeys(words(config.algorithm.name)):
        algorithm = make_algorithm(config, name)
        found[algorithm.role].append(algorithm)
    for role in (Role.AGGREGATION, Role.PERSONALIZATION):
        if len(found[role]) > 1:
            one, other = (algorithm.name for algorithm in found[role][:2])
            raise ConfigError(
                f"algorithm = {config.algorithm.name!r} names {one!r} and {other!r}, and a run has one {role} algorithm: leave one out"
            )
    shared = found[Role.AGGREGATION] or [with_options(config, FedAvg)]
    personal = found[Role.PERSONALIZATION] or [with_options(config, usual_personalization(config))]
    return Chosen(shared[0], personal[0], tuple(found[Role.LOCAL]))
