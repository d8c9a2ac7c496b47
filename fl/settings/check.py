"""Settings that do not go together, refused before anything is computed: every refusal is derived from capabilities, here alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from fl.adapters.gates.table import GATES
from fl.algorithms.base import Algorithm, Role
from fl.algorithms.shared.fedavg import FedAvg
from fl.algorithms.table import ALGORITHMS, Chosen, chosen
from fl.codecs.base import Codec, CompressionError
from fl.codecs.table import make_codec
from fl.core.errors import ConfigError
from fl.methods.table import METHODS
from fl.settings import names
from fl.settings.fields import words

if TYPE_CHECKING:
    from fl.settings.config import RunConfig

MADE_FROM = {"global+finetune": "global", "neutral": "personalized"}
ONE_FACTOR_SPLITS = ("fedsa", "ffa")


def check_together(config: RunConfig) -> None:
    """Raise :class:`ConfigError` for the first pair of settings that do not go together, with the remedy."""
    found = chosen(config)
    try:
        codec = make_codec(config.codec.name)
    except CompressionError as error:
        raise ConfigError(f"codec = {config.codec.name!r}: {error}") from None
    given = f"device-ranks = {config.adapter.device_ranks!r}"
    uneven = (f"{given} does not go with {why}, or leave device-ranks empty" for why in _ranks(config, found))
    others = (_algorithms(config, found, codec), _privacy(config, found, codec))
    for why in chain(_arms(config), _method(config, found), uneven, *others):
        raise ConfigError(why)


def _arms(config: RunConfig) -> Iterator[str]:
    """Arms, sampling and the split."""
    for arm, source in MADE_FROM.items():
        if arm in config.arms and source not in config.arms:
            yield f"arm {arm!r} is made from arm {source!r}: add {source!r} to arms"
    sample = config.federation.sample
    if sample > 1 and not sample.is_integer():
        yield f"sample = {sample:g} is neither a share nor a number of devices: at most 1, or a whole number above 1"
    preset = config.adapter.split
    if preset.startswith(names.LAYERS_PREFIX):
        try:
            re.compile(preset.removeprefix(names.LAYERS_PREFIX))
        except re.error as error:
            yield f"split = {preset!r} is not a regular expression: {error}"
    elif preset not in names.SPLITS:
        yield f"split = {preset!r} is unknown: one of {', '.join(names.SPLITS)}, {names.LAYERS_PREFIX}<pattern>"


def _method(config: RunConfig, found: Chosen) -> Iterator[str]:
    """What only some methods of adaptation can do, and only some tasks."""
    from fl.tasks.table import TASKS  # whose objects know these settings

    method, split, personalized = config.adapter.method, config.adapter.split, "personalized" in config.arms
    low_rank, able = METHODS[method].low_rank, low_rank_methods()
    gate, trained = found.personal.trained(config)
    if personalized and trained == split == "gates" and not GATES[gate].parameters:
        takes_gates = METHODS[method].own_gate is None
        without = f"gate = {gate!r}" if takes_gates else f"method = {method!r}"
        other = "choose a gate such as self, or" if takes_gates else "choose"
        yield (
            f"{without} with split = 'gates' leaves nothing private: {other} another split such as fedsa or "
            f"{names.LAYERS_PREFIX}<pattern>, or leave the arms personalized and neutral out"
        )
    if config.gated_everywhere and METHODS[method].own_gate is None and not GATES[config.gate].parameters:
        yield "gated-arms = 'all' and gate = 'none' gives no arm a gate: choose one such as self, or gated-arms = 'personalized'"
    varied = [key for key, value in config.train.augmentation.model_dump(by_alias=True).items() if value]
    if varied and not TASKS[config.task].augments:
        yield f"{varied[0]} varies speech, and task = {config.task!r} has none: set it to 0"
    if not METHODS[method].sized and config.adapter.parameter_budget:
        yield (
            f"parameter-budget = {config.adapter.parameter_budget} and method = {method!r}: its tensors are those of the base, so "
            "it has no size to choose; set parameter-budget = 0"
        )
    if config.train.cohort > 1 and not low_rank:
        yield (
            f"cohort = {config.train.cohort} and method = {method!r}: only {able} train many devices in one computation; "
            "set cohort = 1"
        )
    one_factor = personalized and trained in ONE_FACTOR_SPLITS
    parts = (found.shared, found.personal) if personalized else (found.shared,)
    needs = [f"algorithm = {part.name!r}" for part in parts if part.can.low_rank]
    needs += [f"split = {split!r}"] if one_factor else []
    if needs and not low_rank:
        yield (
            f"{needs[0]} is about A and B, which method = {method!r} has not: choose split = 'all-shared' or "
            f"'{names.LAYERS_PREFIX}<pattern>', algorithm = 'fedavg', 'fedper' or 'fedrep', or one of the methods {able}"
        )
    if found.shared.can.pairs and one_factor:
        yield (
            f"algorithm = {found.shared.name!r} needs A and B of each layer, and split = {split!r} shares one of them alone: "
            "set split = 'gates' or 'all-shared', or choose algorithm = 'fedavg'"
        )


def _ranks(config: RunConfig, found: Chosen) -> Iterator[str]:
    """What does not go with devices of different ranks."""
    rank, split, budget = config.adapter.rank, config.adapter.split, config.adapter.parameter_budget
    if not config.adapter.device_ranks:
        return
    given = words(config.adapter.device_ranks)
    if not given or not all(re.fullmatch("[0-9]{1,4}", word) and 1 <= int(word) <= rank for word in given):
        yield f"rank = {rank}: give whole numbers from 1 to {rank} with commas between, or a larger rank"
    if not METHODS[config.adapter.method].low_rank:
        yield f"method = {config.adapter.method!r}, which has no pairs of A and B: choose one of {low_rank_methods()}"
    if budget > 0:
        yield f"parameter-budget = {budget}, from which rank would follow: set parameter-budget = 0"
    if not found.shared.can.ranks:
        able = [name for name, cls in ALGORITHMS.items() if cls.can.ranks and cls.role is found.shared.role]
        yield f"algorithm = {found.shared.name!r}, which has no rule for them: choose one of {', '.join(able)}"
    if not found.personal.can.ranks:
        yield f"algorithm = {found.personal.name!r}, whose personal adapters have one rank: leave it out, so that people enrol"
    if split in ONE_FACTOR_SPLITS:
        yield f"split = {split!r}, which parts the two factors of a pair: set split = 'gates'"
    shared_gates = "personalized" in config.arms and split not in ("gates", "all-private")
    if GATES[config.gate].ranked and (config.gated_everywhere or shared_gates):
        yield (
            f"gates of the rank's coordinates ({config.gate!r}) that are shared, though some devices lack coordinates: set "
            "gated-arms = 'personalized' and split = 'gates', or gate = 'none'"
        )


def low_rank_methods() -> str:
    """The methods with pairs of A and B, as a message lists them."""
    return ", ".join(name for name, method in METHODS.items() if method.low_rank)


def has_device_half(algorithm: Algorithm) -> bool:
    """Whether an algorithm changes local training."""
    cls = type(algorithm)
    return cls.local is not Algorithm.local or cls.begin is not Algorithm.begin


def _algorithms(config: RunConfig, found: Chosen, codec: Codec) -> Iterator[str]:
    """What the algorithms themselves, their roles and their capabilities refuse."""
    federation, split = config.federation, config.adapter.split
    shared, personal = found.shared, found.personal
    if personal.decides_split:
        if "personalized" not in config.arms:
            yield (
                f"algorithm = {personal.name!r} is what the arm personalized does, and arms = {federation.arms!r}: add personalized"
            )
        if split != "gates":
            yield (
                f"algorithm = {personal.name!r} decides by itself what is private, and split = {split!r} says otherwise: leave "
                "split at 'gates', or set algorithm = 'gates'"
            )
    if shared.split and (split != shared.split or "personalized" not in config.arms):
        yield (
            f"algorithm = {shared.name!r} works in the arm personalized with split = {shared.split!r}, and here split = {split!r} "
            f"and arms = {federation.arms!r}: set both, or choose algorithm = 'fedavg'"
        )
    for algorithm in found.all:
        if why := algorithm.refused(config):
            yield why
        if federation.aggregation == names.EDGE and not algorithm.can.sums:
            yield (
                f"algorithm = {algorithm.name!r} needs each device's update, and aggregation = 'edge' sends sums over them: "
                "set aggregation = 'device', or choose an algorithm that works on sums"
            )
        if config.server_optimizer.name != names.NONE and not algorithm.can.optimizer:
            yield (
                f"algorithm = {algorithm.name!r} keeps more than the shared tensors, and server-optimizer = "
                f"{config.server_optimizer.name!r} would move them elsewhere: set server-optimizer = 'none', or algorithm = 'flexlora'"
            )
        if federation.sample != 1 and not algorithm.can.sampled:
            yield f"algorithm = {algorithm.name!r} does not go with sample = {federation.sample:g}: set sample = 1.0"
        if not codec.lossless and not algorithm.can.encoded:
            yield (
                f"codec = {config.codec.name!r} is for updates of one set of shared tensors, and {algorithm.name} sends or keeps more "
                "beside them: set codec = 'fp32'"
            )
    if personal.aggregates and (not isinstance(shared, FedAvg) or config.attack.attacks_updates):
        odd = f"algorithm {shared.name!r}" if not isinstance(shared, FedAvg) else f"attack = {config.attack.name!r}"
        yield (
            f"algorithm = {personal.name!r} aggregates by itself and looks at every update: it does not go with {odd}; set "
            "algorithm = 'fedavg' beside it and attack = 'none'"
        )
    second = personal.second
    if second is not None and second.follows and (has_device_half(shared) or found.local):
        odd = shared.name if has_device_half(shared) else found.local[0].name
        yield (
            f"algorithm = {personal.name!r} moves the shared part towards the personal one, and {odd!r} changes how it is trained: "
            "leave one of them out"
        )


def _privacy(config: RunConfig, found: Chosen, codec: Codec) -> Iterator[str]:
    """Noise, secure sums, codecs and attacks."""
    privacy, dp, attack = config.privacy, config.privacy.dp, config.attack
    noise, sums, edge = dp.mode, privacy.secure_sum.mode == names.PAIRWISE, config.federation.aggregation == names.EDGE
    central, compressed = noise in (names.SERVER_NOISE, names.DISTRIBUTED_NOISE), not codec.lossless
    odd = next((a for a in (found.shared, found.personal) if not a.can.mean), None)
    means = " or ".join(repr(name) for name, one in ALGORITHMS.items() if one.can.mean and one.role is Role.AGGREGATION)
    if odd and sums:
        yield (
            f"algorithm = {odd.name!r} needs each device's update, and secure-sum = 'pairwise' gives sums alone: choose "
            f"algorithm = {means}, or secure-sum = 'none'"
        )
    if odd and central:
        yield (
            f"algorithm = {odd.name!r} is no mean of updates, so what one person can change is not known and dp = {noise!r} "
            f"cannot be accounted for: choose algorithm = {means}, or dp = 'local'"
        )
    if noise != names.NONE and found.personal.aggregates:
        yield f"algorithm = {found.personal.name!r} keeps several models and looks at every update: set dp = 'none'"
    if noise == names.DISTRIBUTED_NOISE and not sums:
        yield (
            "dp = 'distributed' gives each device a share of the noise, which protects a sum and no single update: "
            "set secure-sum = 'pairwise', or dp = 'server'"
        )
    if noise == names.LOCAL_NOISE and sums:
        yield (
            "dp = 'local' adds all noise to each update, which needs no secure sum: set secure-sum = 'none', or dp = 'distributed' "
            "for less noise"
        )
    if privacy.clip_quantile > 0 and not central:
        yield (
            f"clip-quantile = {privacy.clip_quantile:g} learns from the norms of all updates together, which dp = {noise!r} does "
            "not do: set clip-quantile = 0, or dp = 'server' or 'distributed'"
        )
    if dp.sampling == "poisson" and not central:
        yield (
            f"sampling = 'poisson' is for the account of dp = 'server' or 'distributed', and dp = {noise!r} has none of it: "
            "set sampling = 'fixed'"
        )
    if 0 < privacy.secure_sum.threshold <= 0.5:
        yield (
            f"secure-sum.threshold = {privacy.secure_sum.threshold:g} lets a server restore both secrets of a device from two "
            "halves: set 0, or more than 0.5"
        )
    if compressed and sums:
        yield (
            f"codec = {config.codec.name!r} with secure-sum = 'pairwise': masked numbers have a grid of their own (4 bytes each): "
            "set codec = 'fp32'"
        )
    if compressed and edge and not codec.sum_compatible:
        yield (
            f"codec = {config.codec.name!r} has no sums, and aggregation = 'edge' sends sums over devices: "
            "set aggregation = 'device', or a codec with sums: fp16, int8:LIMIT, int4:LIMIT"
        )
    if codec.limit is not None and privacy.clip_quantile > 0:
        yield f"codec = {config.codec.name!r} needs updates within a limit, and clip-quantile moves the norm: set clip-quantile = 0"
    if config.codec.error_feedback and not compressed:
        yield "error-feedback adds what compression lost, and codec = 'fp32' loses nothing: choose a codec"
    if config.device_ranks and (noise != names.NONE or sums or compressed or attack.attacks_updates):
        yield (
            f"device-ranks = {config.adapter.device_ranks!r}: the update of a device of smaller rank is for the most part what it has no "
            "room for, which would be clipped, noised, encoded or attacked as if it were learned: set dp = 'none', secure-sum = "
            "'none', codec = 'fp32' and no attack on updates, or leave device-ranks empty"
        )
    if attack.attacks_updates and (edge or sums):
        yield (
            f"attack = {attack.name!r} changes single updates, and the aggregator sees sums here: "
            "set aggregation = 'device' and secure-sum = 'none', or attack = 'label-swap'"
        )
