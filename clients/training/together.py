"""The local phase of a job's devices in cohorts: many devices in one computation, each as if it were alone."""

import logging
from collections.abc import Iterator, Sequence

from clients.training.cohort import Member, MemberResult, activation_bytes, train_cohort
from clients.training.phase import DEVICE_FAULTS, LocalPhase, job_arm, one_by_one, train_device
from clients.updates.reply import DeviceFailure, DeviceResult
from clients.worker import Worker
from fl.adapters.stacked import Slot
from fl.adapters.state import State
from fl.algorithms.arms import Arm
from fl.protocol.wire import Job
from fl.settings.config import cohort_size

log = logging.getLogger("idiolect.client")


def train_together(
    worker: Worker, job: Job, devices: Sequence[str], incoming: State
) -> Iterator[DeviceResult | DeviceFailure]:
    """Train ``devices`` in cohorts, each of as many of them as :func:`fl.settings.config.cohort_size` says, in their order.

    Who is beside whom does not depend on who fails. Data and private state are loaded as a cohort is made up. If a cohort's
    computation fails as a whole, its devices are trained one by one, so that the one at fault fails alone. What a device has beside
    its adapter is trained after its cohort, alone; where the shared part follows it, that is all there is.
    """
    arm, size = job_arm(worker, job), cohort_size(worker.config.train)
    alone = one_by_one(train_device)
    for start in range(0, len(devices), size):
        cohort = devices[start : start + size]
        together = len(cohort) > 1 and arm.personal.can.cohorts
        yield from _train(worker, job, arm, cohort, incoming) if together else alone(worker, job, cohort, incoming)


def _train(
    worker: Worker, job: Job, arm: Arm, cohort: Sequence[str], incoming: State
) -> Iterator[DeviceResult | DeviceFailure]:
    recipe = worker.recipe(arm.gate)
    slot = Slot(recipe.size, recipe.alpha / recipe.size, arm.gate)
    members: dict[LocalPhase, Member] = {}
    for device_id in cohort:
        try:
            phase = LocalPhase(worker, job, device_id, incoming)
            state = worker.assembled(arm, device_id, phase.shared, before=job.round)
        except DEVICE_FAULTS as error:
            yield DeviceFailure(device_id, error)
            continue
        members[phase] = Member(device_id, slot, state, phase.examples, phase.plan, phase.seed, phase.correction)
    budget = activation_bytes(next(worker.host.model.parameters()).device)
    try:
        trained = train_cohort(worker.host, worker.task, worker.split(arm), list(members.values()), budget=budget)
    except DEVICE_FAULTS as error:
        log.warning("a cohort of %d devices failed, they are trained one by one: %s", len(members), error)
        yield from one_by_one(train_device)(worker, job, [phase.device_id for phase in members], incoming)
        return
    yield from map(_finished, members, trained)


def _finished(phase: LocalPhase, one: MemberResult | Exception) -> DeviceResult | DeviceFailure:
    if isinstance(one, Exception):
        return DeviceFailure(phase.device_id, one)
    try:
        return phase.finish(one.state, one.result)
    except DEVICE_FAULTS as error:
        return DeviceFailure(phase.device_id, error)
