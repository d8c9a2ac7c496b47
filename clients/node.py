"""Which devices live on a node. The ids of a population are listed once in a process, whatever the number of messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from clients.worker import Worker, get_worker
from fl.core.errors import ConfigError, PopulationError
from fl.settings.config import DataConfig, RunConfig
from fl.settings.names import OWN_MANIFEST


def node_worker(config: RunConfig, node_config: Mapping[str, object]) -> Worker:
    """The worker of a node; :class:`ConfigError` if it has no place for private state.

    A simulation keeps it beside the run. A deployed device says itself where: the run's settings come from the aggregator, who has
    no say over paths of other people's disks.
    """
    root = str(node_config.get("store", ""))
    if not root and "device-id" in node_config:
        raise ConfigError(
            "no place for private state: start the SuperNode with --node-config \"device-id='...' store='/path/to/private/state'\""
        )
    if not root and not config.output:
        raise ConfigError("no place for private state: set output in the run-config, or store in the node-config")
    root = root or str(Path(config.output) / "devices")
    return get_worker(replace(config, data=_own_data(config.data, node_config)), Path(root))


def _own_data(data: DataConfig, node_config: Mapping[str, object]) -> DataConfig:
    """What a node learns from: what its owner says, where the owner says something. Nobody in there is held back as new."""
    manifest = str(node_config.get("manifest", ""))
    if "device-id" in node_config and manifest:
        return replace(data, manifest=manifest, new_people=0)
    if data.manifest == OWN_MANIFEST:
        raise ConfigError(
            f"manifest = {OWN_MANIFEST!r} is for deployed devices, each of which names its own: start the SuperNode with --node-config "
            "\"device-id='...' store='...' manifest='/path/to/manifest.jsonl'\""
        )
    return data


def positions(ids: Iterable[str], source: str) -> dict[str, int]:
    """The place of each id, from 0. Raises :class:`PopulationError` for an id that stands twice, with both places from 1."""
    found: dict[str, int] = {}
    for place, device_id in enumerate(ids):
        if found.setdefault(device_id, place) != place:
            raise PopulationError(
                f"{source} lists device {device_id!r} twice, as number {found[device_id] + 1} and {place + 1}: "
                "give each device an id of its own"
            )
    return found


@lru_cache(maxsize=2)
def _population(worker: Worker) -> dict[str, int]:
    return positions(worker.task.device_ids(), "the population")


class Hosting:
    """The devices of one node: the one that a deployed node names, or every N-th of a simulation with N nodes."""

    def __init__(self, worker: Worker, node_config: Mapping[str, object]) -> None:
        self._places = _population(worker)
        self.own = str(node_config["device-id"]) if "device-id" in node_config else ""
        if self.own:
            if self.own not in self._places:
                known = ", ".join(list(self._places)[:10])
                raise ConfigError(f"device-id {self.own!r} has no data here: known devices are {known}")
        elif "partition-id" not in node_config or "num-partitions" not in node_config:
            raise ConfigError("this node has no device: start the SuperNode with --node-config \"device-id='...'\"")
        else:
            self._part, self._parts = int(str(node_config["partition-id"])), int(str(node_config["num-partitions"]))

    def __contains__(self, device_id: str) -> bool:
        if self.own:
            return device_id == self.own
        place = self._places.get(device_id)
        return place is not None and place % self._parts == self._part

    def ids(self) -> tuple[str, ...]:
        """All of them, in the order of the population."""
        return (self.own,) if self.own else tuple(self._places)[self._part :: self._parts]
