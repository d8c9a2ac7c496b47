"""Aggregating 1,000 devices of the default adapter: seconds of every algorithm, from checked replies to the aggregate.

    python -m benchmarks.aggregation [--devices 1000] [--smoke]

Updates lie in memory as a node sends them, each tensor of all devices in one float32 array (2.4 GB for 1,000). Devices differ
by a common way and one of their own; a tenth are 100 times too far. Timed is ``aggregate``; the product gap, which each round
reports for every algorithm, and a server optimizer's step are timed apart. Target: at most 2 s for each algorithm but the ones
that compare every device with every other (krum, multi-krum, bulyan), which run with fewer devices and are not held to it.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from benchmarks._report import BenchmarkRow, machine, matrix_rate, spread, write_row
from fl.adapters.split import CONTROL
from fl.aggregation.mean import product_gaps
from fl.aggregation.updates import DeviceUpdate, Updates
from fl.algorithms.base import Role, Round
from fl.algorithms.server_optimizers import ServerOptimizer
from fl.algorithms.table import make_algorithm, names_of
from fl.core.machine import available_cores
from fl.core.rng import derive_generator
from fl.settings.config import RunConfig

TARGET_SECONDS = 2.0
QUADRATIC = ("krum", "multi-krum", "bulyan")
LAYERS, WIDTH, RANK = 72, 512, 8  # whisper-base: q, k, v, out of 18 attentions
KINDS = {"ffa": ("B",), "fedsa": ("A",)}  # what is shared; both factors otherwise
ALGORITHMS = names_of(Role.AGGREGATION)


def make_updates(
    devices: int, layers: int, seed: int, rank: int = RANK
) -> tuple[dict[str, np.ndarray], list[DeviceUpdate]]:
    """Shared tensors before the round, and the devices' updates as rows of one array a tensor."""
    generator = derive_generator(seed, "aggregation")
    start: dict[str, np.ndarray] = {}
    stacks: dict[str, np.ndarray] = {}
    far = np.where(np.arange(devices) % 10 == 9, np.float32(100), np.float32(1))[:, None, None]
    for layer in range(layers):
        for kind, shape in (("A", (rank, WIDTH)), ("B", (WIDTH, rank))):
            name = f"layers.{layer:02d}.gated_lora_{kind}"
            start[name] = 0.02 * generator.standard_normal(shape, dtype=np.float32)
            way = 0.01 * generator.standard_normal(shape, dtype=np.float32)
            own = generator.standard_normal((devices, *shape), dtype=np.float32)
            own *= np.float32(0.01)
            own += way
            own *= far
            stacks[name] = own
    numbers = {"examples": 10.0, "steps": 12.0}
    updates = [
        DeviceUpdate(f"device-{i:06d}", {name: stack[i] for name, stack in stacks.items()}, {}, numbers)
        for i in range(devices)
    ]
    return start, updates


def seconds_of(step: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of ``repeats`` calls."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        found.append(time.perf_counter() - started)
    return found


def with_tensors(
    updates: Updates, change: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
) -> tuple[DeviceUpdate, ...]:
    """The updates with other tensors."""
    return tuple(replace(update, tensors=change(update.tensors or {})) for update in updates)


def as_sent(name: str, updates: Updates) -> tuple[DeviceUpdate, ...]:
    """What devices send to an algorithm: the factors that it shares, for SCAFFOLD a control variate with each tensor."""
    if name == "scaffold":
        return with_tensors(updates, lambda tensors: {**tensors, **{CONTROL + n: v for n, v in tensors.items()}})
    kinds = KINDS.get(name, ("A", "B"))
    return with_tensors(updates, lambda tensors: {n: v for n, v in tensors.items() if n[-1] in kinds})


def measure(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds by algorithm, and of what every round does besides."""
    start, updates = make_updates(arguments.devices, arguments.layers, arguments.seed)
    found: dict[str, list[float]] = {}
    for name in [name for name in ALGORITHMS if not arguments.only or name in arguments.only]:
        sent = as_sent(name, updates[: arguments.quadratic_devices] if name in QUADRATIC else updates)
        shared = {n: v for n, v in start.items() if n[-1] in KINDS.get(name, ("A", "B"))}
        aggregator, one = make_algorithm(RunConfig(), name).aggregator(), Round(1, shared, sent)
        found[name] = seconds_of(lambda aggregator=aggregator, one=one: aggregator.aggregate(one), arguments.repeats)  # type: ignore[misc]
        print(f"{name:>17}: {min(found[name]):7.3f} s, {len(sent)} devices", flush=True)
    besides: dict[str, Callable[[], object]] = {"product gap": lambda: product_gaps(updates, start)}
    optimizer = ServerOptimizer("fedadam", 0.01)
    if not arguments.only:
        besides["fedadam's step"] = lambda: optimizer.step(start, tuple(start))
    for name, step in besides.items() if not arguments.only or "product-gap" in arguments.only else ():
        found[name] = seconds_of(step, arguments.repeats)
        print(f"{name:>17}: {min(found[name]):7.3f} s", flush=True)
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--quadratic-devices", type=int, default=100, help="devices of krum, multi-krum and bulyan")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="algorithms, or product-gap; nothing is written")
    parser.add_argument("--smoke", action="store_true", help="sizes that only show that it runs; nothing is written")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.devices, arguments.quadratic_devices, arguments.layers, arguments.repeats = 20, 20, 2, 1
    return arguments


def main() -> int:
    """Measure, write ``benchmarks/results/aggregation.json``; 1 where the target is missed."""
    arguments = parse_arguments()
    rate = matrix_rate(available_cores())
    found = measure(arguments)
    if arguments.only:
        print(f"{rate:.0f} GFLOP/s; {found}")
        return 0
    medians = {name: spread(seconds)["median"] for name, seconds in found.items() if name in ALGORITHMS}
    slowest = max((name for name in medians if name not in QUADRATIC), key=lambda name: medians[name])
    row = BenchmarkRow(
        name="aggregation",
        value=medians[slowest],
        unit=f"s, {slowest}, the slowest algorithm but the quadratic ones",
        ratio=medians[slowest],
        target=TARGET_SECONDS,
        conditions={
            **vars(arguments),
            "seconds": {name: spread(seconds) for name, seconds in found.items()},
            "gflops": round(rate, 1),
            # of fedex, flora and flexlora: the mean product alone, (d_out, devices * rank) by (devices * rank, d_in) a layer
            "dense_floor_seconds": round(2e-9 * arguments.layers * WIDTH**2 * arguments.devices * RANK / rate, 3),
            "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            "machine": machine(),
        },
        at_most=True,
    )
    where = "not written" if arguments.smoke else f"written to {write_row(row)}"
    print(f"slowest: {slowest} {row.value:.2f} s (target {row.target:g} s: {'met' if row.met else 'MISSED'}), {where}")
    return 0 if row.met else 1


if __name__ == "__main__":
    sys.exit(main())
