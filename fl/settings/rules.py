"""Settings that contradict each other, refused before anything is computed: :class:`ConfigError` with the remedy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fl.core.errors import ConfigError
from fl.settings.names import (
    BEST_PAIR_STRATEGIES,
    COORDINATE_GATES,
    COORDINATE_STRATEGIES,
    LAYERS_PREFIX,
    LOW_RANK_METHODS,
    METHODS,
    PERSONALIZATIONS,
    SPEECH,
    SPLITS,
    UNSIZED_METHODS,
)
from fl.settings.setting import words

if TYPE_CHECKING:
    from fl.settings.config import RunConfig


def check_together(config: RunConfig) -> None:
    """Combinations that could only fail later, refused before any compute."""
    by_gates = config.personal.personalization == "gates"
    wants_gates = by_gates and config.adapter.split == "gates" and "personalized" in config.arms
    if wants_gates and config.gate == "none":
        without = "gate = 'none'" if config.adapter.method == METHODS[0] else f"method = {config.adapter.method!r}"
        raise ConfigError(
            f"{without} with split = 'gates' leaves nothing private: choose a gate, or another split such as fedsa or "
            f"{LAYERS_PREFIX}<pattern>, or leave the arms personalized and neutral out"
        )
    _check_method(config)
    _check_ranks(config)
    needs = {"global+finetune": "global", "neutral": "personalized"}
    for arm, source in needs.items():
        if arm in config.arms and source not in config.arms:
            raise ConfigError(f"arm {arm!r} is made from arm {source!r}: add {source!r} to arms")
    sample = config.federation.sample
    if sample > 1 and not sample.is_integer():
        raise ConfigError(
            f"sample = {sample:g} is neither a share nor a number of devices: at most 1, or a whole number above 1"
        )
    preset = config.adapter.split
    if preset.startswith(LAYERS_PREFIX):
        try:
            re.compile(preset.removeprefix(LAYERS_PREFIX))
        except re.error as error:
            raise ConfigError(f"split = {preset!r} is not a regular expression: {error}") from error
    elif preset not in SPLITS:
        raise ConfigError(f"split = {preset!r} is unknown: one of {', '.join(SPLITS)}, {LAYERS_PREFIX}<pattern>")


def _check_method(config: RunConfig) -> None:
    """What only some methods of adaptation can do, and only some tasks."""
    method = config.adapter.method
    varied = [name for name in ("spec_augment", "speed_perturbation", "noise_snr") if getattr(config.train, name)]
    if varied and config.data.task != SPEECH:
        raise ConfigError(
            f"{varied[0].replace('_', '-')} varies speech, and task = {config.data.task!r} has none: set it to 0"
        )
    if method in UNSIZED_METHODS and config.adapter.parameter_budget:
        raise ConfigError(
            f"parameter-budget = {config.adapter.parameter_budget} and method = {method!r}: its tensors are those of the base, so "
            "it has no size to choose; set parameter-budget = 0"
        )
    if method in LOW_RANK_METHODS:
        return
    if config.train.cohort > 1:
        raise ConfigError(
            f"cohort = {config.train.cohort} and method = {method!r}: only {', '.join(LOW_RANK_METHODS)} train many devices in one "
            "computation; set cohort = 1"
        )
    if "personalized" not in config.arms:
        return
    personalization = config.personal.personalization
    pairs = {"gates": config.adapter.split in ("fedsa", "ffa"), "fedper": False, "fedrep": False}
    if pairs.get(personalization, True):
        wanted = (
            f"split = {config.adapter.split!r}"
            if personalization == "gates"
            else f"personalization = {personalization!r}"
        )
        raise ConfigError(
            f"{wanted} is about A and B, which method = {method!r} has not: choose split = 'all-shared' or "
            f"'{LAYERS_PREFIX}<pattern>', personalization = 'fedper' or 'fedrep', or one of the methods {', '.join(LOW_RANK_METHODS)}"
        )


def _check_ranks(config: RunConfig) -> None:
    """Devices of different ranks: what they can be, and what goes with them."""
    given, rank = config.federation.device_ranks, config.adapter.rank
    if not given:
        return
    found = words(given)
    if not found or not all(re.fullmatch("[0-9]{1,4}", word) and 1 <= int(word) <= rank for word in found):
        raise ConfigError(
            f"device-ranks = {given!r} and rank = {rank}: give whole numbers from 1 to {rank} with commas between, or a larger rank"
        )
    able = (*COORDINATE_STRATEGIES, *BEST_PAIR_STRATEGIES)
    split, gate, personal = config.adapter.split, config.gate, config.personal.personalization
    shared_gates = config.adapter.gated_arms == "all" or (
        "personalized" in config.arms and split not in ("gates", "all-private")
    )
    refusals = (
        (
            config.adapter.method not in LOW_RANK_METHODS,
            f"method = {config.adapter.method!r}, which has no pairs of A and B: choose one of {', '.join(LOW_RANK_METHODS)}",
        ),
        (
            config.adapter.parameter_budget > 0,
            f"parameter-budget = {config.adapter.parameter_budget}, from which rank would follow: set parameter-budget = 0",
        ),
        (
            config.federation.strategy not in able,
            f"strategy = {config.federation.strategy!r}, which has no rule for them: choose one of {', '.join(able)}",
        ),
        (
            personal != PERSONALIZATIONS[0],
            f"personalization = {personal!r}, whose personal adapters have one rank: set personalization = 'gates'",
        ),
        (
            split in ("fedsa", "ffa"),
            f"split = {split!r}, which parts the two factors of a pair: set split = 'gates'",
        ),
        (
            gate in COORDINATE_GATES and shared_gates,
            f"gates of the rank's coordinates ({gate!r}) that are shared, though some devices lack coordinates: set "
            "gated-arms = 'personalized' and split = 'gates', or gate = 'none'",
        ),
    )
    for wrong, why in refusals:
        if wrong:
            raise ConfigError(f"device-ranks = {given!r} does not go with {why}, or leave device-ranks empty")
