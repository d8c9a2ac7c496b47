"""The public numbers of a private run, fixed before its first round: what :class:`fl.privacy.accounting.Scheme` and a strategy need.

Which combinations of settings make sense is said by :mod:`fl.settings.check`, before anything is loaded or written.
"""

import math
from dataclasses import dataclass

from fl.privacy.accounting import ADD_REMOVE, ALL, FIXED, PLD, POISSON, RDP, REPLACE_ONE, Scheme, noise_multiplier_for
from fl.privacy.ledger import Budget
from fl.settings.config import RunConfig, sample_size
from fl.settings.names import EDGE, LOCAL_NOISE, NONE, PAIRWISE

# Norm over C of an update with the bit of adaptive clipping as one more coordinate, worth C / 2
WITH_BIT = math.sqrt(1.25)


@dataclass(frozen=True)
class PrivacyPlan:
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

    @property
    def update_multiplier(self) -> float:
        """The multiplier of the noise on the updates: more than z where the sum of bits is released beside them, with the same."""
        return self.noise_multiplier * (WITH_BIT if self.quantile else 1.0)


def make_plan(config: RunConfig, population: int, rounds: int) -> PrivacyPlan | None:
    """The plan of a run with so many devices, None if nothing is private. A noise multiplier of 0 is solved for.

    Raises :class:`fl.privacy.dp.PrivacyError` where there is no accountant for the sampling, or no noise is enough.
    """
    privacy = config.privacy
    if (privacy.dp.mode == NONE and privacy.secure_sum.mode == NONE) or not rounds:
        return None
    size = sample_size(config.federation.sample, population)
    scheme, budget, multiplier = None, None, 0.0
    if privacy.dp.mode != NONE:
        scheme = _scheme(config, population, size)
        budget = Budget(privacy.dp.epsilon_budget, privacy.dp.delta)
        multiplier = privacy.dp.noise_multiplier or noise_multiplier_for(scheme, budget.epsilon, budget.delta, rounds)
    return PrivacyPlan(
        dp=privacy.dp.mode,
        population=population,
        size=size,
        poisson=privacy.dp.sampling == POISSON and size < population,
        bound=privacy.update_norm,
        clipping=privacy.update_clipping,
        cap=privacy.example_cap or None,
        noise_multiplier=multiplier,
        quantile=privacy.clip_quantile,
        secure=privacy.secure_sum.mode == PAIRWISE,
        edge=config.federation.aggregation == EDGE,
        threshold=privacy.secure_sum.threshold,
        dropouts=privacy.dp.dropout_share,
        colluding=privacy.dp.colluding_share,
        rounds=rounds,
        scheme=scheme,
        budget=budget,
    )


def _scheme(config: RunConfig, population: int, size: int) -> Scheme:
    dp = config.privacy.dp
    if dp.mode == LOCAL_NOISE:  # one message alone, whoever else is asked: a person's data may be anything else
        size, sampling, relation, best = population, ALL, REPLACE_ONE, PLD
    elif size == population:
        sampling, relation, best = ALL, ADD_REMOVE, PLD
    elif dp.sampling == POISSON:
        sampling, relation, best = POISSON, ADD_REMOVE, PLD
    else:
        sampling, relation, best = FIXED, REPLACE_ONE, RDP
    return Scheme(population, size, sampling, relation, best if dp.accountant == "auto" else dp.accountant)
