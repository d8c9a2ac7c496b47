"""The local phase of one device: its adapter put together, trained, and its results taken apart into what stays and what leaves."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from clients.training.second import Own, OwnResult, fresh_own, own_folder, second_slot, stored_own, train_own
from clients.training.single import LocalResult, train_locally
from clients.updates.reply import DeviceFailure, DeviceResult
from clients.worker import Worker
from fl.adapters.split import CONTROL
from fl.adapters.state import Shapes, State, adapter_parameters
from fl.algorithms.arms import EVERYONE, Arm, trained_arm
from fl.algorithms.base import Correction
from fl.algorithms.plan import LocalPlan, Phase, in_one_place
from fl.core.errors import ConfigError, GuardError, IdiolectError
from fl.core.rng import derive_seed
from fl.protocol.wire import Job, tensors_bytes
from fl.tasks.task import DeviceExamples

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


def local_plan(worker: Worker, job: Job, device_id: str, arm: Arm) -> LocalPlan:
    """What a device does in this job: the arm's schedule, as its algorithms change it. No step where the task does not learn."""
    plan = arm.schedule.plan(job.round)
    if device_id == EVERYONE:
        plan = in_one_place(plan, sum(not worker.task.is_new(d) for d in worker.task.device_ids()))
    if not worker.task.learns:
        plan = replace(plan, steps=0, private_steps=0)
    if job.phase is Phase.PERSONALIZE and arm.schedule.closing and has_own(worker, arm, device_id, before=job.round):
        plan = replace(plan, private_steps=0)
    for algorithm in arm.algorithms:
        plan = algorithm.local(plan, job.round)
    return plan


def has_own(worker: Worker, arm: Arm, device_id: str, *, before: int) -> bool:
    """Whether a device has something of its own in an arm from before a round."""
    folders = (arm.name, own_folder(arm))
    return any(number < before for folder in folders for number in worker.store.rounds(folder, device_id))


def local_seed(worker: Worker, job: Job, device_id: str) -> int:
    """The seed of a device's random choices in this job. Fine-tuning has one of its own: it goes on, it does not begin again."""
    purpose = "fine-tune" if job.phase is Phase.FINETUNE else "train"
    return derive_seed(worker.config.seed, job.round, device_id, purpose)


def adapter_part(incoming: State) -> State:
    """The shared tensors of a message, without what an algorithm sends beside them."""
    return {name: tensor for name, tensor in incoming.items() if not name.startswith(CONTROL)}


class LocalPhase:
    """What one device has before the local phase of a job, and what becomes of the adapter that comes out of it."""

    def __init__(self, worker: Worker, job: Job, device_id: str, incoming: State) -> None:
        self.worker, self.job, self.device_id, self.incoming = worker, job, device_id, incoming
        self.arm = job_arm(worker, job)
        self.plan = local_plan(worker, job, device_id, self.arm)
        self.seed = local_seed(worker, job, device_id)
        self.examples = worker.vary(device_data(worker, device_id).train, self.seed)
        self.shared = adapter_part(incoming)
        self.correction = self._begin_correction()

    @property
    def _correction_folder(self) -> str:
        """Under which name the device store keeps what an algorithm's correction needs from round to round."""
        return f"{self.arm.name}-control"

    def _begin_correction(self) -> Correction | None:
        """The correction of the device's gradients, None if the arm's algorithm has none."""
        if self.arm.shared is None:
            return None

        def load(shapes: Shapes) -> State | None:
            return self.worker.store.load(self._correction_folder, self.device_id, shapes, before=self.job.round)

        return self.arm.shared.begin(self.incoming, load)

    @property
    def own_alone(self) -> bool:
        """Whether the shared part is not trained beside what is the device's own: it only follows, or the rounds are over."""
        second = self.arm.personal.second
        return second is not None and (second.follows or self.job.phase is Phase.PERSONALIZE)

    def finish(self, trained: tuple[State, LocalResult] | None, own: OwnResult | None) -> DeviceResult:
        """Keep what stays of the trained adapter (None where it only follows) and of what the device has beside it; say what leaves.

        Nothing leaves in a phase without exchange.
        """
        worker, job = self.worker, self.job
        if own is not None:
            worker.store.save(own_folder(self.arm), self.device_id, job.round, own.personal)
        sends = job.phase is Phase.FEDERATE
        if trained is None:
            shared = own.shared if own else dict(self.incoming)
            return self._result(shared if sends else {}, own.result if own else LocalResult())
        state, result = trained
        worker.keep_private(self.arm, self.device_id, job.round, state)
        shared = {name: state[name] for name in worker.split(self.arm).shared} if sends else {}
        if self.correction is not None:
            worker.store.save(self._correction_folder, self.device_id, job.round, self.correction.kept())
            shared |= self.correction.sent()
        if own is not None:
            result = replace(result, seconds=result.seconds + own.result.seconds)
        return self._result(shared, result)

    def own(self) -> Own | None:
        """What the device trains of its own beside the shared adapter; None where there is nothing to do."""
        worker, job, second, device_id = self.worker, self.job, self.arm.personal.second, self.device_id
        steps = self.plan.private_steps if job.phase is Phase.PERSONALIZE else self.plan.steps
        if second is None or second.afterwards or job.phase is Phase.FINETUNE or not steps:
            return None
        kept = None
        if not second.follows:
            kept = stored_own(worker, second, self.arm, device_id, self.shared, before=job.round)
        personal = kept or fresh_own(worker, second, self.shared)
        seed = derive_seed(worker.config.seed, job.round, device_id, "train-own")
        return Own(
            self.shared, personal, self.examples, second.plan(replace(self.plan, steps=steps, private_steps=0)), seed
        )

    def _result(self, shared: State, result: LocalResult) -> DeviceResult:
        """What the device says of its local phase. Bytes are those of its own tensors, whoever else is on its node."""
        numbers = {
            "examples": len(self.examples),
            "steps": result.steps,
            "loss": result.loss,
            "bytes-up": tensors_bytes(shared.values()),
            "bytes-down": tensors_bytes(self.incoming.values()),
            "seconds-train": result.seconds,
        }
        return DeviceResult(self.device_id, numbers, shared=shared)


def train_device(worker: Worker, job: Job, device_id: str, incoming: State) -> DeviceResult:
    """Train one device alone: the reference for every faster way."""
    phase = LocalPhase(worker, job, device_id, incoming)
    trained = None if phase.own_alone else _train_adapter(phase)
    own, second = phase.own(), phase.arm.personal.second
    if own is None or second is None:
        return phase.finish(trained, None)
    slot = second_slot(worker, second)
    parameters = adapter_parameters(worker.adapted, slot)
    return phase.finish(trained, train_own(worker.adapted, parameters, second, worker.task, own))


def _train_adapter(phase: LocalPhase) -> tuple[State, LocalResult]:
    """Train the device's adapter, the shared and the private part."""
    worker, arm, device_id, job = phase.worker, phase.arm, phase.device_id, phase.job
    worker.place(arm, device_id, phase.shared, before=job.round)
    result = train_locally(
        worker.adapted,
        worker.active(arm.gate).parameters,
        worker.split(arm),
        worker.task,
        phase.examples,
        phase.plan,
        seed=phase.seed,
        control=phase.correction,
    )
    return worker.active(arm.gate).state(), result
