"""The local phase of one device: its adapter put together, trained, and its results taken apart into what stays and what leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from clients.store import PrivateState
from clients.training.personal import train_own_part
from clients.training.single import LocalResult, train_locally
from clients.updates.reply import DeviceFailure, DeviceResult
from clients.worker import Worker
from fl.adapters.split import CONTROL
from fl.adapters.state import Shapes, State
from fl.algorithms.arms import EVERYONE, Arm, trained_arm
from fl.algorithms.base import Correction
from fl.algorithms.plan import LocalPlan, Phase
from fl.core.errors import ConfigError, GuardError, IdiolectError
from fl.core.rng import derive_seed
from fl.protocol.wire import Job, tensors_bytes
from fl.tasks.task import DeviceExamples, Example

# All data in one place: as many examples as all devices take together, in steps whose batch is those of so many devices. The
# same examples in more and smaller steps diverged at the devices' learning rate, which averaging allows them.
EVERYONE_BATCHES = 16
# What may go wrong with one device without concerning the others of its node; RuntimeError is how torch complains.
DEVICE_FAULTS = (IdiolectError, OSError, RuntimeError)

# One device's work: worker, job, device, the shared tensors that came with the job.
DeviceStep = Callable[[Worker, Job, str, State], DeviceResult]
# The work of several: all of them are hosted here; each must be yielded once, in any order, as a result or a failure.
CohortStep = Callable[[Worker, Job, Sequence[str], State], Iterable[DeviceResult | DeviceFailure]]


def one_by_one(step: DeviceStep) -> CohortStep:
    """A cohort's work as one device after the other: what goes wrong with one does not concern the others."""

    def steps(
        worker: Worker, job: Job, devices: Sequence[str], incoming: State
    ) -> Iterator[DeviceResult | DeviceFailure]:
        for device_id in devices:
            try:
                yield step(worker, job, device_id, incoming)
            except GuardError:
                raise
            except DEVICE_FAULTS as error:
                yield DeviceFailure(device_id, error)

    return steps


def device_data(worker: Worker, device_id: str) -> DeviceExamples:
    """One device's examples; for the arm ``centralized`` the training data of all devices as one."""
    if device_id != EVERYONE:
        return worker.task.device(device_id)
    everyone = [worker.task.device(d) for d in worker.task.device_ids() if not worker.task.is_new(d)]
    return DeviceExamples(EVERYONE, tuple(e for d in everyone for e in d.train), (), ())


def job_arm(worker: Worker, job: Job) -> Arm:
    """The arm that a job trains."""
    arm = trained_arm(job.arm, worker.config)
    if arm is None:
        raise ConfigError(f"arm {job.arm!r} is not trained: it only evaluates")
    return arm


def participants(worker: Worker) -> int:
    """How many devices take part in training."""
    return sum(not worker.task.is_new(d) for d in worker.task.device_ids())


def local_plan(worker: Worker, job: Job, device_id: str, arm: Arm) -> LocalPlan:
    """What a device does in this job: the arm's schedule, as its algorithms change it. No step where the task does not learn."""
    plan = arm.schedule.plan(job.round)
    if device_id == EVERYONE:
        devices = participants(worker)
        together = min(devices, EVERYONE_BATCHES)
        steps = math.ceil(plan.steps * devices / together)
        plan = replace(plan, steps=steps, batch_size=plan.batch_size * together)
    if not worker.task.learns:
        plan = replace(plan, steps=0, private_steps=0)
    for algorithm in arm.algorithms:
        plan = algorithm.local(plan, job.round)
    return plan


def local_seed(worker: Worker, job: Job, device_id: str) -> int:
    """The seed of a device's random choices in this job. Fine-tuning has one of its own: it goes on, it does not begin again."""
    purpose = "fine-tune" if job.phase is Phase.FINETUNE else "train"
    return derive_seed(worker.config.seed, job.round, device_id, purpose)


def adapter_part(incoming: State) -> State:
    """The shared tensors of a message, without what an algorithm sends beside them."""
    return {name: tensor for name, tensor in incoming.items() if not name.startswith(CONTROL)}


def correction_folder(arm: Arm) -> str:
    """Under which name the device store keeps what an algorithm's correction needs from round to round."""
    return f"{arm.name}-control"


def begin_correction(worker: Worker, job: Job, arm: Arm, device_id: str, incoming: State) -> Correction | None:
    """The correction of a device's gradients in this job, None if the arm's algorithm has none."""
    if arm.shared is None:
        return None

    def load(shapes: Shapes) -> State | None:
        found = worker.store.load(correction_folder(arm), device_id, shapes, before=job.round)
        return None if found is None else found.tensors

    return arm.shared.begin(incoming, load)


def train_device(worker: Worker, job: Job, device_id: str, incoming: State) -> DeviceResult:
    """Train one device alone: the reference for every faster way."""
    arm = job_arm(worker, job)
    examples = worker.vary(device_data(worker, device_id).train, local_seed(worker, job, device_id))
    plan = local_plan(worker, job, device_id, arm)
    if arm.personal.second is not None and arm.personal.second.follows:  # the shared part follows the personal one
        done = train_own_part(worker, job, arm, device_id, incoming, examples, plan)
        shared, result = done or (dict(incoming), LocalResult(0.0, 0, 0, 0.0))
        return DeviceResult(device_id, training_numbers(len(examples), result, shared, incoming), shared=shared)
    correction = begin_correction(worker, job, arm, device_id, incoming)
    worker.place(arm, device_id, adapter_part(incoming), before=job.round)
    result = train_locally(
        worker.adapted,
        worker.parameters(arm.gate),
        worker.split(arm),
        worker.task,
        examples,
        plan,
        seed=local_seed(worker, job, device_id),
        control=correction,
    )
    state = worker.state(arm.gate)
    return finish_device(worker, job, arm, device_id, incoming, examples, state, result, plan, correction)


def finish_device(
    worker: Worker,
    job: Job,
    arm: Arm,
    device_id: str,
    incoming: State,
    examples: Sequence[Example],
    state: State,
    result: LocalResult,
    plan: LocalPlan,
    correction: Correction | None,
) -> DeviceResult:
    """Keep what stays of a trained adapter ``state``, train what the device has beside it, and say what leaves.

    Nothing leaves in a phase without exchange.
    """
    worker.keep_private(arm, device_id, job.round, state)
    sends = job.phase is Phase.FEDERATE
    shared = {name: state[name] for name in worker.split(arm).shared} if sends else {}
    if correction is not None:
        worker.store.save(correction_folder(arm), device_id, PrivateState(job.round, correction.kept()))
        shared |= correction.sent()
    done = train_own_part(worker, job, arm, device_id, adapter_part(incoming), examples, plan)
    if done is not None:
        result = replace(result, seconds=result.seconds + done[1].seconds)
    return DeviceResult(device_id, training_numbers(len(examples), result, shared, incoming), shared=shared)


def training_numbers(examples: int, result: LocalResult, shared: State, incoming: State) -> dict[str, int | float]:
    """What a device says of its local phase. Bytes are those of its own tensors, whoever else is on its node."""
    return {
        "examples": examples,
        "steps": result.steps,
        "loss": result.loss,
        "bytes-up": tensors_bytes(shared.values()),
        "bytes-down": tensors_bytes(incoming.values()),
        "seconds-train": result.seconds,
    }
