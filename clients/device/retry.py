"""When to try again: exponential backoff with full jitter, and the server's own Retry-After."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from random import SystemRandom

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses after which the same request may well succeed


@dataclass(frozen=True)
class Retry:
    """At most ``attempts`` in at most ``total`` seconds; before attempt n + 1 a wait drawn from [0, min(cap, base 2^(n-1))].

    ``sleep``, ``uniform`` and ``clock`` are for tests. Devices must not draw the same waits, hence the system's randomness.
    """

    attempts: int = 5
    base: float = 0.5  # s
    cap: float = 20.0  # s
    total: float = 180.0  # s, waiting included
    sleep: Callable[[float], None] = time.sleep
    uniform: Callable[[float, float], float] = SystemRandom().uniform
    clock: Callable[[], float] = time.monotonic

    def wait(self, attempt: int, retry_after: float | None) -> float:
        """Seconds between ``attempt`` (from 1) and the next; never less than the server asked for."""
        drawn = self.uniform(0.0, min(self.cap, self.base * 2.0 ** (attempt - 1)))
        return drawn if retry_after is None else retry_after + drawn

    def pause(self, attempt: int, retry_after: float | None, started: float) -> bool:
        """Wait before the next attempt; False, without waiting, if there is none left or it would be too late."""
        wait = self.wait(attempt, retry_after)
        if attempt >= self.attempts or self.clock() - started + wait > self.total:
            return False
        self.sleep(wait)
        return True


def parse_retry_after(text: str | None, now: float | None = None) -> float | None:
    """Seconds of a Retry-After header, given in seconds or as a date; None for none and for nonsense."""
    if not text or len(text) > 64:
        return None
    if text.strip().isdecimal() and text.isascii():
        return float(text)
    try:
        moment = parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
    seconds = moment - (time.time() if now is None else now)
    return max(0.0, seconds) if math.isfinite(seconds) else None
