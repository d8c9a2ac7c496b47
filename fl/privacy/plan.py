"""The public numbers of a private run, fixed before its first round: what :class:`fl.privacy.accounting.Scheme` and a strategy need.

Which combinations of settings make sense is said by :func:`check_privacy`, before anything is loaded or written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from fl.codecs.compression import CompressionError, make_codec
from fl.codecs.kinds import FixedInteger
from fl.core.errors import ConfigError
from fl.privacy.accounting import ADD_REMOVE, ALL, FIXED, PLD, POISSON, RDP, REPLACE_ONE, Scheme, noise_multiplier_for
from fl.privacy.adaptive import AdaptiveClipping
from fl.privacy.ledger import Budget
from fl.protocol.forms import FULL_PRECISION, bare
from fl.settings.config import RunConfig, sample_size
from fl.settings.names import DISTRIBUTED_NOISE, EDGE, LABEL_SWAP, LOCAL_NOISE, NONE, PAIRWISE, SERVER_NOISE

COUNT_NOISE = math.sqrt(1.25)  # of the bits' sum over z: a bit is one more coordinate of the update, worth C / 2


@dataclass(frozen=True)
class Plan:
    """One run's clipping, noise, sampling and secure sums in numbers. ``scheme`` and ``budget`` are None without noise."""

    dp: str
    population: int
    size: int  # devices of a round: exact, or expected with Poisson sampling; W of docs/privacy.md
    poisson: bool
    bound: float  # clipping norm, of the first round if it adapts
    clipping: str
    cap: int | None  # on examples; None weighs all devices the same
    noise_multiplier: float  # z, that is accounted for
    quantile: float  # 0: the clipping norm stays
    secure: bool
    edge: bool
    threshold: float  # share of participants; 0 for more than two thirds
    dropouts: float
    colluding: float
    rounds: int  # that send shared updates, of all arms together
    scheme: Scheme | None
    budget: Budget | None

    def adaptive(self, bound: float) -> AdaptiveClipping | None:
        """The rule that moves the clipping norm from ``bound``, or None."""
        if not self.quantile:
            return None
        return AdaptiveClipping(bound, self.noise_multiplier, COUNT_NOISE * self.noise_multiplier, self.quantile)

    @property
    def update_multiplier(self) -> float:
        """The multiplier of the noise on the updates: more than z where a second sum is released beside them."""
        rule = self.adaptive(self.bound)
        return self.noise_multiplier if rule is None else rule.update_multiplier


def make_plan(config: RunConfig, population: int, rounds: int) -> Plan | None:
    """The plan of a run with so many devices, None if nothing is private. A noise multiplier of 0 is solved for.

    Raises :class:`fl.privacy.dp.PrivacyError` where there is no accountant for the sampling, or no noise is enough.
    """
    privacy = config.privacy
    if (privacy.dp == NONE and privacy.secure_sum == NONE) or not rounds:
        return None
    size = sample_size(config.federation.sample, population)
    scheme = budget = None
    multiplier = 0.0
    if privacy.dp != NONE:
        scheme = _scheme(config, population, size)
        budget = Budget(privacy.epsilon_budget, privacy.delta)
        multiplier = privacy.noise_multiplier or _least_noise(scheme, budget.epsilon, budget.delta, rounds)
    return Plan(
        dp=privacy.dp,
        population=population,
        size=size,
        poisson=privacy.sampling == POISSON and size < population,
        bound=privacy.update_norm,
        clipping=privacy.update_clipping,
        cap=privacy.example_cap or None,
        noise_multiplier=multiplier,
        quantile=privacy.clip_quantile,
        secure=privacy.secure_sum == PAIRWISE,
        edge=config.federation.aggregation == EDGE,
        threshold=privacy.secure_threshold,
        dropouts=privacy.dropout_share,
        colluding=privacy.colluding_share,
        rounds=rounds,
        scheme=scheme,
        budget=budget,
    )


_least_noise = lru_cache(maxsize=64)(noise_multiplier_for)  # seconds of search, the same for all runs of a study


def _scheme(config: RunConfig, population: int, size: int) -> Scheme:
    wanted = config.privacy.accountant
    if (
        config.privacy.dp == LOCAL_NOISE
    ):  # one message alone, whoever else is asked: a person's data may be anything else
        return Scheme(population, population, ALL, REPLACE_ONE, PLD if wanted == "auto" else wanted)
    if size == population:
        return Scheme(population, population, ALL, ADD_REMOVE, PLD if wanted == "auto" else wanted)
    if config.privacy.sampling == POISSON:
        return Scheme(population, size, POISSON, ADD_REMOVE, PLD if wanted == "auto" else wanted)
    return Scheme(population, size, FIXED, REPLACE_ONE, RDP if wanted == "auto" else wanted)


def check_privacy(config: RunConfig, *, mean: bool) -> None:
    """Refuse settings that cannot work together; ``mean`` says whether the strategy's rule is a mean of the updates."""
    privacy, federation = config.privacy, config.federation
    strategy = federation.strategy
    noise, sums, edge = privacy.dp, privacy.secure_sum == PAIRWISE, federation.aggregation == EDGE
    try:
        codec = make_codec(privacy.codec)
    except CompressionError as error:
        raise ConfigError(f"codec = {privacy.codec!r}: {error}") from error
    limited = isinstance(bare(codec), FixedInteger)
    compressed = privacy.codec != FULL_PRECISION
    central = noise in (SERVER_NOISE, DISTRIBUTED_NOISE)
    attacks_updates = federation.attack not in (NONE, LABEL_SWAP)
    refusals = (
        (
            sums and not mean,
            f"strategy = {strategy!r} needs each device's update, and secure-sum = 'pairwise' gives sums alone: "
            "choose strategy = 'fedavg', ffa, fedsa or rolora, or secure-sum = 'none'",
        ),
        (
            central and not mean,
            f"strategy = {strategy!r} is no mean of updates, so what one person can change is not known and dp = {noise!r} cannot "
            "be accounted for: choose strategy = 'fedavg', ffa, fedsa or rolora, or dp = 'local'",
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
            privacy.sampling == POISSON and not central,
            f"sampling = 'poisson' is for the account of dp = 'server' or 'distributed', and dp = {noise!r} has none of it: "
            "set sampling = 'fixed'",
        ),
        (
            0 < privacy.secure_threshold <= 0.5,
            f"secure-threshold = {privacy.secure_threshold:g} lets a server restore both secrets of a device from two halves: "
            "set 0, or more than 0.5",
        ),
        (
            compressed and sums,
            f"codec = {privacy.codec!r} with secure-sum = 'pairwise': masked numbers have a grid of their own (4 bytes each): "
            "set codec = 'fp32'",
        ),
        (
            compressed and edge and not codec.sum_compatible,
            f"codec = {privacy.codec!r} has no sums, and aggregation = 'edge' sends sums over devices: "
            "set aggregation = 'device', or a codec with sums: fp16, int8:LIMIT, int4:LIMIT",
        ),
        (
            limited and privacy.clip_quantile > 0,
            f"codec = {privacy.codec!r} needs updates within a limit, and clip-quantile moves the norm: set clip-quantile = 0",
        ),
        (
            privacy.error_feedback and not compressed,
            "error-feedback adds what compression lost, and codec = 'fp32' loses nothing: choose a codec",
        ),
        (
            compressed and strategy == "scaffold",
            f"codec = {privacy.codec!r} is for updates of shared tensors, and scaffold sends control variates beside them: "
            "set codec = 'fp32'",
        ),
        (
            config.personal.personalization == "clusters" and (compressed or noise != NONE or attacks_updates),
            "personalization = 'clusters' keeps several models and looks at every update: set dp = 'none', codec = 'fp32' and no "
            "attack on updates, or choose another personalization",
        ),
        (
            bool(config.device_ranks) and (noise != NONE or sums or compressed or attacks_updates),
            f"device-ranks = {federation.device_ranks!r}: the update of a device of smaller rank is for the most part what it has no room "
            "for, which would be clipped, noised, encoded or attacked as if it were learned: set dp = 'none', secure-sum = 'none', "
            "codec = 'fp32' and no attack on updates, or leave device-ranks empty",
        ),
        (
            attacks_updates and (edge or sums),
            f"attack = {federation.attack!r} changes single updates, and the aggregator sees sums here: "
            "set aggregation = 'device' and secure-sum = 'none', or attack = 'label-swap'",
        ),
    )
    for wrong, why in refusals:
        if wrong:
            raise ConfigError(why)
