"""The rows of the table in docs/privacy.md: what a run's seed decides, and what it never does once a device is a real one."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MessageType, RecordDict

from clients.app import app
from fl.algorithms.arms import trained_arm
from fl.privacy.plan import make_plan
from fl.protocol.wire import COUNTS, DEVICES, IDS, SECURE, UPDATES, Job, split_key
from fl.settings.config import make_config
from fl.settings.names import NO_OP
from fl.tasks.noop import WIDTH
from sim.backends.serial import SerialGrid
from strategies.app import run_server
from strategies.arm import ArmStrategy
from strategies.checkpoint import load_checkpoint
from strategies.private import PrivateMean
from strategies.roster import Roster

NAMES = tuple(f"device-{place:06d}" for place in range(4))
SETTINGS = {
    "task": NO_OP,
    "devices": len(NAMES),
    "new-people": 0,
    "rounds": 1,
    "private-share": 0.0,
    "arms": "global",
    "evaluate-every": 0,
    "rank": 2,
    "cohort": 1,
}
NOISE = {
    "server": {"dp": "server", "noise-multiplier": 1.0},
    "server, adaptive": {"dp": "server", "noise-multiplier": 1.0, "clip-quantile": 0.5},
    "distributed": {"dp": "distributed", "secure-sum": "pairwise", "noise-multiplier": 1.0},
    "local": {"dp": "local", "noise-multiplier": 4.0},
}
WHO = {  # deployed nodes, and those that say that they are simulated
    "all simulated": ((), ()),
    "all deployed": (NAMES, ()),
    "one deployed": (NAMES[1:2], ()),
    "one deployed node says that it is simulated": (NAMES, NAMES[:1]),
}
Tensors = dict[str, np.ndarray]


class Nodes(SerialGrid):
    """A node for each device; what they send is kept by device: masked words, and rows of updates."""

    def __init__(self, store: Path, deployed: Collection[str] = (), lying: Collection[str] = ()) -> None:
        super().__init__(app, len(NAMES))
        self.lying = lying
        self.words: dict[str, bytes] = {}
        self.rows: dict[str, bytes] = {}
        for name, context in zip(NAMES, self._contexts.values(), strict=True):
            if name in deployed:
                context.node_config = {"device-id": name, "store": str(store / name), "manifest": "run"}

    def _handle(self, message: Message) -> Message:
        reply = super()._handle(message)
        content = reply.content
        self._keep(content)
        if message.metadata.message_type == MessageType.QUERY and COUNTS in content:
            ids = content.config_records[DEVICES][IDS]
            if any(name in self.lying for name in ids):  # type: ignore[union-attr]
                content.metric_records[COUNTS]["simulated"] = [1]
        return reply

    def _keep(self, content: RecordDict) -> None:
        for key, record in content.config_records.items():
            kind, device = split_key(key)
            if kind == SECURE and "words" in record:
                self.words[device] = bytes(record["words"])  # type: ignore[arg-type]
        if UPDATES in content:
            (name,) = content.config_records[DEVICES][IDS]  # type: ignore[misc]
            arrays = content.array_records[UPDATES]
            self.rows[str(name)] = b"".join(arrays[n].numpy().tobytes() for n in sorted(arrays))


@pytest.fixture
def twice(tmp_path: Path) -> Callable[..., tuple[list[Nodes], list[Tensors]]]:
    """Two runs of one seed: what the nodes sent, and the shared tensors."""

    def run(who: str, **settings: Any) -> tuple[list[Nodes], list[Tensors]]:
        grids, found = [], []
        for number in ("one", "two"):
            grid, folder = Nodes(tmp_path / "stores" / number, *WHO[who]), tmp_path / number
            run_server(grid, make_config({**SETTINGS, **settings, "output": str(folder)}), 1)
            checkpoint = load_checkpoint(folder / "checkpoints", "global", f"{NO_OP}:{WIDTH}")
            assert checkpoint is not None
            grids.append(grid)
            found.append({name: array.numpy() for name, array in checkpoint.arrays.items()})
        return grids, found

    return run


def same(one: Tensors, other: Tensors) -> bool:
    return all((one[name] == other[name]).all() for name in one)


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("who", WHO)
def test_noise_is_the_seeds_only_where_every_device_is_simulated(twice: Any, who: str, noise: str) -> None:
    _, (one, other) = twice(who, **NOISE[noise])
    assert same(one, other) == (who == "all simulated")


def test_a_device_asks_its_own_operating_system_whoever_else_is_simulated(twice: Any) -> None:
    (one, other), _ = twice("one deployed", **NOISE["local"])
    assert {name: one.rows[name] == other.rows[name] for name in NAMES} == {n: n != NAMES[1] for n in NAMES}


@pytest.mark.parametrize("who", ["all simulated", "all deployed"])
def test_secrets_of_a_secure_sum_are_never_the_seeds(twice: Any, who: str) -> None:
    (one, other), (first, second) = twice(who, **{"secure-sum": "pairwise"})
    assert all(one.words[name] != other.words[name] for name in NAMES)
    assert same(first, second)


@pytest.mark.parametrize("noise", ["none", "server", "local"])
@pytest.mark.parametrize("simulated", [True, False])
def test_a_sample_is_the_operating_systems_where_it_hides_somebody(noise: str, simulated: bool) -> None:
    config = make_config({**SETTINGS, **NOISE.get(noise, {}), "sample": 2.0})
    roster = Roster(dict.fromkeys(NAMES, 1), dict.fromkeys(NAMES, 1), simulated)
    arm, job = trained_arm("global", config), Job("global", 0, NAMES)
    assert arm is not None

    def drawn() -> list[tuple[str, ...]]:
        plan = make_plan(config, len(NAMES), 50)
        made = PrivateMean(config, arm, roster, job, plan=plan) if noise == "server" else ArmStrategy(
            config, arm, roster, job, plan=plan
        )  # fmt: skip
        return [made.sampled(number) for number in range(1, 51)]

    assert (drawn() == drawn()) == (simulated or noise != "server")
