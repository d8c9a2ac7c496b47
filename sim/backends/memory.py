"""Memory of this process and everything that it started, Ray's processes among them, sampled while something runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass
class Peak:
    """The largest sum that was seen, in bytes; 0 where the system does not tell."""

    bytes: int = 0


def tree_bytes(root: int) -> int:
    """Proportional set size of a process and its descendants in bytes: a page that N processes share counts 1/N in each."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir() if PROC.is_dir() else ():
        if entry.name.isdecimal():
            children.setdefault(_parent(entry), []).append(int(entry.name))
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        total += _proportional(PROC / str(process))
        waiting += children.get(process, [])
    return total


def _parent(entry: Path) -> int:
    try:
        # The second field is the command in brackets, which may hold spaces and brackets itself.
        return int((entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return -1  # it ended while we looked


def _proportional(entry: Path) -> int:
    try:
        lines = (entry / "smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


@contextmanager
def peak_memory(every: float = 1.0) -> Iterator[Peak]:
    """Sample :func:`tree_bytes` of this process every so many seconds, and once at the start and the end."""
    peak, stop = Peak(), threading.Event()

    def sample() -> None:
        peak.bytes = max(peak.bytes, tree_bytes(os.getpid()))

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
