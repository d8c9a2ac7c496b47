"""When each byte of a TCP stream arrives at the other end of a link: the sender's window, the line, jitter and loss.

Knows no sockets and no clock: it is given times and gives times, so that a simulation, a test and the proxy see the same
stream. It is not the formula of :mod:`sim.study.network.links` but what that formula is the mean of, segment by segment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from random import Random

from sim.study.network.links import FIRST_WINDOW, SEGMENT_BYTES, LinkProfile

MAX_WINDOW = 32_768  # segments in flight, 46 MiB: more than any link of PROFILES holds in a round trip
IDLE_RESTART = 0.2  # seconds without a byte after which a window starts anew (RFC 5681, 4.1; Linux's least timeout)


class Stream:
    """One direction of one connection. :meth:`send` must be called with times that never go back.

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
