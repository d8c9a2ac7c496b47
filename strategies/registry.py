"""Every strategy by name: what it shares, what it keeps, where it comes from, and how it is built from the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fl.arms import EVERYONE, Arm
from fl.config import EDGE, SERVER_OPTIMIZERS, FederationConfig, RunConfig
from fl.errors import ConfigError
from strategies.base import SharedFedAvg
from strategies.lora import Corrected, FedEx, FedSa, Ffa, FlexLora, Flora, HetLora, RoLora
from strategies.optimizers import LEARNING_RATES, ServerOptimizer
from strategies.robust import (
    Bulyan,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    MultiKrum,
    NormBound,
    TrimmedMean,
)
from strategies.weighting import FedNova

Options = Callable[[FederationConfig], dict[str, Any]]
RULE, OPTIMIZER, DEVICE_TERM = "rule", "server optimizer", "local term"
NO_SUMS = "server optimizers, fedprox; not edge sums"


@dataclass(frozen=True)
class Entry:
    """One row of the table of strategies. ``cls`` is None where another setting than ``strategy`` switches it on."""

    name: str
    shares: str
    keeps: str
    paper: str
    arxiv: str
    composes: str
    cls: type[SharedFedAvg] | None = None
    options: Options = lambda federation: {}
    kind: str = RULE
    setting: str = "strategy"
    split: str = ""  # the only one that it works with


def _hostile(federation: FederationConfig) -> dict[str, Any]:
    return {"hostile_share": federation.hostile_share}


ENTRIES: tuple[Entry, ...] = (
    Entry("fedavg", "what the split shares", "nothing", "McMahan et al. 2017", "1602.05629",
          "everything", SharedFedAvg),
    Entry("fednova", "what the split shares", "nothing", "Wang et al. 2020", "2007.07481", NO_SUMS, FedNova),
    Entry("ffa", "B", "nothing; A is fixed by the seed", "Sun et al. 2024", "2403.12313",
          "split ffa; server optimizers, fedprox, edge sums", Ffa, split="ffa"),
    Entry("fedsa", "A", "nothing; B stays on its device", "Guo et al. 2024", "2410.01463",
          "split fedsa; server optimizers, fedprox, edge sums", FedSa, split="fedsa"),
    Entry("rolora", "A and B, one of them trains in a round", "nothing", "Chen et al. 2024", "2409.02346",
          "server optimizers, fedprox, edge sums", RoLora),
    Entry("flexlora", "A and B", "nothing", "Bai et al. 2024", "2402.11505", NO_SUMS, FlexLora),
    Entry("hetlora", "A and B", "nothing", "Cho et al. 2024", "2401.06432", NO_SUMS, HetLora),
    Entry("fedex", "A and B", "the residual mean(BA) - mean(B) mean(A)", "Singhal et al. 2024", "2410.09432",
          "fedprox; neither server optimizers nor edge sums", FedEx),
    Entry("flora", "A and B", "what the stack has beyond the devices' rank", "Wang et al. 2024", "2409.05976",
          "fedprox; neither server optimizers nor edge sums", Flora),
    Entry("median", "what the split shares", "nothing", "Yin et al. 2018", "1803.01498", NO_SUMS, CoordinateMedian),
    Entry("trimmed-mean", "what the split shares", "nothing", "Yin et al. 2018", "1803.01498", NO_SUMS, TrimmedMean,
          lambda federation: {"trim_share": federation.trim_share}),
    Entry("krum", "what the split shares", "nothing", "Blanchard et al. 2017", "1703.02757", NO_SUMS, Krum, _hostile),
    Entry("multi-krum", "what the split shares", "nothing", "Blanchard et al. 2017", "1703.02757", NO_SUMS,
          MultiKrum, _hostile),
    Entry("bulyan", "what the split shares", "nothing", "El Mhamdi et al. 2018", "1802.07927", NO_SUMS, Bulyan, _hostile),
    Entry("norm-bound", "what the split shares", "nothing", "Sun et al. 2019", "1911.07963", NO_SUMS, NormBound,
          lambda federation: {"norm_bound": federation.norm_bound}),
    Entry("geometric-median", "what the split shares", "nothing", "Pillutla et al. 2022", "1912.13445", NO_SUMS,
          GeometricMedian),
    Entry("fedavgm", "what the split shares", "momentum", "Hsu et al. 2019", "1909.06335",
          "every strategy but fedex and flora", kind=OPTIMIZER, setting="server-optimizer"),
    *(Entry(name, "what the split shares", "two moments", "Reddi et al. 2021", "2003.00295",
            "every strategy but fedex and flora", kind=OPTIMIZER, setting="server-optimizer")
      for name in ("fedadagrad", "fedyogi", "fedadam")),
    Entry("fedprox", "what the split shares", "nothing", "Li et al. 2020", "1812.06127", "everything",
          kind=DEVICE_TERM, setting="proximal"),
)  # fmt: skip
RULES: Mapping[str, Entry] = {entry.name: entry for entry in ENTRIES if entry.cls is not None}


def make_optimizer(federation: FederationConfig) -> ServerOptimizer | None:
    """The server optimizer of the settings, without state; None if they name none."""
    name = federation.server_optimizer
    if name == SERVER_OPTIMIZERS[0]:
        return None
    rate = federation.server_learning_rate or LEARNING_RATES[name]
    return ServerOptimizer(name, rate, federation.server_momentum)


def federates(arm: Arm) -> bool:
    """Whether devices of this arm put together what they learned, so that a strategy has something to do."""
    return arm.devices != EVERYONE and not arm.starts_from and arm.split != "all-private"


def arm_entry(config: RunConfig, arm: Arm) -> Entry:
    """The rule of one arm. One that needs a split of its own holds for the personalized arm, whose split can be set."""
    entry = RULES[config.federation.strategy]
    plain = not federates(arm) or (entry.split and arm.name != "personalized")
    return RULES["fedavg"] if plain else entry


def make_strategy(config: RunConfig, arm: Arm, **common: Any) -> SharedFedAvg:
    """The strategy of an arm; ``common`` are the fields that all strategies have. :class:`ConfigError` where it cannot work."""
    entry = arm_entry(config, arm)
    assert entry.cls is not None
    optimizer = make_optimizer(config.federation) if federates(arm) else None
    return entry.cls(
        **common, **entry.options(config.federation), aggregation=config.federation.aggregation, optimizer=optimizer
    )


def check_strategy(config: RunConfig) -> None:
    """Refuse what the settings alone show to be impossible: :class:`ConfigError` before anything is written or loaded."""
    federation = config.federation
    entry = RULES[federation.strategy]
    assert entry.cls is not None
    split = config.adapter.split
    if entry.cls.single_devices and federation.aggregation == EDGE:
        raise ConfigError(
            f"strategy = {entry.name!r} needs each device's update, and aggregation = 'edge' sends sums over them: "
            "set aggregation = 'device', or choose a strategy that works on sums"
        )
    if entry.split and (split != entry.split or "personalized" not in config.arms):
        raise ConfigError(
            f"strategy = {entry.name!r} works in the arm personalized with split = {entry.split!r}, and here split = {split!r} "
            f"and arms = {federation.arms!r}: set both, or choose strategy = 'fedavg'"
        )
    if issubclass(entry.cls, Corrected) and federation.server_optimizer != SERVER_OPTIMIZERS[0]:
        raise ConfigError(
            f"strategy = {entry.name!r} keeps what its own pair lacks, and server-optimizer = "
            f"{federation.server_optimizer!r} makes another pair of it: set server-optimizer = 'none', or strategy = 'flexlora'"
        )
