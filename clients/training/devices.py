"""The devices of a run enrol after its last round, in cohorts, as ``idiolect enrol`` enrols one person."""

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from clients.training.cohort import activation_bytes
from clients.training.enrol import enrol
from clients.training.enrol_method import method_of
from clients.training.phase import DEVICE_FAULTS, adapter_part, device_data, job_arm
from clients.training.private_part import Adapter, Enrolment, Start, kept
from clients.training.second import own_folder
from clients.training.single import no_examples
from clients.updates.reply import DeviceFailure, DeviceResult
from clients.worker import Worker
from fl.adapters.blend import own
from fl.adapters.directions import read_directions
from fl.adapters.ranks import device_rank
from fl.adapters.stacked import Slot
from fl.adapters.state import State
from fl.algorithms.personal.enrolment import EnrolledPart
from fl.core.rng import derive_seed
from fl.protocol.wire import Job, tensors_bytes
from fl.settings.config import cohort_size
from fl.tasks.task import Example

log = logging.getLogger("idiolect.client")


def enrol_devices(
    worker: Worker, job: Job, devices: Sequence[str], incoming: State, directions: Mapping[str, np.ndarray]
) -> Iterator[DeviceResult | DeviceFailure]:
    """Enrol ``devices`` on the shared tensors of the job, drawn to its ``directions`` (:mod:`fl.adapters.directions`, as they are
    sent), and keep what helps in their store: nothing leaves.

    If a cohort's computation fails, its devices are enrolled one by one, so that the one at fault fails alone.
    """
    size = cohort_size(worker.config.train)
    for first in range(0, len(devices), size):
        yield from _enrol(worker, job, devices[first : first + size], incoming, directions)


def _enrol(
    worker: Worker, job: Job, cohort: Sequence[str], incoming: State, directions: Mapping[str, np.ndarray]
) -> Iterator[DeviceResult | DeviceFailure]:
    people: dict[str, Sequence[Example]] = {}
    for device_id in cohort:
        try:
            examples = device_data(worker, device_id).train
            if not examples:
                raise no_examples()
            people[device_id] = examples
        except DEVICE_FAULTS as error:
            yield DeviceFailure(device_id, error)
    try:
        learns = worker.task.learns and people
        found = _enrolled(worker, job, people, adapter_part(incoming), read_directions(directions)) if learns else {}
    except DEVICE_FAULTS as error:
        if len(people) > 1:
            log.warning("a cohort of %d devices failed, they are enrolled one by one: %s", len(people), error)
            for device_id in people:
                yield from _enrol(worker, job, [device_id], incoming, directions)
        else:
            yield from (DeviceFailure(device_id, error) for device_id in people)
        return
    for device_id, own_examples in people.items():
        one = found.get(device_id, Enrolment({}, 0, {}, 0.0))
        if one.steps:
            state = {own(name): tensor for name, tensor in kept(one.private)[0].items()}
            worker.store.save(own_folder(job_arm(worker, job)), device_id, job.round, state, int8=True)
        numbers = {
            "examples": len(own_examples),
            "steps": one.steps,
            "loss": one.curve.get(one.steps, 0.0),
            "bytes-down": tensors_bytes(incoming.values()) + sum(values.nbytes for values in directions.values()),
            "seconds-train": one.seconds,
        }
        yield DeviceResult(device_id, numbers)


def _enrolled(
    worker: Worker, job: Job, people: dict[str, Sequence[Example]], shared: State, directions: State
) -> dict[str, Enrolment]:
    part, recipe = job_arm(worker, job).personal, worker.recipe("none")
    assert isinstance(part, EnrolledPart)
    slot, seed = Slot(recipe.size, recipe.alpha / recipe.size, "none"), derive_seed(worker.config.seed, "enrolment")
    budget = activation_bytes(next(worker.host.model.parameters()).device)
    by_rank: dict[int, dict[str, Sequence[Example]]] = {}
    for device_id, examples in people.items():
        by_rank.setdefault(device_rank(worker.config, device_id), {})[device_id] = examples
    found: dict[str, Enrolment] = {}
    for rank, group in by_rank.items():  # numbers beyond a device's rank are zero in both factors, and get no gradient
        whole = rank >= worker.config.adapter.rank  # a direction would have such numbers too
        adapter = Adapter(slot, worker.at_rank(shared, next(iter(group))), directions if whole else {})
        start = Start.of(adapter, method_of(part), seed=seed)
        found |= enrol(worker.host, worker.task, start, group, seed=seed, budget=budget)
    return found
