"""Memory of this process and everything that it started, Ray's processes among them, sampled while something runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil


@dataclass
class PeakMemory:
    """The largest proportional sum that was seen, in bytes; 0 where the system does not tell."""

    bytes: int = 0


def tree_bytes(root: psutil.Process) -> tuple[int, int]:
    """Proportional and resident bytes of a process and its descendants.

    In the proportional set size a page that N processes share counts 1/N in each; it is 0 where the system does not tell.
    """
    proportional = resident = 0
    for process in (root, *root.children(recursive=True)):
        try:
            memory = process.memory_full_info()
        except psutil.Error:  # it ended while we looked
            continue
        proportional += getattr(memory, "pss", 0)
        resident += memory.rss
    return proportional, resident


@contextmanager
def peak_memory(every: float = 1.0) -> Iterator[PeakMemory]:
    """Sample the proportional :func:`tree_bytes` of this process every so many seconds, and once at the start and the end."""
    peak, stop, root = PeakMemory(), threading.Event(), psutil.Process()

    def sample() -> None:
        peak.bytes = max(peak.bytes, tree_bytes(root)[0])

    def watch() -> None:
        while not stop.wait(every):
            sample()

    sample()
    thread = threading.Thread(target=watch, name="idiolect-memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
        sample()
