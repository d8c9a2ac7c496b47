"""The local phase of a job's devices in cohorts: many devices in one computation, each as if it were alone."""

import logging
from collections.abc import Iterator, Sequence

from clients.training.cohort import Member, MemberResult, activation_bytes, train_cohort
from clients.training.phase import DEVICE_FAULTS, LocalPhase, job_arm, one_by_one, train_device
from clients.training.second import Own, OwnResult
from clients.training.second_cohort import train_own_cohort
from clients.updates.reply import DeviceFailure, DeviceResult
from clients.worker import Worker
from fl.adapters.stacked import Slot
from fl.adapters.state import State
from fl.protocol.wire import Job
from fl.settings.config import cohort_size

log = logging.getLogger("idiolect.client")


def train_together(
    worker: Worker, job: Job, devices: Sequence[str], incoming: State
) -> Iterator[DeviceResult | DeviceFailure]:
    """Train ``devices`` in cohorts, each of as many of them as :func:`fl.settings.config.cohort_size` says, in their order.

    Who is beside whom does not depend on who fails. Data and private state are loaded as a cohort is made up. What the devices have
    beside their adapters is trained after these, in the same cohort; where the shared part follows it, that is all there is. If a
    cohort's computation fails as a whole, its devices are trained one by one, so that the one at fault fails alone.
    """
    job_arm(worker, job)  # an arm that is not trained is the fault of the message, not of a device
    size = cohort_size(worker.config.train)
    train = _train if size > 1 else one_by_one(train_device)
    for start in range(0, len(devices), size):
        yield from train(worker, job, devices[start : start + size], incoming)


def _train(worker: Worker, job: Job, cohort: Sequence[str], incoming: State) -> Iterator[DeviceResult | DeviceFailure]:
    arm = job_arm(worker, job)
    recipe, second = worker.recipe(arm.gate), arm.personal.second
    slot = Slot(recipe.size, recipe.alpha / recipe.size, arm.gate)
    phases: list[tuple[LocalPhase, Member, Own | None]] = []
    for device_id in cohort:
        try:
            phase = LocalPhase(worker, job, device_id, incoming)
            state = worker.assembled(arm, device_id, phase.shared, before=job.round)
            own = phase.own()
        except DEVICE_FAULTS as error:
            yield DeviceFailure(device_id, error)
            continue
        member = Member(device_id, slot, state, phase.examples, phase.plan, phase.seed, phase.correction)
        phases.append((phase, member, own))
    members = [member for _, member, _ in phases]
    host, task, budget = worker.host, worker.task, activation_bytes(next(worker.host.model.parameters()).device)
    owned: dict[LocalPhase, OwnResult | Exception] = {}
    try:
        trained: Sequence[MemberResult | Exception | None] = [None] * len(members)
        if not any(phase.own_alone for phase, _, _ in phases):
            trained = train_cohort(host, task, worker.split(arm), members, budget=budget)
        beside = zip(phases, trained, strict=True)
        owns = {phase: own for (phase, _, own), one in beside if own is not None and not isinstance(one, Exception)}
        if second is not None and not second.afterwards:
            plain = worker.recipe("none")
            blended = Slot(second.ranks * plain.size, plain.alpha / plain.size, second.gate)
            results = train_own_cohort(host, task, second, blended, list(owns.values()), budget=budget)
            owned = dict(zip(owns, results, strict=True))
    except DEVICE_FAULTS as error:
        log.warning("a cohort of %d devices failed, they are trained one by one: %s", len(members), error)
        yield from one_by_one(train_device)(worker, job, [member.device_id for member in members], incoming)
        return
    for (phase, _, _), one in zip(phases, trained, strict=True):
        yield _finished(phase, one, owned.get(phase))


def _finished(
    phase: LocalPhase, one: MemberResult | Exception | None, own: OwnResult | Exception | None
) -> DeviceResult | DeviceFailure:
    if isinstance(one, Exception):
        return DeviceFailure(phase.device_id, one)
    if isinstance(own, Exception):
        return DeviceFailure(phase.device_id, own)
    try:
        return phase.finish(None if one is None else (one.state, one.result), own)
    except DEVICE_FAULTS as error:
        return DeviceFailure(phase.device_id, error)
