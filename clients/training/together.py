"""The local phase of a job's devices in cohorts: many devices in one computation, each as if it were alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from clients.training.cohort import Member, MemberResult, divide, train_cohort
from clients.training.memory import budget_bytes
from clients.training.phase import (
    DEVICE_FAULTS,
    adapter_part,
    begin_correction,
    finish_device,
    job_arm,
    local_plan,
    local_seed,
    one_by_one,
    train_device,
)
from clients.updates.reply import DeviceFailure, DeviceResult
from clients.worker import Worker
from fl.adapters.stacked import Slot
from fl.adapters.state import State
from fl.algorithms.arms import Arm
from fl.protocol.wire import Job

log = logging.getLogger("idiolect.client")


def train_together(
    worker: Worker, job: Job, devices: Sequence[str], incoming: State
) -> Iterator[DeviceResult | DeviceFailure]:
    """Train ``devices`` in cohorts of at most the setting ``cohort``, smaller where memory is short.

    Data and private state are loaded as a cohort is made up. If a cohort's computation fails as a whole, its devices are
    trained one by one, so that the one at fault fails alone. What a device has beside its adapter is trained after its cohort,
    alone; where the shared part follows it, that is all there is.
    """
    arm = job_arm(worker, job)
    if not arm.personal.can.cohorts:
        yield from one_by_one(train_device)(worker, job, devices, incoming)
        return
    failures: list[DeviceFailure] = []
    members = _members(worker, arm, job, devices, incoming, failures)
    budget = budget_bytes(next(worker.host.model.parameters()).device, job.parallel)
    for cohort in divide(members, size=worker.config.train.cohort, budget=budget):
        try:
            trained = train_cohort(worker.host, worker.task, worker.split(arm), cohort, budget=budget)
        except DEVICE_FAULTS as error:
            log.warning("a cohort of %d devices failed, they are trained one by one: %s", len(cohort), error)
            yield from one_by_one(train_device)(worker, job, [m.device_id for m in cohort], incoming)
            continue
        for one, member in zip(trained, cohort, strict=True):
            yield _result(worker, arm, job, one, member, incoming)
    yield from failures


def _members(
    worker: Worker, arm: Arm, job: Job, devices: Sequence[str], incoming: State, failures: list[DeviceFailure]
) -> Iterator[Member]:
    recipe = worker.recipe(arm.gate)
    slot = Slot(recipe.size, recipe.alpha / recipe.size, arm.gate)
    for device_id in devices:
        try:
            examples = worker.vary(worker.task.device(device_id).train, local_seed(worker, job, device_id))
            state = worker.assembled(arm, device_id, adapter_part(incoming), before=job.round)
            control = begin_correction(worker, job, arm, device_id, incoming)
        except DEVICE_FAULTS as error:
            failures.append(DeviceFailure(device_id, error))
            continue
        plan = local_plan(worker, job, device_id, arm)
        yield Member(device_id, slot, state, examples, plan, local_seed(worker, job, device_id), control)


def _result(
    worker: Worker, arm: Arm, job: Job, one: MemberResult, member: Member, incoming: State
) -> DeviceResult | DeviceFailure:
    if one.state is None or one.result is None:
        return DeviceFailure(one.device_id, one.error or RuntimeError("no result"))
    try:
        return finish_device(
            worker,
            job,
            arm,
            one.device_id,
            incoming,
            member.examples,
            one.state,
            one.result,
            member.plan,
            member.control,
        )
    except DEVICE_FAULTS as error:
        return DeviceFailure(one.device_id, error)
