"""The local phase of a job's devices in cohorts: many devices in one computation, each as if it were alone."""

import logging
from collections.abc import Iterator, Sequence

import psutil
import torch

from clients.training.cohort import Member, MemberResult, divide, train_cohort
from clients.training.phase import DEVICE_FAULTS, LocalPhase, job_arm, one_by_one, train_device
from clients.updates.reply import DeviceFailure, DeviceResult
from clients.worker import Worker
from fl.adapters.stacked import Slot
from fl.adapters.state import State
from fl.protocol.wire import Job

log = logging.getLogger("idiolect.client")
SHARE = 0.5  # of the free memory: an estimate may be off, and others want some too


def budget_bytes(device: torch.device, parallel: int = 1) -> int:
    """Bytes that one of ``parallel`` computations on this machine may plan with, on its GPU or in main memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(SHARE * free)
    return int(SHARE * psutil.virtual_memory().available / max(1, parallel))


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
    phases: dict[str, LocalPhase] = {}
    recipe = worker.recipe(arm.gate)
    slot = Slot(recipe.size, recipe.alpha / recipe.size, arm.gate)

    def members() -> Iterator[Member]:
        for device_id in devices:
            try:
                phase = LocalPhase(worker, job, device_id, incoming)
                state = worker.assembled(arm, device_id, phase.shared, before=job.round)
            except DEVICE_FAULTS as error:
                failures.append(DeviceFailure(device_id, error))
                continue
            phases[device_id] = phase
            yield Member(device_id, slot, state, phase.examples, phase.plan, phase.seed, phase.correction)

    budget = budget_bytes(next(worker.host.model.parameters()).device, job.parallel)
    for cohort in divide(members(), size=worker.config.train.cohort, budget=budget):
        try:
            trained = train_cohort(worker.host, worker.task, worker.split(arm), cohort, budget=budget)
        except DEVICE_FAULTS as error:
            log.warning("a cohort of %d devices failed, they are trained one by one: %s", len(cohort), error)
            yield from one_by_one(train_device)(worker, job, [m.device_id for m in cohort], incoming)
            continue
        for member, one in zip(cohort, trained, strict=True):
            yield _finished(phases.pop(member.device_id), one)
    yield from failures


def _finished(phase: LocalPhase, one: MemberResult | Exception) -> DeviceResult | DeviceFailure:
    if isinstance(one, Exception):
        return DeviceFailure(phase.device_id, one)
    try:
        return phase.finish(one.state, one.result)
    except DEVICE_FAULTS as error:
        return DeviceFailure(phase.device_id, error)
