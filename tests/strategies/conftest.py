"""Devices that answer by arithmetic, for what the aggregator does; and a tiny population for whole runs."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict

from fl.algorithms.arms import trained_arm
from fl.algorithms.plan import Phase
from fl.privacy.plan import PrivacyPlan
from fl.protocol.wire import COUNTS, DEVICES, IDS, JOB, SHARED, UPDATES, Job, device_key
from fl.settings.config import RunConfig, make_config
from sim.backends.serial import SerialGrid
from strategies.arm import ArmStrategy
from strategies.roster import Roster

START = {"layer.A": np.zeros((2, 3), np.float32), "layer.B": np.ones((4,), np.float32)}


def record(values: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in values.items()})


@dataclass
class Devices:
    """A ClientApp in which device ``d`` moves every shared tensor by ``steps[d]`` and says that it has ``examples[d]``."""

    steps: dict[str, float]
    examples: dict[str, int]
    failing: dict[str, int] = field(default_factory=dict)  # device -> round in which it fails
    jobs: list[tuple[str, Job]] = field(default_factory=list)
    got: list[tuple[tuple[str, ...], ArrayRecord | None]] = field(default_factory=list)  # by message

    def __call__(self, message: Message, context: Context) -> Message:
        job = Job.from_record(message.content.config_records[JOB])
        self.jobs.append((message.metadata.message_type, job))
        self.got.append((job.devices, message.content.array_records.get(SHARED)))
        if message.metadata.message_type == MessageType.EVALUATE:
            counts = {"wer.substitutions": 1, "wer.deletions": 0, "wer.insertions": 2, "wer.reference": 10}
            columns = {name: [n] * len(job.devices) for name, n in {**counts, "examples": 4}.items()}
            return self._reply(message, job.devices, {**columns, "seconds-evaluate": [0.5] * len(job.devices)})
        sound = tuple(d for d in job.devices if self.failing.get(d) != job.round)
        columns = {
            "examples": [self.examples[d] for d in sound],
            "loss": [self.steps[d] for d in sound],
            "steps": [2] * len(sound),
            "bytes-up": [40] * len(sound),
        }
        reply = self._reply(message, sound, columns)
        if sound and job.phase is Phase.FEDERATE:
            shared = message.content.array_records[SHARED]
            stacks = {
                n: np.stack([np.full(a.shape, self.steps[d], np.float32) for d in sound]) for n, a in shared.items()
            }
            reply.content[UPDATES] = record(stacks)
        for device_id in job.devices:
            if device_id not in sound:
                reply.content[device_key(COUNTS, device_id)] = MetricRecord({"failed": 1})
        return reply

    def _reply(self, message: Message, ids: tuple[str, ...], columns: Mapping[str, Any]) -> Message:
        content = {DEVICES: ConfigRecord({IDS: list(ids)}), COUNTS: MetricRecord(dict(columns))} if ids else {}
        return Message(RecordDict(content), reply_to=message)  # type: ignore[arg-type]


@pytest.fixture
def devices() -> Devices:
    """Three devices with different data."""
    return Devices({"ann": 1.0, "bob": 2.0, "cho": 4.0}, {"ann": 1, "bob": 2, "cho": 5})


@pytest.fixture
def start() -> ArrayRecord:
    """What training starts from."""
    return record(START)


@pytest.fixture
def make_strategy() -> Callable[..., ArmStrategy]:
    """A strategy for devices on two nodes; settings by their keys. ``arm`` is ``global`` unless given."""

    def make(
        devices: Devices,
        *,
        arm: str = "global",
        roster: Roster | None = None,
        order: Sequence[str] = (),
        kind: type[ArmStrategy] = ArmStrategy,
        charge: Callable[[str, int], object] | None = None,
        plan: PrivacyPlan | None = None,
        **settings: Any,
    ) -> ArmStrategy:
        names = sorted(devices.steps)
        config = make_config({"cohort": 1, "gate": "self", **settings})
        trained = trained_arm(arm, config)
        assert trained is not None
        placed = roster or Roster({d: 1 + i % 2 for i, d in enumerate(names)}, devices.examples)
        job = Job(arm=arm, round=0, devices=tuple(order or names))
        more: dict[str, Any] = {"charge": charge} if charge is not None else {}
        return kind(config, trained, placed, job, plan=plan, **more)  # type: ignore[arg-type]

    return make


@pytest.fixture
def message_with() -> Callable[..., Message]:
    """A node's reply with the given records."""

    def make(content: Mapping[str, Any]) -> Message:
        grid = SerialGrid(lambda message, _: Message(RecordDict(dict(content)), reply_to=message), nodes=1)  # type: ignore[arg-type]
        request = Message(RecordDict(), dst_node_id=1, message_type=MessageType.TRAIN)
        (reply,) = grid.send_and_receive([request])
        return reply

    return make


# Whole runs


@pytest.fixture(scope="session", autouse=True)
def cache(own_home: Path) -> Path:
    """A cache folder of the tests' own."""
    return own_home


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Steps on one thread: two that wait for each other on a busy machine take ten times as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clients.app.step_threads", lambda parallel: 1)
        yield


@pytest.fixture(scope="session")
def manifest(noise_manifest: Callable[..., Path]) -> Path:
    """Four speakers with six recordings each."""
    return noise_manifest([f"화자 {number}" for number in range(4)], 6)


@pytest.fixture(scope="session")
def make_run(manifest: Path) -> Callable[..., RunConfig]:
    """A run of three rounds of two steps; ``changes`` by the settings' keys."""

    def make(output: Path, **changes: Any) -> RunConfig:
        values: dict[str, Any] = {
            "base": "random:whisper-nano",
            "manifest": str(manifest),
            "rounds": 3,
            "local_steps": 2,
            "batch_size": 2,
            "cohort": 1,
            "rank": 2,
            "gate": "self",
            "learning_rate": 1e-3,
            "private_learning_rate": 2e-2,
            "new_people": 1,
            "language": "ko",
            "arms": "personalized",
            "evaluate_every": 3,
            "output": str(output),
        }
        return make_config({**values, **changes})

    return make


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Path], list[dict[str, Any]]]:
    """The rows of a run folder, without what a clock measured."""

    def read(folder: Path) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
        return [{k: v for k, v in row.items() if not k.startswith(("seconds_", "crc32"))} for row in rows]

    return read


@pytest.fixture(scope="session")
def tensors_of() -> Callable[[Path], dict[str, bytes]]:
    """Every checkpoint, private state and adapter of a run folder, byte for byte."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}

    return read


# Replies made by hand


@pytest.fixture
def round_of(message_with: Callable[..., Message]) -> Callable[..., dict[str, np.ndarray]]:
    """One round of a strategy: the shared tensors after it, from those before and each device's examples and update."""

    def run(
        strategy: ArmStrategy,
        before: Mapping[str, np.ndarray],
        devices: Mapping[str, tuple[float, Mapping[str, np.ndarray]]],
        server_round: int = 1,
    ) -> dict[str, np.ndarray]:
        list(strategy.configure_train(server_round, record(before), ConfigRecord(), SerialGrid(None, nodes=1)))  # type: ignore[arg-type]
        examples = [n for n, _ in devices.values()]
        columns = {"examples": examples, "loss": [1.0] * len(devices), "steps": [2] * len(devices)}
        names = next(iter(devices.values()))[1]
        stacks = {name: np.stack([update[name] for _, update in devices.values()]) for name in names}
        content = {
            DEVICES: ConfigRecord({IDS: list(devices)}),
            COUNTS: MetricRecord(columns),  # type: ignore[arg-type]
            UPDATES: record(stacks),
        }
        new, _ = strategy.aggregate_train(server_round, [message_with(content)])
        assert new is not None
        return {name: array.numpy() for name, array in new.items()}

    return run
