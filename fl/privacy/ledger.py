"""The account of a run's privacy on disk: a round is paid for before it starts, and not started if it cannot be paid.

JSON Lines that only ever become more. The first line holds the settings and their hash; each further line one round, with the
hash of the line before it and its own, so that a line that was changed or taken out is found. A line is on the disk before
:meth:`Ledger.charge` returns. A crash can therefore leave a round that was paid for and never ran (which costs too much) but
never one that ran and was not paid for. A round that is run again after a crash is charged again: its noise is fresh, and
what the first attempt sent may have been seen.
"""

import hashlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from filelock import FileLock, Timeout

from fl.core.files import make_folder, write_atomically
from fl.privacy.accounting import Scheme, check_delta, epsilon
from fl.privacy.dp import PrivacyError, check_positive

SCHEMA = 1
MAX_LEDGER_BYTES = 64 * 2**20
LOCK_SECONDS = 10.0


class BudgetError(PrivacyError):
    """The next round would cost more than is left. It was not charged and must not run."""


@dataclass(frozen=True)
class Budget:
    """What a run may spend in all."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        check_delta(self.delta)
        check_positive(self.epsilon, "budget epsilon")


@dataclass(frozen=True)
class Charge:
    """One paid round: its number, the noise multiplier it was paid for, and what it belongs to where a run has several parts."""

    round: int
    noise_multiplier: float
    part: str = ""


def _line(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Ledger:
    """The account at ``path``, opened or begun. ``settings`` are what the guarantee depends on beside scheme and budget.

    Raises :class:`PrivacyError` if the file is damaged or belongs to other settings: a guarantee cannot change half way.
    """

    def __init__(
        self, path: Path, scheme: Scheme, budget: Budget, settings: Mapping[str, str | int | float] | None = None
    ) -> None:
        self.path = path
        self.scheme = scheme
        self.budget = budget
        content = {"scheme": asdict(scheme), "budget": asdict(budget), "settings": dict(settings or {})}
        self._header = _line({"schema": SCHEMA, **content, "hash": _hash(_line(content))})
        with self._locked():
            self._read()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            make_folder(self.path.parent)
            with FileLock(f"{self.path}.lock", timeout=LOCK_SECONDS):
                yield
        except Timeout as error:
            raise PrivacyError(f"{self.path} is in use by another process: one run, one ledger") from error
        except OSError as error:
            raise PrivacyError(f"ledger {self.path} cannot be read or written: {error}; nothing was charged") from error

    def _read(self) -> tuple[list[Charge], list[bytes]]:
        """The charges, and the lines that hold them after the header. A line that lacks its end was never paid."""
        if not self.path.exists():
            return [], [self._header]
        if self.path.stat().st_size > MAX_LEDGER_BYTES:
            raise PrivacyError(f"{self.path} has more than {MAX_LEDGER_BYTES:,} bytes: it is not a privacy ledger")
        lines = [line for line in self.path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        lines = lines or [self._header]
        if lines[0] != self._header:
            raise PrivacyError(
                f"{self.path} was begun with other settings, or is damaged: the guarantee given then cannot change; "
                "go on with those settings, or start a run of its own with a new budget"
            )
        charges: list[Charge] = []
        for number, (before, line) in enumerate(pairwise(lines), 2):
            try:
                content = json.loads(line)
                charge = Charge(int(content["round"]), float(content["noise_multiplier"]), str(content.get("part", "")))
                sound = content["before"] == _hash(before) and _line(content) == line and charge.noise_multiplier >= 0
                said = content.pop("hash", None)  # lines of earlier versions have none, so the last has no protection
                sound = sound and said in (None, _hash(_line(content)))
            except (ValueError, KeyError, TypeError):
                sound = False
            if not sound:
                raise PrivacyError(
                    f"{self.path}:{number}: no charge that follows the line before it: restore the file, it was changed"
                )
            charges.append(charge)
        return charges, lines

    @property
    def charges(self) -> list[Charge]:
        """All rounds paid so far, in order."""
        with self._locked():
            return self._read()[0]

    def rounds(self) -> dict[float, int]:
        """Number of paid rounds by noise multiplier."""
        return Counter(charge.noise_multiplier for charge in self.charges)

    def spent(self) -> float:
        """Epsilon of all paid rounds at the budget's delta."""
        return self._cost(self.charges)

    def _cost(self, charges: Iterable[Charge]) -> float:
        return epsilon(self.scheme, Counter(charge.noise_multiplier for charge in charges), self.budget.delta)

    def charge(self, round_index: int, noise_multiplier: float, part: str = "") -> float:
        """Pay for a round before it runs; returns epsilon with it. :class:`BudgetError` if that is above the budget."""
        with self._locked():
            charges, lines = self._read()
            charge = Charge(round_index, float(noise_multiplier), part)
            after = self._cost([*charges, charge])
            if after > self.budget.epsilon:
                raise BudgetError(
                    f"round {round_index} would bring epsilon to {after:.4g} at delta {self.budget.delta:g}, the budget is "
                    f"{self.budget.epsilon:g} ({len(charges)} rounds are paid): stop here, or begin a new run with more noise, "
                    "a smaller sample or a larger budget"
                )
            entry = {name: value for name, value in asdict(charge).items() if value != ""}  # most runs have one part
            entry |= {"epsilon": after, "before": _hash(lines[-1])}
            entry["hash"] = _hash(_line(entry))
            write_atomically(self.path, b"".join([*lines, _line(entry)]))
            return after

    def affordable(self, noise_multiplier: float, most: int = 100_000) -> int:
        """How many further rounds at ``noise_multiplier`` the budget allows, up to ``most``."""
        paid, further = self.charges, Charge(0, noise_multiplier)

        def cost(count: int) -> float:
            return self._cost([*paid, *[further] * count])

        high = 1  # the first power of two that does not fit, so that no account of needlessly many rounds is formed
        while high <= most and cost(high) <= self.budget.epsilon:
            high *= 2
        return bisect_right(range(min(high, most + 1)), self.budget.epsilon, lo=high // 2 + 1, key=cost) - 1
