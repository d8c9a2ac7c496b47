"""Whose turn it is: a queue that shares the engine between people, however many requests one of them has waiting.

Start-time fair queueing (Goyal, Vin and Cheng 1996): a request starts, in virtual time, when the one before it of the same
person ends, or now; the earliest start goes first. Its cost is the work that it can be, which the engine says.
"""

import heapq
from collections import Counter
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Items of many people. The caller brings the lock."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str, Item]] = []  # start in virtual time, arrival, person, item
        self._ends: dict[str, float] = {}  # when a person's last request ends in virtual time
        self._counts: Counter[str] = Counter()
        self._now = 0.0
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._heap)

    def waiting(self, person: str) -> int:
        """How many items of one person are in the queue."""
        return self._counts[person]

    def push(self, item: Item, person: str, cost: float) -> None:
        """Add an item of ``cost`` (above zero, in any unit that is the same for all)."""
        start = max(self._now, self._ends.get(person, 0.0))
        self._ends[person] = start + cost
        self._arrivals += 1
        heapq.heappush(self._heap, (start, self._arrivals, person, item))
        self._counts[person] += 1

    def pop(self) -> Item:
        """The item whose turn it is. Raises IndexError if there is none."""
        start, _, person, item = heapq.heappop(self._heap)
        self._now = max(self._now, start)
        self._release(person)
        return item

    def peek(self) -> Item:
        """The item that :meth:`pop` would give."""
        return self._heap[0][-1]

    def drain(self) -> list[Item]:
        """Take everything, in turn."""
        return [self.pop() for _ in range(len(self._heap))]

    def _release(self, person: str) -> None:
        """Keep no trace of people who have nothing waiting and no debt."""
        self._counts[person] -= 1
        if not self._counts[person]:
            del self._counts[person]
        if not self._heap:
            self._ends.clear()
            self._now = 0.0
        elif len(self._ends) > 2 * len(self._counts) + 64:
            self._ends = {name: end for name, end in self._ends.items() if name in self._counts or end > self._now}
