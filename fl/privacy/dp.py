"""What is done to updates for differential privacy: clip each person's update, add Gaussian noise to the sum.

An *update* is new minus old shared tensors of one device, by name. It knows nothing of epsilon: what a noise multiplier is
worth is said by :mod:`fl.privacy.accounting`, and :mod:`fl.privacy.ledger` keeps the account. In one round, for clipping
norm C and noise multiplier z (McMahan et al. 2018, "Learning differentially private recurrent language models"):

    sum  = sum over devices d of  w_d * u_d * min(1, C / |u_d|)  +  N(0, (z C)^2 I),        0 <= w_d <= 1
    mean = sum / W,    W a public number fixed before the round

|u| is the Euclidean norm over all shared tensors of a person together, so that adding or removing *all* that one person
sent moves the sum by at most C, and replacing it by something else by at most 2 C.
"""

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from fl.core.errors import IdiolectError
from fl.privacy.randomness import fresh_key, standard_normal

Update = dict[str, NDArray[np.float32]]
Sums = dict[str, NDArray[np.float64]]
ADAPTING_RATE = 0.2  # of the logarithm of a clipping norm that follows a quantile
CUT_SHORT = 2.0  # times the clipping norm: an update as long as that loses more than half, which people should be told
_SLACK = 1.0 - 2.0**-20  # rounding to float32 must not lift a clipped norm above its bound


class PrivacyError(IdiolectError):
    """Settings, updates or records for which there is no privacy guarantee. Nothing was released."""


def difference(new: Mapping[str, np.ndarray], old: Mapping[str, np.ndarray]) -> Update:
    """``new - old`` in float32, in the order of names. :class:`PrivacyError` for other names, other shapes, NaN or infinity."""
    if new.keys() != old.keys():
        odd = sorted(new.keys() ^ old.keys())
        raise PrivacyError(f"no update: tensor {odd[0]!r} is on one side only, and both must hold all shared ones")
    update: Update = {}
    for name in sorted(new):
        if new[name].shape != old[name].shape:
            raise PrivacyError(f"tensor {name!r} is {new[name].shape} after and {old[name].shape} before training")
        update[name] = np.subtract(new[name], old[name], dtype=np.float64).astype(np.float32)
    _check_finite(update)
    return update


def _check_finite(update: Mapping[str, np.ndarray]) -> None:
    for name, value in update.items():
        if not np.isfinite(value).all():
            raise PrivacyError(f"tensor {name!r} of the update holds NaN or infinity: training diverged, send nothing")


def check_positive(value: float, name: str) -> float:
    """``value``, or :class:`PrivacyError` unless it is positive and finite."""
    if not (math.isfinite(value) and value > 0):
        raise PrivacyError(f"{name} is {value}: it must be a positive, finite number")
    return value


def norm(update: Mapping[str, np.ndarray]) -> float:
    """Euclidean norm over all tensors together, summed in float64."""
    flats = (np.asarray(value, np.float64).reshape(-1) for value in update.values())
    return math.sqrt(math.fsum(float(flat @ flat) for flat in flats))


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to: its name without the last part, so that A and B of one map go together."""
    return name.rpartition(".")[0]


# What is clipped together. One loud layer cannot silence the others where each has its own bound.
CLIPPING: dict[str, Callable[[str], str]] = {"flat": lambda name: "", "per-layer": layer_of}


def clip_factors(update: Mapping[str, np.ndarray], bound: float, clipping: str = "flat") -> dict[str, float]:
    """What to multiply each tensor with so that the norm of all is at most ``bound``; 1 where nothing needs to be clipped.

    ``flat`` has one factor for the whole update, so that its direction stays. With ``per-layer`` each of the L layers is
    clipped to ``bound / sqrt(L)``; which layers there are must be the same for all devices. :class:`PrivacyError` names a
    tensor with NaN or infinity.
    """
    if clipping not in CLIPPING:
        raise PrivacyError(f"clipping {clipping!r} is unknown: use one of {', '.join(CLIPPING)}")
    group_of = CLIPPING[clipping]
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, value in update.items():
        groups.setdefault(group_of(name), {})[name] = value
    each = check_positive(bound, "clipping norm") / math.sqrt(max(1, len(groups)))
    norms = {group: norm(part) for group, part in groups.items()}
    if not all(map(math.isfinite, norms.values())):
        _check_finite(update)
    factors = {group: 1.0 if length <= each else each / length * _SLACK for group, length in norms.items()}
    return {name: factors[group_of(name)] for name in update}


def clip(update: Mapping[str, np.ndarray], bound: float, clipping: str = "flat") -> Update:
    """The update times its :func:`clip_factors`, in float32."""
    factors = clip_factors(update, bound, clipping)
    return {name: np.multiply(v, factors[name], dtype=np.float64).astype(np.float32) for name, v in update.items()}


def weight_of(examples: float, cap: float | None) -> float:
    """A device's weight in [0, 1]: 1 for all without a ``cap``, else ``min(examples, cap) / cap``.

    An uncapped count of examples has no bound, hence no sensitivity, and is not offered.
    """
    if not math.isfinite(examples) or examples < 0:
        raise PrivacyError(f"{examples} examples cannot weigh an update: a count is 0 or more")
    return 1.0 if cap is None else min(examples, check_positive(cap, "cap on examples")) / cap


def add_noise(sums: Mapping[str, np.ndarray], deviation: float, key: bytes | None = None) -> Sums:
    """``sums`` plus independent Gaussian noise of standard deviation ``deviation``, in the order of names.

    ``key`` (32 bytes) is used for this one call only; a fresh one comes from the operating system.
    """
    if not math.isfinite(deviation) or deviation < 0:
        raise PrivacyError(f"standard deviation of noise is {deviation}: it must be 0 or more")
    names = sorted(sums)
    sizes = [sums[name].size for name in names]
    noise = standard_normal(key or fresh_key(), sum(sizes)) * deviation
    parts = np.split(noise, np.cumsum(sizes, dtype=int))
    return {name: sums[name] + part.reshape(sums[name].shape) for name, part in zip(names, parts, strict=False)}


def clipped_sum(
    updates: Iterable[tuple[float, Mapping[str, np.ndarray]]], bound: float, clipping: str = "flat"
) -> Sums:
    """The sum of ``(weight, update)`` over the devices that answered, each clipped to ``bound``, in float64. Updates are streamed.

    Devices that dropped out are simply not there: the noise that is added stays as it is, and so does the guarantee.
    """
    sums: Sums = {}
    for weight, update in updates:
        if not 0.0 <= weight <= 1.0:
            raise PrivacyError(f"weight {weight} is outside 0 to 1: form it with weight_of")
        factors = clip_factors(update, bound, clipping)
        terms = {name: np.multiply(v, weight * factors[name], dtype=np.float64) for name, v in update.items()}
        sums = sums or {name: np.zeros(term.shape) for name, term in terms.items()}
        if {name: term.shape for name, term in terms.items()} != {name: total.shape for name, total in sums.items()}:
            raise PrivacyError("devices sent tensors of other names or shapes: all must share the same ones")
        for name, term in terms.items():
            sums[name] += term
    return sums


def honest_devices(asked: int, dropouts: float, colluding: int = 0) -> int:
    """How many of ``asked`` devices add noise that counts: at most the share ``dropouts`` fails, ``colluding`` tell the server theirs."""
    return asked - math.floor(dropouts * asked + 1e-9) - colluding


def noise_share(noise_multiplier: float, bound: float, honest: int) -> float:
    """Standard deviation ``z C / sqrt(honest)`` of what each device adds where nobody adds it all: for sums seen only as sums.

    The sum has the planned noise as long as at least ``honest`` devices that answered added their share and keep it to
    themselves; a device that works with the server does not count.
    """
    if honest < 1:
        raise PrivacyError(f"{honest} devices cannot carry the noise: at least 1 honest one must remain")
    noise = check_positive(noise_multiplier, "noise multiplier") * check_positive(bound, "clipping norm")
    return noise / math.sqrt(honest)


def next_norm(
    bound: float, bits: float, devices: int, quantile: float, deviation: float = 0.0, key: bytes | None = None
) -> float:
    """The next clipping norm after ``bound``: it follows a quantile of the updates' norms (Andrew et al. 2021, arXiv 1905.03871).

    Algorithm 1: each device adds to ``bits`` 1/2 if its norm is within the bound, else -1/2; ``devices`` is a public number.
    That sum gets noise of standard deviation ``deviation`` here; 0 for a sum that is noisy already.
    """
    noise = float(standard_normal(key or fresh_key(), 1)[0]) * deviation
    # Noise can carry the share beyond 0 and 1; a step of more than exp(rate) would be noise alone.
    share = min(1.0, max(0.0, (bits + noise) / devices + 0.5))
    return bound * math.exp(-ADAPTING_RATE * (share - quantile))
