"""How much the server takes: every limit in one place, and the budget that each token has by the minute."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields

from fl.core.errors import ConfigError
from fl.serving.engine.settings import MAX_BYTES
from fl.speech.mono import MAX_SECONDS

MIB = 2**20
ADAPT_PATH = "/v1/adapt"
ADAPTERS_PATH = "/v1/adapters"


@dataclass(frozen=True)
class ServerLimits:
    """Limits of one server. All are above zero, but for the rates, where zero means: no limit."""

    # One request
    max_body_bytes: int = 32 * MIB
    max_adapter_bytes: int = MAX_BYTES
    max_audio_seconds: float = 600.0
    max_beams: int = 5
    body_seconds: float = 120.0  # by when the body has arrived, and a person's answer is read: 2 MiB at 140 kbit/s
    header_seconds: float = 15.0  # by when the headers have arrived, and what was answered to anybody is read
    request_seconds: float = 120.0  # by when the engine is done
    parts_ahead: int = 4  # parts of one long recording that are in the engine at once

    # All requests together
    max_connections: int = 4_096  # idle ones included
    connections_per_address: int = 64  # but for this machine's own, such as a proxy's
    max_open_requests: int = 128
    max_buffered_bytes: int = 512 * MIB  # of all bodies that are in memory
    threads: int = 2  # that decode audio and check adapters
    handle_bytes: int = 256 * MIB
    handle_seconds: float = 3600.0
    handles_per_token: int = 64

    # One token
    requests_per_minute: float = 240.0
    audio_seconds_per_minute: float = 1200.0
    token_share: float = 0.25  # of open requests, of bytes in memory, of places in /v1/adapt

    # Enrolment of a device
    max_utterances: int = 200
    max_train_seconds: float = 600.0  # of audio
    adapt_seconds: float = 900.0  # by when it is enrolled
    adapts_waiting: int = 4

    def __post_init__(self) -> None:
        for field in fields(self):
            value, zero_allowed = getattr(self, field.name), field.name.endswith("_per_minute")
            if not (value > 0 or (zero_allowed and value == 0)):
                raise ConfigError(f"{field.name} = {value!r} is not allowed: give a number above zero")

    def body_bytes(self, path: str) -> int:
        """The largest body of a request to ``path``."""
        return min(self.max_body_bytes, self.max_adapter_bytes) if path == ADAPTERS_PATH else self.max_body_bytes

    def answer_seconds(self, path: str) -> float:
        """By when a request is answered in any case, its body and the slowest reader of the answer included."""
        work = self.adapt_seconds * (1 + self.adapts_waiting) if path == ADAPT_PATH else self.request_seconds
        return self.body_seconds + work + MAX_SECONDS


class Places:
    """``most`` of something that requests hold at once, in all, of which one token may hold ``share``, at least one."""

    def __init__(self, what: str, most: int, share: float, retry_after: float = 1.0) -> None:
        self.what, self.most, self.each, self.retry_after = what, most, max(1, int(most * share)), retry_after
        self._held: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """How many are held by all together."""
        return self._held.total()

    def take(self, token: str, amount: int = 1) -> None:
        """Hold ``amount`` more; raises :class:`ProblemError` ``busy``, and holds nothing, where there is no room for it."""
        from fl.serving.http.problems import ProblemError  # FastAPI, which a command's help does without

        for limit, held, whose in ((self.most, self.held, ""), (self.each, self._held[token], " of this token")):
            if held + amount > limit:
                reason = f"{held:,} {self.what}{whose} are open, and at most {limit:,} may be"
                raise ProblemError("busy", reason, retry_after=self.retry_after, close=True)
        self._held[token] += amount

    def give_back(self, token: str, amount: int = 1) -> None:
        """Hold ``amount`` less, and remember nobody who holds nothing."""
        self._held[token] -= amount
        if not self._held[token]:
            del self._held[token]


class RateLimit:
    """A bucket for each token that fills at ``per_minute`` and holds a minute's worth; zero: no limit.

    What something costs may be known only after it was begun, so it is enough that the bucket is not empty; it then goes
    below zero and has to fill again. There are as many buckets as tokens.
    """

    def __init__(self, what: str, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.what = what
        self.per_minute = per_minute
        self._clock = clock
        self._levels: dict[str, tuple[float, float]] = {}

    def take(self, token: str, amount: float = 1.0) -> None:
        """Take ``amount``; raises :class:`ProblemError` ``rate-limited`` where nothing is left."""
        from fl.serving.http.problems import ProblemError

        if not self.per_minute:
            return
        now = self._clock()
        level, then = self._levels.get(token, (self.per_minute, now))
        level = min(self.per_minute, level + (now - then) * self.per_minute / 60)
        if level <= 0 or (amount <= 1 and level < amount):
            self._levels[token] = level, now
            raise ProblemError(
                "rate-limited",
                f"this token has used its {self.per_minute:g} {self.what} a minute",
                retry_after=(min(amount, 1.0) - level) * 60 / self.per_minute,
            )
        self._levels[token] = level - amount, now
