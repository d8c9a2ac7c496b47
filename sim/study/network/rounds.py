"""How long the rounds of a federated run would take over a link: what the run measured, and the model of the network.

A round is synchronous: it lasts as long as its slowest device, which gets the shared tensors, trains and sends its update.
The aggregator's own seconds and the framework's (Flower polls every 3 s when deployed) are not in it.
"""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from fl.runs.schema import ResultRow
from sim.study.network.links import TCP_ROUND_TRIPS, LinkProfile, NetworkError, transfer_seconds


@dataclass(frozen=True)
class RoundTime:
    """Seconds of one round of one arm: of its slowest device, which is the round's, and of its median device."""

    arm: str
    round: int
    devices: int
    slowest: float
    median: float
    slowest_network: float  # seconds of the network in `slowest`


def network_seconds(profile: LinkProfile, bytes_down: int, bytes_up: int) -> float:
    """Mean seconds of the network in a device's round: two connections, one to get the shared tensors and one to send an update."""
    # The request for the tensors is one way up, half a round trip, and so is the answer to the update on its way down.
    return transfer_seconds(profile, bytes_up, bytes_down, round_trips=2 * TCP_ROUND_TRIPS + 1)


def round_seconds(
    profile: LinkProfile, bytes_down: int, seconds_train: float, bytes_up: int, *, slowdown: float = 1.0
) -> float:
    """Mean seconds of one device's round: the shared tensors down, its local steps, its update up.

    ``seconds_train`` are as measured, and ``slowdown`` is how many times slower the device is than the machine that measured.
    """
    if not seconds_train >= 0 or not slowdown > 0:
        raise NetworkError(
            f"{seconds_train!r} s of training slowed down {slowdown!r} times: use 0 or more, and above 0"
        )
    return network_seconds(profile, bytes_down, bytes_up) + slowdown * seconds_train


def run_seconds(rows: Iterable[ResultRow], profile: LinkProfile, *, slowdown: float = 1.0) -> list[RoundTime]:
    """The rounds of a run by arm and round, from its results.jsonl, as if each device were at the end of ``profile``.

    Devices that did not train in a round (only tested) do not count. Raises :class:`NetworkError` if none did.
    """
    trained: dict[tuple[str, int], dict[str, ResultRow]] = {}
    for row in rows:
        if row.steps and (row.bytes_up or row.bytes_down):
            # validation and test repeat a device's training: it counts once
            trained.setdefault((row.arm, row.round), {})[row.device] = row
    if not trained:
        raise NetworkError("no device of this run trained in a federated round: its rounds have no length")
    found = []
    for (arm, number), devices in sorted(trained.items()):
        seconds = {
            device: round_seconds(profile, row.bytes_down, row.seconds_train, row.bytes_up, slowdown=slowdown)
            for device, row in devices.items()
        }
        slowest = max(devices.values(), key=lambda row: seconds[row.device])
        network = network_seconds(profile, slowest.bytes_down, slowest.bytes_up)
        middle = statistics.median(seconds.values())
        found.append(RoundTime(arm, number, len(devices), seconds[slowest.device], middle, network))
    return found
