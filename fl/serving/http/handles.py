"""Adapters that a device asked the server to hold for a while: in memory, under a byte budget, for their own token alone.

A handle is 192 random bits. It says nothing about the adapter, works only with the token that put it, and is gone after its
time, when room is needed, and when the server stops. Room is made by whoever holds most, with what they used least recently:
nobody loses an adapter to somebody who holds more. The event loop's thread alone uses this.
"""

import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from fl.serving.engine.requests import ServedAdapter
from fl.serving.http.problems import ProblemError


@dataclass
class HeldAdapter:
    """One adapter that is held. ``expires`` is on the store's clock."""

    owner: str
    adapter: ServedAdapter
    expires: float


class Handles:
    """Adapters by handle, the least recently used first."""

    def __init__(
        self, max_bytes: int, seconds: float, per_owner: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.max_bytes, self.seconds, self.per_owner = max_bytes, seconds, per_owner
        self.bytes, self.evicted = 0, 0
        self._clock = clock
        self._held: OrderedDict[str, HeldAdapter] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def put(self, owner: str, adapter: ServedAdapter) -> str:
        """Hold ``adapter`` and return its handle. The same adapter of the same owner keeps its handle and starts anew.

        Raises :class:`ProblemError` ``too-large`` for one that is more than the whole budget.
        """
        self._expire()
        if adapter.bytes > self.max_bytes:
            raise ProblemError("too-large", f"the adapter has {adapter.bytes:,} bytes; handles have {self.max_bytes:,}")
        own = {handle: held for handle, held in self._held.items() if held.owner == owner}
        for handle, held in own.items():
            if held.adapter.digest == adapter.digest:
                self.get(owner, handle)
                return handle
        if len(own) >= self.per_owner:
            self._evict(next(iter(own)))
        while self.bytes + adapter.bytes > self.max_bytes:
            self._evict(self._least_used(owner, adapter.bytes))
        handle = secrets.token_urlsafe(24)
        self._held[handle] = HeldAdapter(owner, adapter, self._clock() + self.seconds)
        self.bytes += adapter.bytes
        return handle

    def get(self, owner: str, handle: str) -> ServedAdapter:
        """The adapter, which counts as used. :class:`ProblemError` ``unknown-handle`` for another owner's as for none."""
        held = self._find(owner, handle)
        held.expires = self._clock() + self.seconds
        self._held.move_to_end(handle)
        return held.adapter

    def look(self, owner: str, handle: str) -> tuple[ServedAdapter, float]:
        """As :meth:`get`, but it does not count as used; and the seconds for which the adapter stays if nobody uses it."""
        held = self._find(owner, handle)
        return held.adapter, held.expires - self._clock()

    def drop(self, owner: str, handle: str) -> None:
        """Forget the adapter."""
        self._find(owner, handle)
        self._drop(handle)

    def clear(self) -> None:
        """Forget all of them."""
        self._held.clear()
        self.bytes = 0

    def _find(self, owner: str, handle: str) -> HeldAdapter:
        self._expire()
        held = self._held.get(handle)
        if held is None or held.owner != owner:
            raise ProblemError("unknown-handle", "no adapter of this token has that handle: expired, evicted or wrong")
        return held

    def _expire(self) -> None:
        # Every use sets the same time to live and moves to the end, so the first is always the next to expire.
        while self._held and next(iter(self._held.values())).expires <= self._clock():
            self._drop(next(iter(self._held)))

    def _least_used(self, owner: str, more: int) -> str:
        """The least recently used of who holds most, once ``owner`` holds ``more`` bytes than now; of the owner's where two do."""
        sizes = Counter({owner: more})
        for held in self._held.values():
            sizes[held.owner] += held.adapter.bytes
        most = max(sizes, key=sizes.__getitem__)  # the first of equals
        return next(handle for handle, held in self._held.items() if held.owner == most)

    def _evict(self, handle: str) -> None:
        self._drop(handle)
        self.evicted += 1

    def _drop(self, handle: str) -> None:
        self.bytes -= self._held.pop(handle).adapter.bytes
