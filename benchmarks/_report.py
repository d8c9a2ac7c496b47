"""What every benchmark shares: timing that is side by side, and a JSON row with its conditions."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "flwr", "numpy")


@dataclass(frozen=True)
class Timing:
    """Seconds of the repetitions of one thing."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one, in seconds."""
        return statistics.median(self.seconds)

    def describe(self) -> dict[str, float | int]:
        """Median and spread, for a row."""
        return {
            "median_seconds": round(self.median, 4),
            "min_seconds": round(min(self.seconds), 4),
            "max_seconds": round(max(self.seconds), 4),
            "repeats": len(self.seconds),
        }


def time_side_by_side(
    steps: Mapping[str, Callable[[], object]], repeats: Mapping[str, int], warm_up: int = 1
) -> dict[str, Timing]:
    """Time each step ``repeats[name]`` times, taking turns, so that a busy moment of the machine meets them all."""
    for step in steps.values():
        for _ in range(warm_up):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    rounds = max(repeats.values())
    for turn in range(rounds):
        for name, step in steps.items():
            due = (turn + 1) * repeats[name] // rounds - len(seconds[name])
            for _ in range(due):
                start = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(found)) for name, found in seconds.items()}


@dataclass(frozen=True)
class Row:
    """One measured figure. ``ratio`` is how many times better than the baseline; ``target`` what it should be."""

    name: str
    value: float
    unit: str
    ratio: float
    target: float
    conditions: dict[str, object]

    @property
    def met(self) -> bool:
        """Whether the ratio reaches the target."""
        return self.ratio >= self.target


def machine() -> dict[str, object]:
    """The processor and the versions that a figure was measured with."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": model,
        "cores": cores,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def write_row(row: Row, folder: Path = RESULTS) -> Path:
    """Write ``row`` to ``<folder>/<name>.json`` and return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row.name}.json"
    path.write_text(json.dumps({**asdict(row), "met": row.met}, indent=2) + "\n", encoding="utf-8")
    return path
