"""The Flower ClientApp: a node answers for the devices it hosts.

``query`` lists them, ``train`` runs a local phase for those named in the job, ``evaluate`` scores them. A device that fails
is counted as failed and the others go on. Private tensors go to the device's store and never into a reply.
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from clients.answers import Answer, remember
from clients.mods import discreet_mod, guard_mod
from clients.node import Hosting, check_job, node_worker
from clients.store import DeviceStore, count_evaluation
from clients.training.devices import enrol_devices
from clients.training.evaluate import Evaluation, KnownEvaluations, evaluate
from clients.training.phase import DEVICE_FAULTS, CohortStep, job_arm, one_by_one, train_device
from clients.training.second import Placed, place_device
from clients.training.together import train_together
from clients.updates.mask import Sessions, take_step
from clients.updates.outgoing import Outgoing
from clients.updates.reply import DeviceFailure, DeviceResult, ReplyWriter, said
from clients.worker import Worker, step_threads, threads
from fl.adapters.correction import corrected
from fl.adapters.state import State, adapter_state, tensors_digest
from fl.algorithms.arms import EVERYONE, evaluated_as
from fl.algorithms.plan import Phase
from fl.core.errors import AdapterError, ConfigError, DemandError, StoreError
from fl.core.files import write_atomically
from fl.core.machine import return_free_memory
from fl.protocol.node import OFF, NodeConfig
from fl.protocol.reply import Form
from fl.protocol.wire import (
    CORRECTIONS,
    DIRECTIONS,
    JOB,
    SECURE,
    SECURE_STEP,
    SHARED,
    Job,
    device_key,
    from_arrays,
    read_settings,
    tensors_bytes,
)
from fl.runs.failures import note_failure
from fl.runs.results import prediction_lines
from fl.runs.schema import PREDICTIONS_NAME
from fl.settings.names import EDGE
from fl.tasks.table import TASKS

log = logging.getLogger("idiolect.client")
app = ClientApp(mods=[discreet_mod, guard_mod])
known = KnownEvaluations()  # as where nothing private trains: ``neutral`` is ``global`` then
MAX_UNSETTLED = 64  # devices whose result waits for their private state to reach the disk


def _hosting(message: Message, context: Context, run: str = "") -> Hosting:
    """The devices of this node, with this process's worker."""
    node = NodeConfig.parse(context.node_config)
    return Hosting(node_worker(read_settings(message.content), node, run), node)


def _note(hosting: Hosting, device_id: str, error: Exception) -> None:
    if not hosting.node.deployed and (output := hosting.worker.config.output):
        note_failure(Path(output), device_id, error)


@app.query()
def roster(message: Message, context: Context) -> Message:
    """Which devices live here, with the number of their training examples."""
    hosting = _hosting(message, context)
    hosted, task = hosting.ids(), hosting.worker.task
    told = (*(f"left out: {row}" for row in task.left_out), *task.notes)
    for line in told if hosting.node.deployed else ():  # a simulation's aggregator says it
        log.warning("%s", line)
    reply = ReplyWriter(len(hosted))
    for device_id in hosted:
        new = task.is_new(device_id)
        try:
            examples = 0 if new else len(task.device(device_id).train)
        except DEVICE_FAULTS as error:
            log.warning("device %s is left out, its data cannot be read: %s", device_id, error)
            _note(hosting, device_id, error)
            reply.add(DeviceFailure(device_id, error))
            continue
        simulated = int(not hosting.node.deployed)
        reply.add(DeviceResult(device_id, {"examples": examples, "new-person": int(new), "simulated": simulated}))
    return Message(reply.content(), reply_to=message)


@app.query(SECURE_STEP)
def secure_step(message: Message, context: Context) -> Message:
    """A step of a secure sum for each participant of the job: a device that lives here, or this node for all of its devices."""
    job = Job.from_record(message.content.config_records[JOB])
    hosting = _hosting(message, context)
    worker, reply = hosting.worker, RecordDict()
    sessions = Sessions(worker.store.root, hosting.node)
    for participant in job.devices:
        try:
            if worker.config.federation.aggregation != EDGE and participant not in hosting:
                raise ConfigError(f"device {participant!r} does not live on this node")
            answer = take_step(sessions, message.content.config_records[SECURE], participant)
        except DemandError:
            raise
        except DEVICE_FAULTS as error:
            log.warning("participant %s leaves the secure sum of round %s: %s", participant, job.round, error)
            continue
        if answer is not None:
            reply[device_key(SECURE, participant)] = answer
    return Message(reply, reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One local phase for each device of the job."""
    detail = NodeConfig.parse(context.node_config).detail(read_settings(message.content))
    directions = {
        name: array.numpy() for name, array in message.content.array_records.get(DIRECTIONS, ArrayRecord()).items()
    }
    return _for_devices(message, context, partial(_train_devices, directions), detail)


@app.evaluate()
def evaluate_devices(message: Message, context: Context) -> Message:
    """Counts for each device of the job, as far as its owner says them."""
    node = NodeConfig.parse(context.node_config)
    detail = node.detail(read_settings(message.content))
    if detail != OFF and node.max_evaluations and count_evaluation(Path(node.store)) > node.max_evaluations:
        log.warning("all %d evaluations that may be answered with counts are answered", node.max_evaluations)
        detail = OFF
    corrections = from_arrays(message.content.array_records.get(CORRECTIONS, ArrayRecord()))
    return _for_devices(message, context, one_by_one(partial(_evaluate_device, corrections, detail)), detail)


def _train_devices(
    directions: Mapping[str, np.ndarray], worker: Worker, job: Job, devices: Sequence[str], incoming: State
) -> Iterable[DeviceResult | DeviceFailure]:
    """In cohorts, but for the virtual device of ``centralized``, other methods than low rank, and a task that learns nothing.

    By enrolment where that is what comes after the rounds.
    """
    second = job_arm(worker, job).personal.second
    if job.phase is Phase.PERSONALIZE and second is not None and second.afterwards:
        return enrol_devices(worker, job, devices, incoming, directions)
    alone = EVERYONE in devices or not worker.task.learns or not worker.method.low_rank
    return (one_by_one(train_device) if alone else train_together)(worker, job, devices, incoming)


def _for_devices(message: Message, context: Context, step: CohortStep, detail: str) -> Message:
    """Do ``step`` for the devices of the message's job that live here, and collect their results in a reply, errors in so much detail.

    Private state that ``step`` hands to the store is on the disk when the reply leaves.
    """
    job = Job.from_record(message.content.config_records[JOB])
    training = message.metadata.message_type == MessageType.TRAIN
    check_job(job, read_settings(message.content), NodeConfig.parse(context.node_config), training=training)
    hosting = _hosting(message, context, job.run)
    worker, node = hosting.worker, hosting.node
    incoming = from_arrays(message.content.array_records.get(SHARED, ArrayRecord()))
    outgoing = Outgoing(worker, job, message.content, node, incoming, training=training)
    here = [d for d in job.devices if d in hosting or (d == EVERYONE and not node.deployed)]
    away = [d for d in job.devices if d not in hosting and d not in here]
    strangers = (DeviceFailure(d, ConfigError(f"device {d!r} does not live on this node")) for d in away)
    if node.deployed and here and outgoing.exchange.form is not Form.NOTHING:
        remember(worker.store.root, node, Answer(context.run_id, job.arm, job.round, outgoing.noise_multiplier))
    reply = outgoing.writer(len(here))
    with threads(step_threads(job.parallel)), worker.store.writing_behind():
        settled = _settled(worker.store, outgoing.prepared(step(worker, job, here, incoming)))
        for result in chain(map(outgoing.masked, settled), strangers):
            if isinstance(result, DeviceFailure):
                # The reason stays here: an error text may quote an example or a path.
                log.warning(
                    "device %s failed in round %s of arm %s: %s", result.device_id, job.round, job.arm, result.error
                )
                _note(hosting, result.device_id, result.error)
                reply.add(result)
            else:
                reply.add(said(result, detail, TASKS[worker.config.task].main))
    return_free_memory()  # this worker may wait while another one of the machine needs it
    content = reply.content()
    content.update(outgoing.records())
    return Message(content, reply_to=message)


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


def _evaluate_device(
    corrections: State, detail: str, worker: Worker, job: Job, device_id: str, incoming: State
) -> DeviceResult:
    config = worker.config
    arm, neutral = evaluated_as(job.arm, config)
    examples = worker.task.device(device_id).split(job.split)
    numbers = {"examples": len(examples), "bytes-down": tensors_bytes([*incoming.values(), *corrections.values()])}
    if detail == OFF and not job.final:  # nobody is told
        return DeviceResult(device_id, numbers)
    placed: Placed | None = None
    if arm is None:
        with worker.frozen() as model:
            result = evaluate(model, worker.task, examples, adapted=False, beams=config.federation.beams)
    else:
        neutral = neutral or worker.task.is_new(device_id)
        last = arm.schedule.rounds if job.final else job.round  # what closes an arm comes after the rounds of the run
        placed = place_device(worker, arm, device_id, incoming, before=max(job.round, last) + 1, neutral=neutral)
        if placed.second:  # trained on the untouched base, and what C lacks of the shared pair is not its own
            corrections = {}
        with corrected(worker.adapted, corrections) as model:
            run = partial(evaluate, model, worker.task, examples, beams=config.federation.beams)
            if job.final and worker.method.low_rank:
                digest = tensors_digest({**adapter_state(worker.adapted, placed.slot), **corrections})
                result = known.once((config, worker.store.root, device_id, job.split, digest), run)
            else:
                result = run()
    if job.final:
        _keep_results(worker, job, placed, device_id, result, corrections)
    return DeviceResult(device_id, {**numbers, "seconds-evaluate": result.seconds}, result.counts)


def _keep_results(
    worker: Worker, job: Job, placed: Placed | None, device_id: str, result: Evaluation, corrections: State
) -> None:
    """Write the predictions and the finished adapter to the device's own disk: they never travel in a reply."""
    folder = worker.store.folder(job.arm, device_id)
    device = worker.task.device(device_id)
    # As in results.jsonl, whoever has nothing to train on only tests.
    text = prediction_lines(
        job.arm, device_id, device.split(job.split), result.predictions, new_person=not device.train
    )
    write_atomically(folder / PREDICTIONS_NAME, text.encode())
    if placed is not None:
        worker.save(folder / "adapter", placed.slot, placed.split, corrections)
