"""The local phase of one device: its adapter put together, trained, and its results taken apart into what stays and what leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from clients.training.control import Control, keep_control, load_control, without_controls
from clients.training.personal import PFEDME, train_own_part
from clients.training.single import LocalPlan, LocalResult, make_plan, train_locally
from clients.updates.reply import DeviceFailure, DeviceResult
from clients.worker import Worker
from fl.adapters.split import Split
from fl.adapters.state import State
from fl.algorithms.arms import EVERYONE, Arm, trained_arm
from fl.core.errors import ConfigError, GuardError, IdiolectError
from fl.core.rng import derive_seed
from fl.protocol.wire import FINETUNE, PERSONALIZE, Job, tensors_bytes
from fl.settings.config import resting_factor
from fl.tasks.task import Device, Example

FEDREP = "fedrep"
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


def device_data(worker: Worker, device_id: str) -> Device:
    """One device's examples; for the arm ``centralized`` the training data of all devices as one."""
    if device_id != EVERYONE:
        return worker.task.device(device_id)
    everyone = [worker.task.device(d) for d in worker.task.device_ids() if not worker.task.is_new(d)]
    return Device(EVERYONE, tuple(e for d in everyone for e in d.train), (), ())


def job_arm(worker: Worker, job: Job) -> Arm:
    """The arm that a job trains."""
    arm = trained_arm(job.arm, worker.config)
    if arm is None:
        raise ConfigError(f"arm {job.arm!r} is not trained: it only evaluates")
    return arm


def participants(worker: Worker) -> int:
    """How many devices take part in training."""
    return sum(not worker.task.is_new(d) for d in worker.task.device_ids())


def local_steps(worker: Worker, job: Job, device_id: str) -> int:
    """Optimizer steps of a device in this job; none where the task only measures the framework."""
    train = worker.config.train
    if not worker.task.learns:
        return 0
    if device_id == EVERYONE:
        devices = participants(worker)
        return math.ceil(train.local_steps * devices / min(devices, EVERYONE_BATCHES))
    return train.finetune_steps if job.phase == FINETUNE else train.local_steps


def local_plan(worker: Worker, job: Job, device_id: str, arm: Arm) -> LocalPlan:
    """What a device does in this job. All data in one place has no others to stay close to, nor to alternate with."""
    steps = local_steps(worker, job, device_id)
    train = worker.config.train
    # Finetuning goes on where the schedule ended: at the first round's rate it would unlearn what was learned together.
    round_index = train.rounds if job.phase == FINETUNE else job.round
    plan = make_plan(train, round_index, steps=steps, gated=arm.gate != "none" and not arm.joint)
    if device_id == EVERYONE:
        return replace(plan, proximal=0.0, batch_size=plan.batch_size * min(participants(worker), EVERYONE_BATCHES))
    if arm.personal == FEDREP:
        first = min(worker.config.personal.personal_steps or steps // 2, steps - 1) if steps else 0
        plan = replace(plan, first_private=first, steps=plan.steps - first)
    return replace(plan, rests=resting_factor(worker.config.federation.strategy, job.round))


def local_seed(worker: Worker, job: Job, device_id: str) -> int:
    """The seed of a device's random choices in this job."""
    return derive_seed(worker.config.seed, job.round, device_id, "train")


def train_device(worker: Worker, job: Job, device_id: str, incoming: State) -> DeviceResult:
    """Train one device alone: the reference for every faster way."""
    arm = job_arm(worker, job)
    examples = worker.vary(device_data(worker, device_id).train, local_seed(worker, job, device_id))
    plan = local_plan(worker, job, device_id, arm)
    if arm.personal == PFEDME:  # its shared part follows the personal one
        done = train_own_part(worker, job, arm, device_id, incoming, examples, plan)
        shared, result = done or (dict(incoming), LocalResult(0.0, 0, 0, 0.0))
        return DeviceResult(device_id, training_numbers(len(examples), result, shared, incoming), shared=shared)
    control = load_control(worker, arm, device_id, incoming, before=job.round)
    worker.place(arm, device_id, without_controls(incoming), before=job.round)
    result = train_locally(
        worker.adapted,
        worker.parameters(arm.gate),
        worker.split(arm),
        worker.task,
        examples,
        plan,
        seed=local_seed(worker, job, device_id),
        control=control,
    )
    state = worker.state(arm.gate)
    return finish_device(worker, job, arm, device_id, incoming, examples, state, result, plan, control)


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
    control: Control | None,
) -> DeviceResult:
    """Keep what stays of a trained adapter ``state``, train what the device has beside it, and say what leaves."""
    worker.keep_private(arm, device_id, job.round, state)
    shared = shared_part(state, worker.split(arm), job)
    if control is not None:
        keep_control(worker, arm, device_id, job.round, control)
        shared |= control.message()
    done = train_own_part(worker, job, arm, device_id, without_controls(incoming), examples, plan)
    if done is not None:
        result = replace(result, seconds=result.seconds + done[1].seconds)
    return DeviceResult(device_id, training_numbers(len(examples), result, shared, incoming), shared=shared)


def shared_part(state: State, split: Split, job: Job) -> State:
    """What leaves the device: nothing of a phase in which the shared part rests."""
    return {} if job.phase == PERSONALIZE else {name: state[name] for name in split.shared}


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
