"""The Flower ClientApp: a node answers for the devices it hosts, one by one.

``query`` lists them, ``train`` runs a local phase for those named in the job, ``evaluate`` scores them. A device that fails
is counted as failed and the others go on. Private tensors go to the device's store and never into a reply.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.evaluator import Evaluation, evaluate
from clients.mods import guard_mod
from clients.trainer import make_plan, train_locally
from clients.worker import Worker, get_worker, step_threads, threads
from fl.adapters.files import AdapterInfo, save_adapter
from fl.adapters.state import adapter_state
from fl.arms import EVERYONE, Arm, adapter_name, evaluated_as, trained_arm
from fl.config import RunConfig
from fl.errors import ConfigError, GuardError, IdiolectError
from fl.files import write_atomically
from fl.rng import derive_seed
from fl.task import Device
from fl.wire import (
    COUNTS,
    JOB,
    SHARED,
    Job,
    arrays_bytes,
    counts_record,
    device_key,
    from_arrays,
    read_settings,
    to_arrays,
)

log = logging.getLogger("idiolect.client")
app = ClientApp(mods=[guard_mod])
TRANSCRIPTS_NAME = "transcripts.jsonl"
# What may go wrong with one device without concerning the others of its node; RuntimeError is how torch complains.
DEVICE_FAULTS = (IdiolectError, OSError, RuntimeError)


def hosted_devices(worker: Worker, node_config: dict[str, Any]) -> tuple[str, ...]:
    """The devices of this node: the one that a deployed node names, or every N-th of a simulation with N nodes."""
    ids = worker.task.device_ids()
    if "device-id" in node_config:
        device_id = str(node_config["device-id"])
        if device_id not in ids:
            raise ConfigError(f"device-id {device_id!r} has no data here: known devices are {', '.join(ids[:10])}")
        return (device_id,)
    if "partition-id" not in node_config or "num-partitions" not in node_config:
        raise ConfigError("this node has no device: start the SuperNode with --node-config \"device-id='...'\"")
    return ids[int(node_config["partition-id"]) :: int(node_config["num-partitions"])]


def _worker(config: RunConfig, context: Context) -> Worker:
    root = str(context.node_config.get("store", "")) or (str(Path(config.output) / "devices") if config.output else "")
    if not root:
        raise ConfigError("no place for private state: set output in the run-config, or store in the node-config")
    return get_worker(config, Path(root))


@app.query()
def roster(message: Message, context: Context) -> Message:
    """Which devices live here, with the number of their training examples."""
    worker = _worker(read_settings(message.content), context)
    reply = RecordDict()
    for device_id in hosted_devices(worker, dict(context.node_config)):
        new = worker.task.is_new(device_id)
        try:
            examples = 0 if new else len(worker.task.device(device_id).train)
        except DEVICE_FAULTS as error:
            log.warning("device %s is left out, its data cannot be read: %s", device_id, error)
            reply[device_key(COUNTS, device_id)] = MetricRecord({"failed": 1})
            continue
        reply[device_key(COUNTS, device_id)] = MetricRecord({"examples": examples, "new-person": int(new)})
    return Message(reply, reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One local phase for each device of the job."""
    return _for_each_device(message, context, _train_device)


@app.evaluate()
def evaluate_devices(message: Message, context: Context) -> Message:
    """Counts for each device of the job."""
    return _for_each_device(message, context, _evaluate_device)


DeviceStep = Callable[[Worker, Job, str, ArrayRecord], dict[str, ArrayRecord | MetricRecord]]


def _for_each_device(message: Message, context: Context, step: DeviceStep) -> Message:
    config = read_settings(message.content)
    job = Job.from_record(message.content.config_records[JOB])
    worker = _worker(config, context)
    hosted = {*hosted_devices(worker, dict(context.node_config))}
    if "device-id" not in context.node_config:
        hosted.add(EVERYONE)
    incoming = message.content.array_records.get(SHARED, ArrayRecord())
    reply = RecordDict()
    with threads(step_threads(job.parallel)):
        for device_id in job.devices:
            try:
                if device_id not in hosted:
                    raise ConfigError(f"device {device_id!r} does not live on this node")
                for kind, record in step(worker, job, device_id, incoming).items():
                    reply[device_key(kind, device_id)] = record
            except GuardError:
                raise
            except DEVICE_FAULTS as error:
                # The reason stays here: an error text may quote a transcript or a path.
                log.warning("device %s failed in round %s of arm %s: %s", device_id, job.round, job.arm, error)
                reply[device_key(COUNTS, device_id)] = MetricRecord({"failed": 1})
    return Message(reply, reply_to=message)


def device_data(worker: Worker, device_id: str) -> Device:
    """One device's examples; for the arm ``centralized`` the training data of all devices as one."""
    if device_id != EVERYONE:
        return worker.task.device(device_id)
    everyone = [worker.task.device(d) for d in worker.task.device_ids() if not worker.task.is_new(d)]
    return Device(EVERYONE, tuple(e for d in everyone for e in d.train), (), ())


def _train_device(
    worker: Worker, job: Job, device_id: str, incoming: ArrayRecord
) -> dict[str, ArrayRecord | MetricRecord]:
    config = worker.config
    arm = trained_arm(job.arm, config)
    if arm is None:
        raise ConfigError(f"arm {job.arm!r} is not trained: it only evaluates")
    device = device_data(worker, device_id)
    split = worker.split(arm)
    worker.place(arm, device_id, from_arrays(incoming), before=job.round)
    steps = config.train.finetune_steps if job.phase == "finetune" else config.train.local_steps
    if device_id == EVERYONE:  # as many steps as all devices take together
        steps *= sum(not worker.task.is_new(d) for d in worker.task.device_ids())
    result = train_locally(
        worker.adapted,
        worker.parameters(arm.gate),
        split,
        worker.task,
        device.train,
        make_plan(config.train, job.round, steps=steps, gated=arm.gate != "none"),
        seed=derive_seed(config.seed, job.round, device_id, "train"),
    )
    worker.keep_private(arm, device_id, job.round)
    state = adapter_state(worker.adapted, adapter_name(arm.gate))
    outgoing = to_arrays({name: state[name] for name in split.shared})
    counts = counts_record(
        {},
        {
            "examples": len(device.train),
            "steps": result.steps,
            "loss": result.loss,
            "bytes-up": arrays_bytes(outgoing),
            "bytes-down": arrays_bytes(incoming),
            "seconds-train": result.seconds,
        },
    )
    return {SHARED: outgoing, COUNTS: counts} if split.shared else {COUNTS: counts}


def _evaluate_device(
    worker: Worker, job: Job, device_id: str, incoming: ArrayRecord
) -> dict[str, ArrayRecord | MetricRecord]:
    config = worker.config
    arm, neutral = evaluated_as(job.arm, config)
    examples = worker.task.device(device_id).split(job.split)
    if arm is None:
        worker.slot("none")
        with worker.adapted.disable_adapter():
            result = evaluate(worker.adapted, worker.task, examples, adapted=False, beams=config.federation.beams)
    else:
        neutral = neutral or worker.task.is_new(device_id)
        worker.place(arm, device_id, from_arrays(incoming), before=job.round + 1, neutral=neutral)
        result = evaluate(worker.adapted, worker.task, examples, beams=config.federation.beams)
    if job.final:
        _keep_results(worker, job, arm, device_id, result)
    extra = {"examples": len(examples), "bytes-down": arrays_bytes(incoming), "seconds-evaluate": result.seconds}
    return {COUNTS: counts_record(result.counts, extra)}


def _keep_results(worker: Worker, job: Job, arm: Arm | None, device_id: str, result: Evaluation) -> None:
    """Write transcripts and the finished adapter to the device's own disk: text never travels in a reply."""
    folder = worker.store.folder(job.arm, device_id)
    device = worker.task.device(device_id)
    examples = device.split(job.split)
    rows = [
        {
            "schema": 1,
            "arm": job.arm,
            "device": device_id,
            "new_person": not device.train,  # as in results.jsonl: whoever has nothing to train on only tests
            "utterance": example.key,
            "reference": example.target,
            "hypothesis": prediction,
            **example.details,
        }
        for example, prediction in zip(examples, result.predictions, strict=True)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(folder / TRANSCRIPTS_NAME, text.encode())
    if arm is None:
        return
    slot = adapter_name(arm.gate)
    info = AdapterInfo(
        base_name=worker.task.base_name,
        base_fingerprint=worker.task.fingerprint,
        split=arm.split,
        config=worker.adapted.peft_config[slot],
        window=worker.config.base.window,
        language=worker.task.language,
    )
    save_adapter(folder / "adapter", adapter_state(worker.adapted, slot), info)
