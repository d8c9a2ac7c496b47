"""A secure sum of 100 devices at the size of the default adapter's shared part: seconds of computation for one device.

    python -m benchmarks.secure_sum [--devices N] [--dropouts SHARE] [--signed] [--smoke]

A whole session runs in one process and one thread, each step of each device timed alone. The figure is the largest total of a device
that stays to the end. A share of the devices drops out after the exchange of keys and shares, which costs the server most: it restores
their keys and subtracts all masks that they had agreed on. The sum must equal the unmasked one within the stated error. With ``--signed``
every device has a key and knows all others', and signs the list of survivors. The server's own times are in the conditions.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks._report import BenchmarkRow, machine, spread, write_row
from fl.core.rng import derive_generator
from fl.privacy.secure_sum.device import SecureSumClient
from fl.privacy.secure_sum.identity import Identity
from fl.privacy.secure_sum.server import SecureSumServer, new_setup

TARGET_SECONDS = 1.0
LIMIT = 1.0
SERVER = "server"
T = TypeVar("T")


class Clock:
    """Seconds by participant and step."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def time(self, who: str, step: str, work: Callable[[], T]) -> T:
        """Do ``work`` and add what it took."""
        start = time.perf_counter()
        result = work()
        self.seconds[who][step] += time.perf_counter() - start
        return result

    def total(self, who: str) -> float:
        """Seconds of all steps of one participant."""
        return sum(self.seconds[who].values())


def run_session(arguments: argparse.Namespace, clock: Clock) -> tuple[list[str], float, float]:
    """One session; returns the devices that stayed, the largest error of the sum and the bound on it."""
    names = [f"device-{place:04}" for place in range(arguments.devices)]
    lost = set(names[:: max(1, round(1 / arguments.dropouts))]) if arguments.dropouts else set()
    stayed = [name for name in names if name not in lost]
    setup = new_setup(names, arguments.size, LIMIT)
    server = SecureSumServer(setup)
    clients = {name: clock.time(name, "begin", lambda name=name: SecureSumClient(name, setup)) for name in names}
    owned = {name: ec.generate_private_key(ec.SECP384R1()) for name in names} if arguments.signed else {}
    peers = {name: key.public_key() for name, key in owned.items()}
    who = {name: Identity(owned.get(name), peers) for name in names}
    for name, client in clients.items():
        keys = clock.time(name, "keys", lambda c=client: c.advertise(who[c.device]))
        clock.time(SERVER, "keys", lambda keys=keys: server.add(keys))
    participants = server.participants()
    for name, client in clients.items():
        shares = clock.time(name, "shares", lambda c=client: c.share(participants, who[c.device]))
        clock.time(SERVER, "shares", lambda shares=shares: server.add(shares))
    expected = np.zeros(arguments.size)
    for name in stayed:
        numbers = derive_generator(arguments.seed, name).uniform(-LIMIT, LIMIT, arguments.size)
        expected += numbers
        inbox = clock.time(SERVER, "inboxes", lambda name=name: server.inbox(name))
        masked = clock.time(name, "mask", lambda c=clients[name], i=inbox, n=numbers: c.mask(i, n))
        clock.time(SERVER, "add", lambda masked=masked: server.add(masked))
    check = server.check()
    for name in stayed if check else ():
        server.add(clock.time(name, "check", lambda c=clients[name]: c.check(check, who[c.device])))
    survivors = server.survivors()
    for name in stayed:
        reveal = clock.time(name, "reveal", lambda c=clients[name]: c.reveal(survivors, who[c.device]))
        clock.time(SERVER, "reveals", lambda reveal=reveal: server.add(reveal))
    total = clock.time(SERVER, "unmask", server.total)
    return stayed, float(np.abs(total - expected).max()), setup.grid.error


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--size", type=int, default=589_824, help="numbers in a vector: A and B of the default adapter")
    parser.add_argument("--dropouts", type=float, default=0.25, help="share of devices that is gone before the vectors")
    parser.add_argument("--signed", action="store_true", help="with keys and peers; nothing is written")
    parser.add_argument("--smoke", action="store_true", help="sizes that only show that it runs; nothing is written")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.devices, arguments.size = 12, 1000
    return arguments


def main() -> int:
    """Measure, write ``benchmarks/results/secure_sum.json``; 1 where the target is missed or the sum is wrong."""
    arguments = parse_arguments()
    clock = Clock()
    stayed, error, bound = run_session(arguments, clock)
    totals = [clock.total(name) for name in stayed]
    steps = {step: spread([clock.seconds[name][step] for name in stayed]) for step in clock.seconds[stayed[0]]}
    row = BenchmarkRow(
        name="secure_sum",
        value=round(max(totals), 3),
        unit="seconds of computation, slowest device",
        ratio=round(max(totals), 3),
        target=TARGET_SECONDS,
        conditions={
            **vars(arguments),
            "device_seconds": spread(totals),
            "device_steps": steps,
            "server_seconds": {step: round(seconds, 3) for step, seconds in clock.seconds[SERVER].items()},
            "error": error,
            "error_bound": bound,
            "machine": machine(("cryptography", "shamirs")),
        },
        at_most=True,
    )
    print(
        f"device: {np.median(totals):.3f} s ({min(totals):.3f} to {max(totals):.3f}), server {clock.total(SERVER):.1f} s"
    )
    for step, seconds in steps.items():
        print(f"{step:>8}: {seconds['median']:.3f} s ({seconds['min']:.3f} to {seconds['max']:.3f})")
    print(f"error {error:.2e}, stated bound {bound:.2e}")
    where = "not written" if arguments.smoke or arguments.signed else f"written to {write_row(row)}"
    print(f"slowest: {row.value} s (target {TARGET_SECONDS} s: {'met' if row.met else 'MISSED'}), {where}")
    return 0 if row.met and error <= bound * (1 + 1e-9) else 1


if __name__ == "__main__":
    sys.exit(main())
