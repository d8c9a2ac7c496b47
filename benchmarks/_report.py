"""What every benchmark shares: timing that is side by side, and a JSON row with its conditions."""

import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fl.core.machine import available_cores, processor

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
class BenchmarkRow:
    """One measured figure: ``value`` in ``unit``, and ``ratio``, the number that is compared with ``target``.

    ``ratio`` is how many times better the figure is than its baseline, which was measured beside it. With ``at_most`` the
    target is an upper bound instead (memory of 4 workers against 1, seconds of a run), and ``ratio`` may be the value itself.
    """

    name: str
    value: float
    unit: str
    ratio: float
    target: float
    conditions: dict[str, object]
    at_most: bool = False

    @property
    def of_target(self) -> float:
        """How much of the target is reached: 1 is just enough, 2 twice as good, whichever way the target points."""
        if not self.at_most:
            return self.ratio / self.target
        return self.target / self.ratio if self.ratio > 0 else math.inf

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Median and spread of repeated measurements, for a row."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "repeats": len(values),
    }


def exponent(points: Mapping[float, float]) -> float:
    """The power of the size with which a figure grows, by least squares over logarithms; 1 is linear."""
    sizes, values = ([math.log(value) for value in side] for side in (points.keys(), points.values()))
    return round(statistics.linear_regression(sizes, values).slope, 3)


def has_amx() -> bool:
    """Whether the processor multiplies matrices of bf16 in tiles, on which some targets depend."""
    info = Path("/proc/cpuinfo")
    return info.is_file() and " amx_bf16" in info.read_text()


def machine(packages: Sequence[str] = ()) -> dict[str, object]:
    """The processor and the versions that a figure was measured with; ``packages`` are further ones to name."""
    return {
        "processor": processor(),
        "amx": has_amx(),
        "cores": available_cores(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in (*PACKAGES, *packages)},
    }


def _version(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def matrix_rate(threads: int, size: int = 1024, seconds: float = 0.5) -> float:
    """GFLOP/s of float32 matrix products (size x size) with ``threads`` threads: how fast the machine is at this moment."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left, right = torch.ones(size, size), torch.ones(size, size)
        torch.mm(left, right)
        count, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds or count < 3:
            torch.mm(left, right)
            count += 1
    finally:
        torch.set_num_threads(before)
    return 2 * size**3 * count / spent / 1e9


def write_row(row: BenchmarkRow, folder: Path = RESULTS) -> Path:
    """Write ``row`` to ``<folder>/<name>.json`` and return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row.name}.json"
    path.write_text(json.dumps({**asdict(row), "met": row.met}, indent=2) + "\n", encoding="utf-8")
    return path


def conclude(rows: Iterable[BenchmarkRow], smoke: bool) -> int:
    """Write each row as soon as it is there (not with ``smoke``) and print it; the exit code, 1 where a target is missed."""
    missed = False
    for row in rows:
        missed = missed or not row.met
        where = "not written: smoke" if smoke else f"written to {write_row(row)}"
        print(f"{row.name}: {row.value} {row.unit}, ratio {row.ratio} (target {row.target}), {where}", flush=True)
    return 1 if missed and not smoke else 0
