"""Link profiles, the model that turns bytes into seconds, and the stream of segments that the model is the mean of.

A link has a rate in each direction, a round trip, jitter and loss. The same description drives the proxy that delays real
bytes (:mod:`sim.study.network.proxy`) and the formula here. The stream knows no sockets and no clock: it is given times and
gives times, so that a simulation, a test and the proxy see the same one.

One message of n bytes over TCP takes, from its first byte sent to its last byte received,

    rtt / 2  +  8 n / rate  +  sum over k < K - 1 of max(0, 8 S / rate + rtt - 2^k W 8 S / rate)  +  rtt * m p / (1 - p)

with S bytes in a segment, m = ceil(n / S) segments, W segments in the first window (RFC 6928), p the loss, and
K = ceil(log2(m / W + 1)) windows until the message is through: each of them doubles (slow start, RFC 5681), and after each
the sender waits for its first acknowledgement unless the line is still busy (Kurose and Ross, Computer Networking, 3.7).
docs/network.md says what is assumed and where the profiles come from.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from fl.core.errors import IdiolectError

SEGMENT_BYTES = 1460  # Ethernet's 1500 without the headers of IPv4 and TCP, 20 each
FIRST_WINDOW = 10  # segments that a sender may have in flight before the first acknowledgement: RFC 6928
MAX_WINDOW = 32_768  # segments in flight, 46 MiB: more than any link of PROFILES holds in a round trip
IDLE_RESTART = 0.2  # seconds without a byte after which a window starts anew (RFC 5681, 4.1; Linux's least timeout)
TCP_ROUND_TRIPS = 1  # before the first byte of a request on a new connection; TLS 1.3 takes one more
MBIT, MS = 1e6, 1e-3
BOUNDS: Mapping[str, tuple[float, float]] = {  # what a value of a link can be: between a pager and a data centre
    "rate_up": (1e3, 1e12),
    "rate_down": (1e3, 1e12),
    "rtt": (0.0, 10.0),
    "jitter": (0.0, 10.0),
    "loss": (0.0, 0.5),
}


class NetworkError(IdiolectError):
    """A link that cannot exist, a profile that is not known, or an address that does not answer."""


@dataclass(frozen=True)
class LinkProfile:
    """A device's link to the server. Raises :class:`NetworkError` for values that no link has.

    Rates are in bit/s of payload, as speed tests print them. ``rtt`` is the mean round trip of a small packet on the idle
    link, in seconds. ``jitter`` is the width, in seconds, of the uniform spread of the one-way delay around ``rtt / 2``, drawn
    anew each round trip. ``loss`` is the share of segments that have to be sent a second time.
    """

    name: str
    rate_up: float
    rate_down: float
    rtt: float
    jitter: float = 0.0
    loss: float = 0.0

    def __post_init__(self) -> None:
        for key, (low, high) in BOUNDS.items():
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # NaN too
                raise NetworkError(f"link {self.name!r}: {key} = {value!r}, allowed is {low:g} to {high:g}")
        if self.jitter > self.rtt:
            raise NetworkError(
                f"link {self.name!r}: jitter {self.jitter:g} s is wider than the round trip of {self.rtt:g} s: some bytes "
                "would arrive before they are sent"
            )


def _profile(name: str, down: float, up: float, rtt: float, jitter: float, loss: float) -> LinkProfile:
    """From Mbit/s and milliseconds."""
    return LinkProfile(name, up * MBIT, down * MBIT, rtt * MS, jitter * MS, loss)


# Sources of rates and round trips: docs/network.md. Jitter and loss are assumptions.
PROFILES: Mapping[str, LinkProfile] = {
    profile.name: profile
    for profile in (
        _profile("fibre", 171.0, 112.0, 8, 2, 1e-5),
        _profile("wifi", 69.4, 18.4, 34, 20, 1e-3),
        _profile("5g", 129.9, 14.7, 20, 10, 5e-4),
        _profile("lte", 29.5, 7.6, 53, 20, 5e-4),
        _profile("3g", 1.6, 0.75, 150, 50, 1e-3),
        _profile("leo", 97.2, 13.9, 45, 20, 2e-3),
        _profile("satellite", 18.1, 3.4, 630, 60, 5e-4),
    )
}


def parse_profile(text: str) -> LinkProfile:
    """A profile from text: a name, or values that replace a named profile's, ``lte,rtt=0.2,loss=0.01``.

    Without a name in front, ``rate_up``, ``rate_down`` and ``rtt`` must all be given. Rates are in bit/s, times in seconds.
    Raises :class:`NetworkError` for a name, a key or a value that is not allowed.
    """
    name, *parts = (part.strip() for part in text.split(","))
    start: dict[str, Any] = {}
    if "=" in name:
        parts = [name, *parts]
    elif name in PROFILES:
        start = asdict(PROFILES[name])
    else:
        raise NetworkError(f"network profile {name!r} is not known: use one of {', '.join(PROFILES)}, or key=value")
    values: dict[str, float] = {}
    for part in parts:
        key, found, value = (side.strip() for side in part.partition("="))
        if key not in BOUNDS or not found:
            raise NetworkError(f"network setting {part!r} is not known: use {', '.join(BOUNDS)}, each as key=value")
        if key in values:
            raise NetworkError(f"network setting {key!r} stands twice in {text!r}")
        try:
            values[key] = float(value)
        except ValueError:
            raise NetworkError(f"network setting {part!r}: {value!r} is not a number, as 5e6 or 0.05") from None
    if missing := [key for key in ("rate_up", "rate_down", "rtt") if key not in {**start, **values}]:
        raise NetworkError(f"network profile {text!r} lacks {', '.join(missing)}: or start from a named profile")
    return LinkProfile(**{**start, **values, "name": text if values else name})


def one_way_seconds(profile: LinkProfile, size: int, rate: float) -> float:
    """Mean seconds from the first byte of a message sent to its last byte received: the formula above. 0 bytes take none."""
    if size < 0:
        raise NetworkError(f"{size} bytes cannot be sent: a message has 0 or more")
    if size == 0:
        return 0.0
    count = math.ceil(size / SEGMENT_BYTES)
    segment = 8 * SEGMENT_BYTES / rate
    windows = math.ceil(math.log2(count / FIRST_WINDOW + 1))
    waiting = sum(max(0.0, segment + profile.rtt - 2.0**k * FIRST_WINDOW * segment) for k in range(windows - 1))
    again = profile.rtt * count * profile.loss / (1 - profile.loss)
    return profile.rtt / 2 + 8 * size / rate + waiting + again


def transfer_seconds(
    profile: LinkProfile, bytes_up: int, bytes_down: int, *, round_trips: float = TCP_ROUND_TRIPS
) -> float:
    """Mean seconds that the network adds to one request of ``bytes_up`` and its answer of ``bytes_down``.

    ``round_trips`` are those before the request's first byte: 1 opens a TCP connection, 2 one with TLS 1.3, 0 is a connection
    that is open. The server's own seconds come on top.
    """
    up = one_way_seconds(profile, bytes_up, profile.rate_up)
    return round_trips * profile.rtt + up + one_way_seconds(profile, bytes_down, profile.rate_down)


class Stream:
    """When the bytes of one direction of a connection arrive. :meth:`send` must be called with times that never go back.

    A sender keeps at most a window of segments unacknowledged; the window starts at ten and grows by one with each
    acknowledgement, so it doubles each round trip. The line sends one segment after the other at ``rate``. A lost segment is
    noticed and repeated one round trip later, and nothing behind it moves meanwhile. Bytes never overtake each other.
    """

    def __init__(self, profile: LinkProfile, rate: float, random: Random, start: float = 0.0) -> None:
        self.profile, self.rate, self.random = profile, rate, random
        self.free = start  # when the line can take the next segment
        self.arrived = start  # when the last byte so far is at the other end
        self._window = FIRST_WINDOW
        self._acks: deque[float] = deque()  # when the segments in flight are acknowledged, ascending
        self._delay, self._delay_until = 0.0, float("-inf")

    def send(self, size: int, now: float) -> Iterator[tuple[int, float]]:
        """Segments of ``size`` bytes that the sender has at ``now``: bytes of each, and when it is at the other end."""
        if self._acks and now - max(self._acks[-1], self.free) > IDLE_RESTART:
            self._window = FIRST_WINDOW
            self._acks.clear()
        while size > 0:
            segment = min(size, SEGMENT_BYTES)
            size -= segment
            yield segment, self._send_one(segment, now)

    def _send_one(self, size: int, now: float) -> float:
        leaves = max(now, self.free)
        while self._acks and (self._acks[0] <= leaves or len(self._acks) >= self._window):
            leaves = max(leaves, self._acks.popleft())
            self._window = min(self._window + 1, MAX_WINDOW)
        self.free = leaves + 8 * size / self.rate
        while self.profile.loss and self.random.random() < self.profile.loss:
            self.free += self.profile.rtt
        self.arrived = max(self.arrived, self.free + self._one_way(leaves))
        self._acks.append(self.arrived + self.profile.rtt / 2)
        return self.arrived

    def _one_way(self, now: float) -> float:
        """The one-way delay, in seconds: queues are long or short for a while, so it is drawn once in a round trip."""
        if not self.profile.jitter:
            return self.profile.rtt / 2
        if now >= self._delay_until:
            spread = self.profile.jitter * (self.random.random() - 0.5)
            self._delay, self._delay_until = self.profile.rtt / 2 + spread, now + self.profile.rtt
        return self._delay
