"""Recording what devices share: an ordinary run in this process, with every shared update kept as a file.

The grid lies between aggregator and devices, so what is recorded is what travels, after the device's own guard and exactly
as the strategy gets it. A round is one safetensors file: ``old`` what the round began with, ``update`` new minus old of each
device, stacked. It is written before the run's own checkpoint of that round, so a run that was killed and goes on lacks none.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.app import Message, MessageType
from flwr.clientapp import ClientApp
from safetensors import SafetensorError, safe_open

from fl.aggregation.updates import DeviceUpdate
from fl.algorithms.arms import trained_arm
from fl.algorithms.personal.gates import Gates
from fl.algorithms.plan import Phase
from fl.core.files import write_atomically
from fl.core.tensorfile import tensor_bytes
from fl.privacy.audit.attackers import AuditError
from fl.privacy.dp import Update
from fl.protocol.reply import Exchange, Form, ReplySchema
from fl.protocol.wire import JOB, SHARED, Job, read_settings
from fl.runs.progress import Progress
from fl.settings.config import RunConfig
from sim.backends.serial import SerialGrid
from strategies.replies import read_node

ARM = "personalized"  # the arm whose split and gate can be set
UPDATES = "updates"
SCHEMA = 1


@dataclass(frozen=True)
class RecordedRound:
    """One round: the shared tensors that it began with, and each device's update."""

    round: int
    old: Update
    updates: Mapping[str, Update]


class RecordingGrid(SerialGrid):
    """A :class:`SerialGrid` of one node that keeps the shared updates of every federated round in ``folder``."""

    def __init__(self, client_app: ClientApp, folder: Path) -> None:
        super().__init__(client_app, nodes=1)
        self.folder = folder

    def _handle(self, message: Message) -> Message:
        reply = super()._handle(message)
        if message.metadata.message_type == MessageType.TRAIN and reply.has_content():
            job = Job.from_record(message.content.config_records[JOB])
            if job.phase is Phase.FEDERATE and SHARED in message.content:
                self._record(job, message, reply)
        return reply

    def _record(self, job: Job, message: Message, reply: Message) -> None:
        old = {name: array.numpy() for name, array in message.content.array_records[SHARED].items()}
        shapes = {name: tuple(values.shape) for name, values in old.items()}
        config = read_settings(message.content)
        exchange = Exchange.of(config, trained_arm(job.arm, config), job.phase)
        found: dict[str, Update] = {}
        if exchange.form is Form.PLAIN and not exchange.edge:
            for device, answer in read_node(1, reply.content, ReplySchema(shapes, exchange), trains=True).answers:
                if isinstance(answer, DeviceUpdate) and answer.tensors:
                    found[device] = dict(answer.tensors)
        if not found:
            raise AuditError(
                f"round {job.round}: no device sent its update as it is, so there is nothing to protect and attack; "
                "leave out settings that change what travels (aggregation = 'edge', noise, secure sums, codecs): "
                "the audit applies protections itself"
            )
        save_round(self.folder, RecordedRound(job.round, old, found))


def round_path(folder: Path, number: int) -> Path:
    """The file of one round."""
    return folder / f"round-{number:06d}.safetensors"


def save_round(folder: Path, recorded: RecordedRound) -> None:
    """Write one round, whole or not at all."""
    devices = sorted(recorded.updates)
    tensors = {f"old:{name}": torch.from_numpy(np.array(values, np.float32)) for name, values in recorded.old.items()}
    for name in recorded.old:
        tensors[f"update:{name}"] = torch.from_numpy(np.stack([recorded.updates[device][name] for device in devices]))
    metadata = {"schema": str(SCHEMA), "round": str(recorded.round), "devices": json.dumps(devices, ensure_ascii=False)}
    path = round_path(folder, recorded.round)
    try:
        write_atomically(path, tensor_bytes(tensors, metadata))
    except OSError as error:
        raise AuditError(f"updates could not be kept in {path}: {error}; free some space and start again") from error


def load_round(path: Path) -> RecordedRound:
    """The inverse of :func:`save_round`; :class:`AuditError` for a damaged file."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        devices = json.loads(metadata["devices"])
        parts: dict[str, Update] = {"old": {}, "update": {}}
        for key, values in tensors.items():
            kind, _, name = key.partition(":")
            parts[kind][name] = values
        updates = {d: {n: stack[i] for n, stack in parts["update"].items()} for i, d in enumerate(devices)}
        return RecordedRound(int(metadata["round"]), parts["old"], updates)
    except (SafetensorError, OSError, ValueError, KeyError, IndexError) as error:
        raise AuditError(
            f"recorded updates {path} are damaged ({error!r}): remove the folder {path.parent.parent} to record again"
        ) from error


def recorded_files(folder: Path, rounds: int) -> list[Path]:
    """The files of rounds 1 to ``rounds``. :class:`AuditError` if one is missing: the run will not do that round again."""
    files = [round_path(folder, number) for number in range(1, rounds + 1)]
    for number, path in enumerate(files, 1):
        if not path.is_file():
            raise AuditError(
                f"{folder} lacks the updates of round {number}, which the run has behind it: "
                f"remove the folder {folder.parent} to record again"
            )
    return files


def federated_rounds(config: RunConfig) -> int:
    """Rounds in which shared tensors travel: all but those of a private phase, which only an arm with gates has."""
    arm = trained_arm(ARM, config)
    assert arm is not None
    return arm.schedule.federated_rounds


def split_config(config: RunConfig, split: str, folder: Path) -> RunConfig:
    """The run that is recorded for one split: nothing but the arm with that split and its gates, decoded nowhere.

    ``all-shared`` means that gates travel too, so they are trained in every step, as the other tensors are: with the default
    schedule they would be frozen until the last rounds, and be shared untrained.
    """
    values: dict[str, object] = {"split": split, "validation-share": 0.0, "new-people": 0, "output": str(folder)}
    values["algorithm"] = f"{config.algorithm.name},{Gates.name}"
    values |= {"arms": ARM, "evaluate-every": 0, "final-split": "validation"}
    if split == "all-shared":
        values["private-share"] = 0.0
    return config.changed(values)


def record(config: RunConfig, progress: Progress | None = None) -> list[Path]:
    """Run ``config`` (of :func:`split_config`), or go on with it, and return the files of its rounds."""
    from clients.app import app as client_app
    from strategies.app import run_server

    updates = Path(config.output) / UPDATES
    run_server(RecordingGrid(client_app, updates), config, 1, progress)
    return recorded_files(updates, federated_rounds(config))
