"""Settings that do not go together, refused before anything is computed: every refusal is derived from capabilities, here alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fl.adapters.gates.table import GATES
from fl.algorithms.base import Algorithm, Role
from fl.algorithms.shared.fedavg import FedAvg
from fl.algorithms.table import ALGORITHMS, Chosen, chosen
from fl.codecs.base import CompressionError
from fl.codecs.table import make_codec
from fl.core.errors import ConfigError
from fl.methods.table import METHODS
from fl.settings.fields import words
from fl.settings.names import (
    DISTRIBUTED_NOISE,
    EDGE,
    LAYERS_PREFIX,
    LOCAL_NOISE,
    NONE,
    PAIRWISE,
    SERVER_NOISE,
    SPLITS,
)

if TYPE_CHECKING:
    from fl.settings.config import RunConfig

MADE_FROM = {"global+finetune": "global", "neutral": "personalized"}
ONE_FACTOR_SPLITS = ("fedsa", "ffa")


def check_together(config: RunConfig) -> None:
    """Raise :class:`ConfigError` for the first pair of settings that do not go together, with the remedy."""
    found = chosen(config)
    for checks in (
        _arms(config),
        _method(config, found),
        _ranks(config, found),
        _algorithms(config, found),
        _privacy(config, found),
    ):
        for why in checks:
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
    if preset.startswith(LAYERS_PREFIX):
        try:
            re.compile(preset.removeprefix(LAYERS_PREFIX))
        except re.error as error:
            yield f"split = {preset!r} is not a regular expression: {error}"
    elif preset not in SPLITS:
        yield f"split = {preset!r} is unknown: one of {', '.join(SPLITS)}, {LAYERS_PREFIX}<pattern>"


def _method(config: RunConfig, found: Chosen) -> Iterator[str]:
    """What only some methods of adaptation can do, and only some tasks."""
    from fl.tasks.table import task_kind  # whose objects know these settings

    method, split, personalized = config.adapter.method, config.adapter.split, "personalized" in config.arms
    low_rank = METHODS[method].low_rank
    gate, trained = found.personal.trained(config)
    if personalized and trained == split == "gates" and not GATES[gate].parameters:
        without = f"method = {method!r}" if GATES[config.adapter.gate].parameters else f"gate = {gate!r}"
        yield (
            f"{without} with split = 'gates' leaves nothing private: choose a gate, or another split such as fedsa or "
            f"{LAYERS_PREFIX}<pattern>, or leave the arms personalized and neutral out"
        )
    varied = [key for key, value in config.train.augmentation.model_dump(by_alias=True).items() if value]
    if varied and not task_kind(config.task).augments:
        yield f"{varied[0]} varies speech, and task = {config.task!r} has none: set it to 0"
    if not METHODS[method].sized and config.adapter.parameter_budget:
        yield (
            f"parameter-budget = {config.adapter.parameter_budget} and method = {method!r}: its tensors are those of the base, so "
            "it has no size to choose; set parameter-budget = 0"
        )
    able = low_rank_methods()
    if config.train.cohort > 1 and not low_rank:
        yield (
            f"cohort = {config.train.cohort} and method = {method!r}: only {able} train many devices in one computation; "
            "set cohort = 1"
        )
    own_split = found.personal.trained(config)[1] if personalized else ""
    parts = (found.shared, found.personal) if personalized else (found.shared,)
    needs = [f"algorithm = {part.name!r}" for part in parts if part.can.low_rank]
    needs += [f"split = {split!r}"] if own_split in ONE_FACTOR_SPLITS else []
    if needs and not low_rank:
        yield (
            f"{needs[0]} is about A and B, which method = {method!r} has not: choose split = 'all-shared' or "
            f"'{LAYERS_PREFIX}<pattern>', algorithm = 'fedavg', 'fedper' or 'fedrep', or one of the methods {able}"
        )
    if found.shared.can.pairs and own_split in ONE_FACTOR_SPLITS:
        yield (
            f"algorithm = {found.shared.name!r} needs A and B of each layer, and split = {split!r} shares one of them alone: "
            "set split = 'gates' or 'all-shared', or choose algorithm = 'fedavg'"
        )


def _ranks(config: RunConfig, found: Chosen) -> Iterator[str]:
    """Devices of different ranks: what they can be, and what goes with them."""
    given, rank, split = config.adapter.device_ranks, config.adapter.rank, config.adapter.split
    if not given:
        return
    ranks = words(given)
    if not ranks or not all(re.fullmatch("[0-9]{1,4}", word) and 1 <= int(word) <= rank for word in ranks):
        yield (
            f"device-ranks = {given!r} and rank = {rank}: give whole numbers from 1 to {rank} with commas between, or a larger rank"
        )
    able = [name for name, cls in ALGORITHMS.items() if cls.can.ranks and cls.role is found.shared.role]
    shared_gates = config.adapter.gated_arms == "all" or (
        "personalized" in config.arms and split not in ("gates", "all-private")
    )
    refusals = (
        (
            not METHODS[config.adapter.method].low_rank,
            f"method = {config.adapter.method!r}, which has no pairs of A and B: choose one of {low_rank_methods()}",
        ),
        (
            config.adapter.parameter_budget > 0,
            f"parameter-budget = {config.adapter.parameter_budget}, from which rank would follow: set parameter-budget = 0",
        ),
        (
            not found.shared.can.ranks,
            f"algorithm = {found.shared.name!r}, which has no rule for them: choose one of {', '.join(able)}",
        ),
        (
            not found.personal.can.ranks,
            f"algorithm = {found.personal.name!r}, whose personal adapters have one rank: set algorithm = 'gates'",
        ),
        (
            split in ONE_FACTOR_SPLITS,
            f"split = {split!r}, which parts the two factors of a pair: set split = 'gates'",
        ),
        (
            GATES[config.gate].ranked and shared_gates,
            f"gates of the rank's coordinates ({config.gate!r}) that are shared, though some devices lack coordinates: set "
            "gated-arms = 'personalized' and split = 'gates', or gate = 'none'",
        ),
    )
    for wrong, why in refusals:
        if wrong:
            yield f"device-ranks = {given!r} does not go with {why}, or leave device-ranks empty"


def low_rank_methods() -> str:
    """The methods with pairs of A and B, as a message lists them."""
    return ", ".join(name for name, method in METHODS.items() if method.low_rank)


def compresses(config: RunConfig) -> bool:
    """Whether updates lose anything to their codec; a name that is no codec is refused elsewhere."""
    try:
        return not make_codec(config.codec.name).lossless
    except CompressionError:
        return False


def has_device_half(algorithm: Algorithm) -> bool:
    """Whether an algorithm changes local training."""
    cls = type(algorithm)
    return cls.local is not Algorithm.local or cls.begin is not Algorithm.begin


def _algorithms(config: RunConfig, found: Chosen) -> Iterator[str]:
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
        if federation.aggregation == EDGE and not algorithm.can.sums:
            yield (
                f"algorithm = {algorithm.name!r} needs each device's update, and aggregation = 'edge' sends sums over them: "
                "set aggregation = 'device', or choose an algorithm that works on sums"
            )
        if config.server_optimizer.name != NONE and not algorithm.can.optimizer:
            yield (
                f"algorithm = {algorithm.name!r} keeps more than the shared tensors, and server-optimizer = "
                f"{config.server_optimizer.name!r} would move them elsewhere: set server-optimizer = 'none', or algorithm = 'flexlora'"
            )
        if federation.sample != 1 and not algorithm.can.sampled:
            yield f"algorithm = {algorithm.name!r} does not go with sample = {federation.sample:g}: set sample = 1.0"
        if compresses(config) and not algorithm.can.encoded:
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


def _privacy(config: RunConfig, found: Chosen) -> Iterator[str]:
    """Noise, secure sums, codecs and attacks."""
    privacy, federation, dp = config.privacy, config.federation, config.privacy.dp
    noise, sums, edge = dp.mode, privacy.secure_sum.mode == PAIRWISE, federation.aggregation == EDGE
    try:
        codec = make_codec(config.codec.name)
    except CompressionError as error:
        yield f"codec = {config.codec.name!r}: {error}"
        return
    compressed = not codec.lossless
    central = noise in (SERVER_NOISE, DISTRIBUTED_NOISE)
    odd = next((a for a in (found.shared, found.personal) if not a.can.mean), None)
    means = " or ".join(repr(name) for name, one in ALGORITHMS.items() if one.can.mean and one.role is Role.AGGREGATION)
    attack = config.attack.name
    refusals = (
        (
            sums and odd is not None,
            f"algorithm = {odd and odd.name!r} needs each device's update, and secure-sum = 'pairwise' gives sums alone: choose "
            f"algorithm = {means}, or secure-sum = 'none'",
        ),
        (
            central and odd is not None,
            f"algorithm = {odd and odd.name!r} is no mean of updates, so what one person can change is not known and dp = {noise!r} "
            f"cannot be accounted for: choose algorithm = {means}, or dp = 'local'",
        ),
        (
            noise != NONE and found.personal.aggregates,
            f"algorithm = {found.personal.name!r} keeps several models and looks at every update: set dp = 'none'",
        ),
        (
            noise == DISTRIBUTED_NOISE and not sums,
            "dp = 'distributed' gives each device a share of the noise, which protects a sum and no single update: "
            "set secure-sum = 'pairwise', or dp = 'server'",
        ),
        (
            noise == LOCAL_NOISE and sums,
            "dp = 'local' adds all noise to each update, which needs no secure sum: set secure-sum = 'none', or dp = 'distributed' "
            "for less noise",
        ),
        (
            privacy.clip_quantile > 0 and not central,
            f"clip-quantile = {privacy.clip_quantile:g} learns from the norms of all updates together, which dp = {noise!r} does "
            "not do: set clip-quantile = 0, or dp = 'server' or 'distributed'",
        ),
        (
            dp.sampling == "poisson" and not central,
            f"sampling = 'poisson' is for the account of dp = 'server' or 'distributed', and dp = {noise!r} has none of it: "
            "set sampling = 'fixed'",
        ),
        (
            0 < privacy.secure_sum.threshold <= 0.5,
            f"secure-sum.threshold = {privacy.secure_sum.threshold:g} lets a server restore both secrets of a device from two "
            "halves: set 0, or more than 0.5",
        ),
        (
            compressed and sums,
            f"codec = {config.codec.name!r} with secure-sum = 'pairwise': masked numbers have a grid of their own (4 bytes each): "
            "set codec = 'fp32'",
        ),
        (
            compressed and edge and not codec.sum_compatible,
            f"codec = {config.codec.name!r} has no sums, and aggregation = 'edge' sends sums over devices: "
            "set aggregation = 'device', or a codec with sums: fp16, int8:LIMIT, int4:LIMIT",
        ),
        (
            codec.limit is not None and privacy.clip_quantile > 0,
            f"codec = {config.codec.name!r} needs updates within a limit, and clip-quantile moves the norm: set clip-quantile = 0",
        ),
        (
            config.codec.error_feedback and not compressed,
            "error-feedback adds what compression lost, and codec = 'fp32' loses nothing: choose a codec",
        ),
        (
            bool(config.device_ranks) and (noise != NONE or sums or compressed or config.attack.attacks_updates),
            f"device-ranks = {config.adapter.device_ranks!r}: the update of a device of smaller rank is for the most part what it has no "
            "room for, which would be clipped, noised, encoded or attacked as if it were learned: set dp = 'none', secure-sum = "
            "'none', codec = 'fp32' and no attack on updates, or leave device-ranks empty",
        ),
        (
            config.attack.attacks_updates and (edge or sums),
            f"attack = {attack!r} changes single updates, and the aggregator sees sums here: "
            "set aggregation = 'device' and secure-sum = 'none', or attack = 'label-swap'",
        ),
    )
    yield from (why for wrong, why in refusals if wrong)
