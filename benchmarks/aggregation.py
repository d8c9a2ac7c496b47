"""Aggregating 1,000 devices of the default adapter: seconds of every strategy, from checked replies to new shared tensors.

    python -m benchmarks.aggregation [--devices 1000] [--smoke]

Replies lie in memory as a node sends them, each tensor of all devices in one float32 array (2.4 GB for 1,000). Devices differ
by a common way and one of their own; a tenth are 100 times too far. Timed is ``aggregate``; the product gap, which each round
reports for every strategy, and a server optimizer's step are timed apart. Target: at most 2 s for each strategy but the ones
that compare every device with every other (krum, multi-krum, bulyan), which run with fewer devices and are not held to it.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord

from benchmarks._report import Row, machine, matrix_rate, spread, write_row
from fl.adapters.split import CONTROL
from fl.core.rng import derive_generator
from fl.protocol.wire import Job
from fl.settings.names import STRATEGIES
from sim.backends.serial import SerialGrid
from strategies.averaging import product_gaps
from strategies.base import Roster, SharedFedAvg
from strategies.optimizers import ServerOptimizer
from strategies.registry import RULES
from strategies.replies import DeviceReply

TARGET_SECONDS = 2.0
QUADRATIC = ("krum", "multi-krum", "bulyan")
LAYERS, WIDTH, RANK = 72, 512, 8  # whisper-base: q, k, v, out of 18 attentions
KINDS = {"ffa": ("B",), "fedsa": ("A",)}  # what is shared; both factors otherwise


def make_replies(devices: int, layers: int, seed: int) -> tuple[dict[str, np.ndarray], list[DeviceReply]]:
    """Shared tensors before the round, and devices' tensors after it as rows of one array a tensor."""
    generator = derive_generator(seed, "aggregation")
    before: dict[str, np.ndarray] = {}
    stacks: dict[str, np.ndarray] = {}
    far = np.where(np.arange(devices) % 10 == 9, np.float32(100), np.float32(1))[:, None, None]
    for layer in range(layers):
        for kind, shape in (("A", (RANK, WIDTH)), ("B", (WIDTH, RANK))):
            name = f"layers.{layer:02d}.gated_lora_{kind}"
            before[name] = 0.02 * generator.standard_normal(shape, dtype=np.float32)
            way = 0.01 * generator.standard_normal(shape, dtype=np.float32)
            own = generator.standard_normal((devices, *shape), dtype=np.float32)
            own *= np.float32(0.01)
            own += way
            own *= far
            own += before[name]
            stacks[name] = own
    numbers = {"examples": 10.0, "steps": 12.0}
    replies = [
        DeviceReply(f"device-{i:06d}", {name: stack[i] for name, stack in stacks.items()}, {}, numbers)
        for i in range(devices)
    ]
    return before, replies


def make_rule(name: str, before: dict[str, np.ndarray], devices: int) -> SharedFedAvg:
    """The strategy in the first round."""
    cls = RULES[name].cls
    assert cls is not None
    names = tuple(f"device-{i:06d}" for i in range(devices))
    roster = Roster(dict.fromkeys(names, 1), dict.fromkeys(names, 10))
    rule = cls(roster=roster, settings=ConfigRecord(), job=Job("global", 0, names))
    start = ArrayRecord({n: Array(v) for n, v in before.items()})
    list(rule.configure_train(1, start, ConfigRecord(), SerialGrid(lambda message, _: message, nodes=1)))  # type: ignore[arg-type]
    return rule


def seconds_of(step: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of ``repeats`` calls."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        found.append(time.perf_counter() - started)
    return found


def only(kinds: tuple[str, ...], replies: list[DeviceReply]) -> tuple[DeviceReply, ...]:
    """The replies with some of their tensors."""
    return tuple(
        DeviceReply(r.device_id, {n: v for n, v in (r.shared or {}).items() if n[-1] in kinds}, {}, r.numbers)
        for r in replies
    )


def with_control(replies: list[DeviceReply]) -> tuple[DeviceReply, ...]:
    """The replies with a control variate for each tensor, as SCAFFOLD's devices send: twice the numbers."""
    return tuple(
        DeviceReply(
            r.device_id, {**(r.shared or {}), **{CONTROL + n: v for n, v in (r.shared or {}).items()}}, {}, r.numbers
        )
        for r in replies
    )


def measure(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds by strategy, and of what every round does besides."""
    before, replies = make_replies(arguments.devices, arguments.layers, arguments.seed)
    found: dict[str, list[float]] = {}
    wanted = [name for name in STRATEGIES if not arguments.only or name in arguments.only]
    for name in wanted:
        few = replies[: arguments.quadratic_devices] if name in QUADRATIC else replies
        kinds = KINDS.get(name, ("A", "B"))
        chosen = with_control(few) if name == "scaffold" else only(kinds, few)
        rule = make_rule(name, {n: v for n, v in before.items() if n[-1] in kinds}, len(few))
        found[name] = seconds_of(lambda rule=rule, chosen=chosen: rule.aggregate(chosen), arguments.repeats)  # type: ignore[misc]
        print(f"{name:>17}: {min(found[name]):7.3f} s, {len(few)} devices", flush=True)
    if arguments.only and "product-gap" not in arguments.only:
        return found
    found["product gap"] = seconds_of(lambda: product_gaps(replies), arguments.repeats)
    if arguments.only:
        print(f"{'product gap':>17}: {min(found['product gap']):7.3f} s", flush=True)
        return found
    optimizer, start = ServerOptimizer("fedadam", 0.01), ArrayRecord({n: Array(v) for n, v in before.items()})
    found["fedadam's step"] = seconds_of(lambda: optimizer.step(start, start, tuple(before)), arguments.repeats)
    for name in ("product gap", "fedadam's step"):
        print(f"{name:>17}: {min(found[name]):7.3f} s", flush=True)
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--quadratic-devices", type=int, default=100, help="devices of krum, multi-krum and bulyan")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="strategies, or product-gap; nothing is written")
    parser.add_argument("--smoke", action="store_true", help="sizes that only show that it runs; nothing is written")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.devices, arguments.quadratic_devices, arguments.layers, arguments.repeats = 20, 20, 2, 1
    return arguments


def main() -> int:
    """Measure, write ``benchmarks/results/aggregation.json``; 1 where the target is missed."""
    arguments = parse_arguments()
    rate = matrix_rate(torch.get_num_threads())
    found = measure(arguments)
    if arguments.only:
        print(f"{rate:.0f} GFLOP/s; {found}")
        return 0
    medians = {name: spread(seconds)["median"] for name, seconds in found.items() if name in STRATEGIES}
    slowest = max((name for name in medians if name not in QUADRATIC), key=lambda name: medians[name])
    row = Row(
        name="aggregation",
        value=medians[slowest],
        unit=f"s, {slowest}, the slowest strategy but the quadratic ones",
        ratio=medians[slowest],
        target=TARGET_SECONDS,
        conditions={
            **vars(arguments),
            "seconds": {name: spread(seconds) for name, seconds in found.items()},
            "gflops": round(rate, 1),
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
