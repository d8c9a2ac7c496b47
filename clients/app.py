"""The Flower ClientApp: a node answers for the devices it hosts.

``query`` lists them, ``train`` runs a local phase for those named in the job, ``evaluate`` scores them. A device that fails
is counted as failed and the others go on. Private tensors go to the device's store and never into a reply.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from clients.answers import DeviceFailure, DeviceResult, ReplyWriter
from clients.evaluator import Evaluation, evaluate
from clients.hosting import Hosting
from clients.mods import guard_mod
from clients.phase import DEVICE_FAULTS, CohortStep, one_by_one, train_device
from clients.store import DeviceStore
from clients.together import train_together
from clients.worker import Worker, get_worker, step_threads, threads
from fl.adapters.files import AdapterInfo, save_adapter
from fl.adapters.state import State, adapter_state
from fl.arms import EVERYONE, Arm, adapter_name, evaluated_as
from fl.config import EDGE, NO_OP, RunConfig
from fl.errors import AdapterError, ConfigError, StoreError
from fl.files import write_atomically
from fl.heap import return_free_memory
from fl.wire import JOB, SHARED, Job, from_arrays, read_settings, tensors_bytes

log = logging.getLogger("idiolect.client")
app = ClientApp(mods=[guard_mod])
TRANSCRIPTS_NAME = "transcripts.jsonl"
MAX_UNSETTLED = 64  # devices whose result waits for their private state to reach the disk


def hosted_devices(worker: Worker, node_config: dict[str, Any]) -> tuple[str, ...]:
    """The devices of this node."""
    return Hosting(worker, node_config).ids()


def _worker(config: RunConfig, context: Context) -> Worker:
    root = str(context.node_config.get("store", "")) or (str(Path(config.output) / "devices") if config.output else "")
    if not root:
        raise ConfigError("no place for private state: set output in the run-config, or store in the node-config")
    return get_worker(config, Path(root))


@app.query()
def roster(message: Message, context: Context) -> Message:
    """Which devices live here, with the number of their training examples."""
    worker = _worker(read_settings(message.content), context)
    hosted = hosted_devices(worker, dict(context.node_config))
    reply = ReplyWriter(len(hosted))
    for device_id in hosted:
        new = worker.task.is_new(device_id)
        try:
            examples = 0 if new else len(worker.task.device(device_id).train)
        except DEVICE_FAULTS as error:
            log.warning("device %s is left out, its data cannot be read: %s", device_id, error)
            reply.add(DeviceFailure(device_id, error))
            continue
        reply.add(DeviceResult(device_id, {"examples": examples, "new-person": int(new)}))
    return Message(reply.content(), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One local phase for each device of the job."""
    return _for_devices(message, context, _train_devices)


@app.evaluate()
def evaluate_devices(message: Message, context: Context) -> Message:
    """Counts for each device of the job."""
    return _for_devices(message, context, one_by_one(_evaluate_device))


def _train_devices(
    worker: Worker, job: Job, devices: Sequence[str], incoming: State
) -> Iterable[DeviceResult | DeviceFailure]:
    """In cohorts if the settings say so; the virtual device of ``centralized`` is one anyway, and no-op has no steps."""
    config = worker.config
    alone = config.train.cohort == 1 or EVERYONE in devices or config.data.task == NO_OP
    return (one_by_one(train_device) if alone else train_together)(worker, job, devices, incoming)


def _for_devices(message: Message, context: Context, step: CohortStep) -> Message:
    """Do ``step`` for the devices of the message's job that live here, and put their results together into a reply.

    Private state that ``step`` hands to the store is on the disk when the reply leaves.
    """
    config = read_settings(message.content)
    job = Job.from_record(message.content.config_records[JOB])
    worker = _worker(config, context)
    hosting = Hosting(worker, dict(context.node_config))
    incoming = from_arrays(message.content.array_records.get(SHARED, ArrayRecord()))
    here = [d for d in job.devices if d in hosting or (d == EVERYONE and not hosting.own)]
    strangers = (
        DeviceFailure(d, ConfigError(f"device {d!r} does not live on this node"))
        for d in job.devices
        if d not in hosting and d not in here
    )
    reply = ReplyWriter(len(here), edge=config.federation.aggregation == EDGE)
    with threads(step_threads(job.parallel)), worker.store.writing_behind():
        for result in chain(_settled(worker.store, step(worker, job, here, incoming)), strangers):
            if isinstance(result, DeviceFailure):
                # The reason stays here: an error text may quote a transcript or a path.
                log.warning(
                    "device %s failed in round %s of arm %s: %s", result.device_id, job.round, job.arm, result.error
                )
            reply.add(result)
    return_free_memory()  # this worker may wait while another one of the machine needs it
    return Message(reply.content(), reply_to=message)


def _settled(
    store: DeviceStore, results: Iterable[DeviceResult | DeviceFailure]
) -> Iterator[DeviceResult | DeviceFailure]:
    """The same results, each once its device's private state is on the disk; a failure where it cannot leave so."""
    waiting: deque[DeviceResult | DeviceFailure] = deque()
    for result in results:
        waiting.append(result)
        if len(waiting) > MAX_UNSETTLED:
            yield _settle(store, waiting.popleft())
    while waiting:
        yield _settle(store, waiting.popleft())


def _settle(store: DeviceStore, result: DeviceResult | DeviceFailure) -> DeviceResult | DeviceFailure:
    try:
        store.settle(result.device_id)
    except StoreError as error:
        return DeviceFailure(result.device_id, error)
    odd = [] if isinstance(result, DeviceFailure) else [n for n, t in result.shared.items() if not t.isfinite().all()]
    if odd:  # the guard would refuse the whole reply, and in a sum it would be everybody's
        return DeviceFailure(result.device_id, AdapterError(f"training diverged: {odd[0]!r} holds NaN or infinity"))
    return result


def _evaluate_device(worker: Worker, job: Job, device_id: str, incoming: State) -> DeviceResult:
    config = worker.config
    arm, neutral = evaluated_as(job.arm, config)
    examples = worker.task.device(device_id).split(job.split)
    if arm is None:
        worker.slot("none")
        with worker.adapted.disable_adapter():
            result = evaluate(worker.adapted, worker.task, examples, adapted=False, beams=config.federation.beams)
    else:
        neutral = neutral or worker.task.is_new(device_id)
        worker.place(arm, device_id, incoming, before=job.round + 1, neutral=neutral)
        result = evaluate(worker.adapted, worker.task, examples, beams=config.federation.beams)
    if job.final:
        _keep_results(worker, job, arm, device_id, result)
    numbers = {
        "examples": len(examples),
        "bytes-down": tensors_bytes(incoming.values()),
        "seconds-evaluate": result.seconds,
    }
    return DeviceResult(device_id, numbers, result.counts)


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
