"""Devices that answer by arithmetic, for what the aggregator does; and a tiny population for whole runs."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict

from fl.protocol.wire import COUNTS, JOB, SHARED, Job, device_key
from fl.settings.config import RunConfig, make_config
from sim.backends.serial import SerialGrid
from strategies.base import Roster, SharedFedAvg

START = {"layer.A": np.zeros((2, 3), np.float32), "layer.B": np.ones((4,), np.float32)}


def record(values: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in values.items()})


@dataclass
class Devices:
    """A ClientApp in which device ``d`` adds ``steps[d]`` to every shared tensor and says that it has ``examples[d]``."""

    steps: dict[str, float]
    examples: dict[str, int]
    failing: dict[str, int] = field(default_factory=dict)  # device -> round in which it fails
    jobs: list[tuple[str, Job]] = field(default_factory=list)

    def __call__(self, message: Message, context: Context) -> Message:
        job = Job.from_record(message.content.config_records[JOB])
        self.jobs.append((message.metadata.message_type, job))
        reply = RecordDict()
        for device_id in job.devices:
            reply.update(self.answer(device_id, job, message))
        return Message(reply, reply_to=message)

    def answer(self, device_id: str, job: Job, message: Message) -> dict[str, Any]:
        if message.metadata.message_type == MessageType.EVALUATE:
            counts = {"wer.substitutions": 1, "wer.deletions": 0, "wer.insertions": 2, "wer.reference": 10}
            return {device_key(COUNTS, device_id): MetricRecord({**counts, "examples": 4, "seconds-evaluate": 0.5})}
        if self.failing.get(device_id) == job.round:
            return {device_key(COUNTS, device_id): MetricRecord({"failed": 1})}
        shared = message.content.array_records[SHARED]
        new = {n: a.numpy() + np.float32(self.steps[device_id]) for n, a in shared.items()}
        numbers = {"examples": self.examples[device_id], "loss": self.steps[device_id], "steps": 2, "bytes-up": 40}
        return {device_key(SHARED, device_id): record(new), device_key(COUNTS, device_id): MetricRecord(numbers)}


@pytest.fixture
def devices() -> Devices:
    """Three devices with different data."""
    return Devices({"ann": 1.0, "bob": 2.0, "cho": 4.0}, {"ann": 1, "bob": 2, "cho": 5})


@pytest.fixture
def start() -> ArrayRecord:
    """What training starts from."""
    return record(START)


@pytest.fixture
def make_strategy() -> Callable[..., SharedFedAvg]:
    """A strategy for devices on two nodes."""

    def make(devices: Devices, **changes: Any) -> SharedFedAvg:
        names = sorted(devices.steps)
        roster = Roster({d: 1 + i % 2 for i, d in enumerate(names)}, devices.examples)
        job = Job(arm="global", round=0, devices=tuple(names))
        return SharedFedAvg(**{"roster": roster, "settings": ConfigRecord(), "job": job, "seed": 1, **changes})

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
    """A run of two rounds of two steps; ``changes`` by the settings' names with underscores."""

    def make(output: Path, **changes: Any) -> RunConfig:
        values: dict[str, Any] = {
            "base": "random:whisper-nano",
            "manifest": str(manifest),
            "rounds": 3,
            "local_steps": 2,
            "batch_size": 2,
            "rank": 2,
            "learning_rate": 1e-3,
            "private_learning_rate": 2e-2,
            "new_people": 1,
            "language": "ko",
            "arms": "personalized",
            "evaluate_every": 3,
            "gate_dropout": 0.5,
            "private_warmup_rounds": 0,
            "output": str(output),
        }
        return make_config({**values, **changes})

    return make


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Path], list[dict[str, Any]]]:
    """The rows of a run folder, without what a clock measured."""

    def read(folder: Path) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
        return [{k: v for k, v in row.items() if not k.startswith("seconds_")} for row in rows]

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
    """One round of a strategy class: the shared tensors after it, from those before and each device's tensors.

    ``devices`` maps a device to ``(examples, tensors)``; ``numbers`` adds to what it says. The strategy goes into ``made``.
    """

    def run(
        kind: type[SharedFedAvg],
        before: Mapping[str, np.ndarray],
        devices: Mapping[str, tuple[float, Mapping[str, np.ndarray]]],
        *,
        server_round: int = 1,
        numbers: Mapping[str, Mapping[str, float]] | None = None,
        made: list[Any] | None = None,
        **options: Any,
    ) -> dict[str, np.ndarray]:
        roster = Roster(dict.fromkeys(devices, 1), {d: int(np.ceil(n)) for d, (n, _) in devices.items()})
        job = Job(arm="global", round=0, devices=tuple(sorted(devices)))
        strategy = kind(roster=roster, settings=ConfigRecord(), job=job, **options)
        started = record(before)
        list(strategy.configure_train(server_round, started, ConfigRecord(), SerialGrid(lambda m, c: m, nodes=1)))  # type: ignore[arg-type]
        content: dict[str, Any] = {}
        for device_id, (examples, tensors) in devices.items():
            said = {"examples": examples, "loss": 1.0, "steps": 2, **(numbers or {}).get(device_id, {})}
            content[device_key(COUNTS, device_id)] = MetricRecord(said)
            content[device_key(SHARED, device_id)] = record(tensors)
        new, metrics = strategy.aggregate_train(server_round, [message_with(content)])
        if made is not None:
            made[:] = [strategy, metrics]
        assert new is not None
        return {name: array.numpy() for name, array in new.items()}

    return run
