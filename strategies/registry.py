"""Every strategy by name: what it shares, what it keeps, where it comes from, and how it is built from the settings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fl.algorithms.arms import Arm, federates
from fl.algorithms.attacks import attackers
from fl.core.errors import ConfigError
from fl.privacy.plan import Plan, check_privacy
from fl.protocol.forms import ENCODED_FORM, bounded_mean, clips_at_device, form_of
from fl.protocol.wire import FEDERATE
from fl.settings.config import FederationConfig, RunConfig
from fl.settings.names import EDGE, LABEL_SWAP, NONE, SERVER_OPTIMIZERS
from strategies.base import SharedFedAvg
from strategies.hostile import Attacker
from strategies.lora import Corrected, FedEx, FedSa, Ffa, FlexLora, Flora, HetLora, RoLora
from strategies.optimizers import LEARNING_RATES, ServerOptimizer
from strategies.personal import CLUSTERS, ClusteredFedAvg, check_personalization
from strategies.private import PRIVATE
from strategies.robust import (
    Bulyan,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    MultiKrum,
    NormBound,
    TrimmedMean,
)
from strategies.scaffold import Scaffold
from strategies.weighting import FedNova

Options = Callable[[FederationConfig], dict[str, Any]]
RULE, OPTIMIZER, DEVICE_TERM, PERSONAL = "rule", "server optimizer", "local term", "personalization"
PRIVACY = "privacy"
MEANS = "fedavg, ffa, fedsa, rolora; server optimizers, edge sums"
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
    mean: bool = False  # whether the rule is a mean of updates, which noise and secure sums need


def _hostile(federation: FederationConfig) -> dict[str, Any]:
    return {"hostile_share": federation.hostile_share}


ENTRIES: tuple[Entry, ...] = (
    Entry("fedavg", "what the split shares", "nothing", "McMahan et al. 2017", "1602.05629",
          "everything", SharedFedAvg, mean=True),
    Entry("fednova", "what the split shares", "nothing", "Wang et al. 2020", "2007.07481", NO_SUMS, FedNova),
    Entry("scaffold", "what the split shares, and a control variate for each", "their mean control variate; a device "
          "keeps its own", "Karimireddy et al. 2020", "1910.06378",
          "server optimizers, fedprox, edge sums; not pfedme, clusters", Scaffold),
    Entry("ffa", "B", "nothing; A is fixed by the seed", "Sun et al. 2024", "2403.12313",
          "split ffa; server optimizers, fedprox, edge sums, noise and secure sums", Ffa, split="ffa", mean=True),
    Entry("fedsa", "A", "nothing; B stays on its device", "Guo et al. 2024", "2410.01463",
          "split fedsa; server optimizers, fedprox, edge sums, noise and secure sums", FedSa, split="fedsa", mean=True),
    Entry("rolora", "A and B, one of them trains in a round", "nothing", "Chen et al. 2024", "2409.02346",
          "server optimizers, fedprox, edge sums, noise and secure sums", RoLora, mean=True),
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
    *(Entry(name, shares, keeps, paper, arxiv, composes, kind=PERSONAL, setting=setting)
      for name, shares, keeps, paper, arxiv, composes, setting in (
        ("fedper", "all but the last layers", "nothing; a device keeps the last layers", "Arivazhagan et al. 2019",
         "1912.00818", "every strategy but ffa and fedsa", "personalization"),
        ("fedrep", "all but the last layers", "nothing; a device keeps the last layers", "Collins et al. 2021",
         "2102.07078", "every strategy but ffa and fedsa", "personalization"),
        ("ditto", "A and B", "nothing; a device keeps an adapter held near the shared one", "Li et al. 2021", "2012.04221",
         "every strategy but ffa and fedsa", "personalization"),
        ("apfl", "A and B", "nothing; a device keeps an adapter and its weight beside the shared one", "Deng et al. 2020",
         "2003.13461", "every strategy but ffa and fedsa", "personalization"),
        ("pfedme", "A and B, which follow the personal ones", "nothing; a device keeps an adapter", "Dinh et al. 2020",
         "2006.08848", "every strategy but ffa, fedsa, rolora and scaffold; not fedprox", "personalization"),
        ("feddpa", "A and B", "nothing; a device keeps a second adapter and a gate over both", "Yang et al. 2024",
         "2403.19211", "every strategy but ffa and fedsa", "personalization"),
        ("interpolation", "A and B", "nothing; a device keeps an adapter and what to weigh it by, input by input",
         "after Yang et al. 2024", "2403.19211", "every strategy but ffa and fedsa", "personalization"),
        ("clusters", "A and B", "a model for each cluster of devices", "Sattler et al. 2019", "1910.01991",
         "fedavg and fedprox, all devices in each round", "personalization"),
        ("global+finetune", "A and B", "nothing; a device keeps what it made of them after the last round",
         "Yu et al. 2020", "2002.04758", "every strategy but ffa and fedsa", "arms"),
      )),
    Entry("noise at the server", "what the split shares", "an account of epsilon", "McMahan et al. 2018", "1710.06963",
          f"{MEANS}, secure sums, codecs", kind=PRIVACY, setting="dp"),
    Entry("distributed noise", "masked vectors with a share of the noise", "an account of epsilon",
          "Kairouz et al. 2021", "2102.06387", f"{MEANS}; needs secure sums", kind=PRIVACY, setting="dp"),
    Entry("local noise", "what the split shares, with noise", "an account of epsilon", "Kasiviswanathan et al. 2008",
          "0803.0924", "every strategy, edge sums, codecs; not secure sums", kind=PRIVACY, setting="dp"),
    Entry("adaptive clipping", "one bit more", "the clipping norm", "Andrew et al. 2019", "1905.03871",
          "noise at the server, distributed noise", kind=PRIVACY, setting="clip-quantile"),
    Entry("secure sums", "masked vectors", "nothing", "Bonawitz et al. 2016", "1611.04482",
          f"{MEANS}, noise; not codecs", kind=PRIVACY, setting="secure-sum"),
    Entry("codecs", "encodings; with error feedback a device keeps what they lost", "nothing", "Karimireddy et al. 2019",
          "1901.09847", "every strategy, noise; edge sums with fp16, int8:LIMIT, int4:LIMIT", kind=PRIVACY, setting="codec"),
)  # fmt: skip
RULES: Mapping[str, Entry] = {entry.name: entry for entry in ENTRIES if entry.cls is not None}


def make_optimizer(federation: FederationConfig) -> ServerOptimizer | None:
    """The server optimizer of the settings, without state; None if they name none."""
    name = federation.server_optimizer
    if name == SERVER_OPTIMIZERS[0]:
        return None
    rate = federation.server_learning_rate or LEARNING_RATES[name]
    return ServerOptimizer(name, rate, federation.server_momentum)


def arm_entry(config: RunConfig, arm: Arm) -> Entry:
    """The rule of one arm. One that needs a split of its own holds for the personalized arm, whose split can be set."""
    entry = RULES[config.federation.strategy]
    plain = not federates(arm) or (entry.split and arm.name != "personalized")
    return RULES["fedavg"] if plain else entry


def make_strategy(config: RunConfig, arm: Arm, *, plan: Plan | None = None, **common: Any) -> SharedFedAvg:
    """The strategy of an arm; ``common`` are the fields that all strategies have. :class:`ConfigError` where it cannot work.

    With a ``plan`` an arm that federates keeps its promise; it is needed where the settings under ``[privacy]`` ask for one.
    """
    entry = arm_entry(config, arm)
    assert entry.cls is not None
    options = {**common, **entry.options(config.federation), "aggregation": config.federation.aggregation}
    if not federates(arm):
        return entry.cls(**options)
    privacy = config.privacy
    options["optimizer"] = make_optimizer(config.federation)
    if arm.personal == CLUSTERS:
        ours = config.personal
        return ClusteredFedAvg(**options, most=ours.clusters, agreement=ours.cluster_agreement)
    if form_of(config, arm, FEDERATE) == ENCODED_FORM:
        options["codec"] = privacy.codec
    if bounded_mean(config):
        if plan is None:
            raise ConfigError("a private mean needs the plan of its run: see fl.privacy.plan.make_plan")
        return PRIVATE[entry.cls](**options, plan=plan, timeout=config.federation.round_timeout)
    if clips_at_device(config):
        noise = plan.noise_multiplier * privacy.update_norm if plan is not None else 0.0
        options["job"] = replace(options["job"], bound=privacy.update_norm, noise=noise)
    return entry.cls(**options)


def make_attacker(config: RunConfig, devices: Collection[str]) -> Attacker | None:
    """The hostile devices of a study, None if its updates are as the devices made them."""
    federation = config.federation
    if federation.attack in (NONE, LABEL_SWAP):
        return None
    return Attacker(federation.attack, attackers(devices, federation.attacker_share, config.seed), config.seed)


def check_strategy(config: RunConfig) -> None:
    """Refuse what the settings alone show to be impossible: :class:`ConfigError` before anything is written or loaded."""
    federation = config.federation
    entry = RULES[federation.strategy]
    assert entry.cls is not None
    split = config.adapter.split
    check_personalization(config)
    check_privacy(config, mean=entry.mean and config.personal.personalization != CLUSTERS)
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
