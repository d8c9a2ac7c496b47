"""What rounds of noisy sums cost: epsilon and delta, by Google's dp-accounting library.

A round is a :class:`Scheme`, which says how devices are sampled, and a noise multiplier z, the noise's standard deviation over the
clipping norm C. *Neighbouring* runs differ in one person: ``add-remove`` (present or absent; the sum moves by at most C) or
``replace-one`` (the same number of people, one is another; it moves by at most 2 C).

| sampling | devices of a round | relation | accountants |
| --- | --- | --- | --- |
| ``all`` | everybody | either | pld, rdp |
| ``poisson`` | each with the same probability, independently | add-remove | pld, rdp |
| ``fixed`` | a fixed number, drawn without replacement | replace-one | rdp |

pld (privacy loss distributions, Koskela et al. 2020, Doroshenko et al. 2022) is the tighter one; rdp (Renyi, Mironov 2017) is faster.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from fl.privacy.dp import PrivacyError

if TYPE_CHECKING:  # with scipy half a second, which a run without noise has no use for
    import dp_accounting

ADD_REMOVE, REPLACE_ONE = "add-remove", "replace-one"
ALL, POISSON, FIXED = "all", "poisson", "fixed"
PLD, RDP = "pld", "rdp"
INTERVAL = 1e-3  # of privacy loss in a pld; the library rounds up, so a coarser one only overstates epsilon a little
LEAST_NOISE = 1e-3  # noise multiplier; less protects nobody (epsilon is half a million a round), overflows a pld, and counts as none
COARSE_BELOW = 0.1  # noise multiplier; at 0.01 one round took 24 s of accounting with the interval above
# Whole orders only: the library's series for others is slow and does not always converge. Any set gives an upper bound.
ORDERS = (*range(2, 33), *range(36, 65, 4), 80, 96, 128, 256, 512, 1024)
SUPPORTED = {
    (ALL, ADD_REMOVE): (PLD, RDP),
    (ALL, REPLACE_ONE): (PLD, RDP),
    (POISSON, ADD_REMOVE): (PLD, RDP),
    (FIXED, REPLACE_ONE): (RDP,),
}


@dataclass(frozen=True)
class Scheme:
    """What is the same in all rounds of a run, and must be known before the first one."""

    population: int  # people who could take part: a public number
    sampled: float  # of them in a round: expected (poisson) or exact (fixed); everybody with ``all``
    sampling: str = POISSON
    relation: str = ADD_REMOVE
    accountant: str = PLD

    def __post_init__(self) -> None:
        if self.population < 1 or not 0 < self.sampled <= self.population:
            raise PrivacyError(f"{self.sampled} devices of {self.population} cannot be sampled")
        if self.accountant not in SUPPORTED.get((self.sampling, self.relation), ()):
            known = ", ".join(f"{' or '.join(able)} for {' with '.join(pair)}" for pair, able in SUPPORTED.items())
            pair = f"{self.sampling} with {self.relation}"
            raise PrivacyError(f"accountant {self.accountant!r} does not do {pair}: use {known}")
        if self.sampling == FIXED and self.sampled != int(self.sampled):
            raise PrivacyError(f"fixed sampling takes a whole number of devices, not {self.sampled}")
        if self.sampling == ALL and self.sampled != self.population:
            raise PrivacyError(f"sampling 'all' takes all {self.population} devices, not {self.sampled}")

    def event(self, noise_multiplier: float) -> "dp_accounting.DpEvent":
        """One round as the library's event; with less noise than :data:`LEAST_NOISE` it is an event of infinite cost.

        The library's events differ in whether they halve the multiplier for a replaced record. Here it is always halved by
        us, and each accountant gets the ratio of noise to the distance that a person can move the sum.
        """
        import dp_accounting

        if not math.isfinite(noise_multiplier) or noise_multiplier < 0:
            raise PrivacyError(f"noise multiplier {noise_multiplier} must be a finite number of 0 or more")
        if noise_multiplier < LEAST_NOISE:
            return dp_accounting.NonPrivateDpEvent()
        ratio = noise_multiplier / (2.0 if self.relation == REPLACE_ONE else 1.0)
        gaussian = dp_accounting.GaussianDpEvent(ratio)
        if self.sampling == POISSON:
            return dp_accounting.PoissonSampledDpEvent(self.sampled / self.population, gaussian)
        if self.sampling == FIXED and self.sampled < self.population:
            return dp_accounting.SampledWithoutReplacementDpEvent(self.population, int(self.sampled), gaussian)
        return gaussian

    def new_accountant(self, least_noise: float = COARSE_BELOW) -> "dp_accounting.PrivacyAccountant":
        """An empty account. Without sampling the ratio says all, and either relation is a plain Gaussian mechanism.

        Losses grow with 1 / z^2, and so does a pld's interval below a multiplier of :data:`COARSE_BELOW`: its array stays as long.
        """
        import dp_accounting
        from dp_accounting import pld, rdp

        relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
        if self.sampling == FIXED and self.sampled < self.population:
            relation = dp_accounting.NeighboringRelation.REPLACE_ONE
        if self.accountant == PLD:
            return pld.PLDAccountant(relation, INTERVAL * max(1.0, (COARSE_BELOW / least_noise) ** 2))
        return rdp.RdpAccountant(ORDERS, relation)


def check_delta(delta: float) -> None:
    """Raise :class:`PrivacyError` unless ``delta`` is a probability strictly between 0 and 1."""
    if not 0.0 < delta < 1.0:
        raise PrivacyError(f"delta {delta} must lie between 0 and 1, and far below 1 / population")


def epsilon(scheme: Scheme, rounds: Mapping[float, int], delta: float) -> float:
    """Epsilon at ``delta`` of so many ``rounds`` by noise multiplier; infinite if one of them had hardly any noise."""
    check_delta(delta)
    noise = [z for z, count in rounds.items() if count and z >= LEAST_NOISE]
    account = scheme.new_accountant(min(noise, default=COARSE_BELOW))
    for noise_multiplier, count in sorted(rounds.items()):
        if count:
            account.compose(scheme.event(noise_multiplier), count)
    return float(account.get_epsilon(delta)) if any(rounds.values()) else 0.0


@lru_cache(maxsize=64)  # seconds of search, the same for all runs of a study
def noise_multiplier_for(scheme: Scheme, target_epsilon: float, delta: float, rounds: int) -> float:
    """The smallest noise multiplier (to a relative 1e-3, rounded up) with which ``rounds`` rounds cost at most ``target_epsilon``."""
    if not target_epsilon > 0 or rounds < 1:
        raise PrivacyError(f"a budget of epsilon {target_epsilon} for {rounds} rounds: both must be positive")
    low, high = 0.0, 1.0
    while epsilon(scheme, {high: rounds}, delta) > target_epsilon:
        low, high = high, 2.0 * high
        if high > 1e6:
            raise PrivacyError(
                f"no noise gives epsilon {target_epsilon} at delta {delta}: ask for less or fewer rounds"
            )
    while high - low > 1e-3 * high:
        middle = (low + high) / 2.0
        if middle > 0.05 and epsilon(scheme, {middle: rounds}, delta) <= target_epsilon:
            high = middle
        else:
            low = middle
    return high


SAMPLING_TEXT = {
    ALL: "all {population:,} devices take part in every round",
    POISSON: "each of {population:,} devices takes part in a round with probability {rate:.4g}, independently of the others "
    "and of other rounds, and nobody learns who did",
    FIXED: "{sampled:,.0f} of {population:,} devices take part in a round, drawn uniformly without replacement and anew in "
    "every round, and nobody learns who did",
}
RELATION_TEXT = {
    ADD_REMOVE: "two runs are neighbours if one person takes part in one of them and not at all in the other",
    REPLACE_ONE: "two runs are neighbours if one person's data is replaced by anything else; the number of people is public",
}
TRUST_TEXT = {
    "server": "the aggregator sees each update, adds the noise itself and is trusted to; the guarantee is against those who see "
    "the models it releases",
    "distributed": "the aggregator sees only noisy sums (secure aggregation), and as many devices as planned add their share "
    "of the noise honestly and keep it to themselves",
    "local": "each device adds all of its noise itself; nobody need be trusted",
}


def statement(
    scheme: Scheme,
    rounds: Mapping[float, int],
    delta: float,
    *,
    clipping: str,
    trust: str = "server",
    notes: Iterable[str] = (),
) -> str:
    """Epsilon, delta and every assumption behind them, as text: what is printed with a result.

    ``clipping`` says how updates were bounded, e.g. ``flat, norm 0.5``; ``notes`` are further assumptions of the caller.
    """
    spent = epsilon(scheme, rounds, delta)
    total = sum(rounds.values())
    noise = ", ".join(f"{count} with {multiplier:g}" for multiplier, count in sorted(rounds.items()) if count) or "none"
    rate = scheme.sampled / scheme.population
    lines = [
        f"epsilon = {spent:.4g} at delta = {delta:g}, for persons, after {total} rounds ({scheme.accountant} accountant)",
        f"- neighbours: {RELATION_TEXT[scheme.relation]}",
        f"- sampling: {SAMPLING_TEXT[scheme.sampling].format(population=scheme.population, sampled=scheme.sampled, rate=rate)}",
        f"- rounds by noise multiplier (standard deviation of the noise over the clipping norm): {noise}",
        f"- clipping of each person's whole shared update: {clipping}; weights are at most 1",
        f"- trust: {TRUST_TEXT[trust]}",
        "- one device is one person, and one person has one device",
        "- the divisor of the mean, the population, the sampling rate, clipping norm and rounds are public or fixed beforehand",
        "- only the shared tensors are covered: not counts, losses, error rates, timing or who answered, nor audio that is "
        "sent to be transcribed",
        "- noise is drawn from a cipher's bits that nobody else knows, in double precision; its rounding is not accounted for",
        *(f"- {note}" for note in notes),
    ]
    if delta >= 1.0 / scheme.population:
        lines.append(
            f"- WARNING: delta is not below 1 / population = {1.0 / scheme.population:g}: this protects one person little"
        )
    return "\n".join(lines)
