"""What a worker keeps between messages, and that nothing of one device reaches the next."""

import pytest
import torch

from clients.worker import Worker, get_worker, step_threads, threads
from fl.adapters.state import State, adapter_state
from fl.algorithms.arms import Arm, adapter_name, trained_arm
from fl.core.errors import AdapterError, StoreError
from fl.settings.config import RunConfig, make_config


def arm_of(name: str) -> Arm:
    arm = trained_arm(name, make_config({"gate": "self"}))
    assert arm is not None
    return arm


PERSONAL, LOCAL = arm_of("personalized"), arm_of("local")


def in_slot(worker: Worker, arm: Arm) -> State:
    return adapter_state(worker.adapted, adapter_name(arm.gate))


def equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def shared_of(worker: Worker, arm: Arm, value: float) -> State:
    worker.slot(arm.gate)
    return {name: torch.full_like(worker.initial(arm.gate)[name], value) for name in worker.split(arm).shared}


def train_gates(worker: Worker, value: float) -> None:
    with torch.no_grad():
        for name, parameter in worker.active("self").parameters.items():
            if "gate_" in name:
                parameter.fill_(value)


def test_the_base_is_loaded_once_for_a_process_and_configuration(config: RunConfig, worker: Worker) -> None:
    assert get_worker(config, worker.store.root, "") is worker


def test_a_new_person_has_the_shared_part_and_neutral_gates(worker: Worker) -> None:
    shared = shared_of(worker, PERSONAL, 0.5)
    worker.place(PERSONAL, "ann", shared, before=9)
    state = in_slot(worker, PERSONAL)
    assert all(torch.equal(state[name], shared[name]) for name in shared)
    assert all(not state[name].any() for name in worker.split(PERSONAL).private)
    assert len(worker.split(PERSONAL).private) > 0


def test_private_tensors_are_the_devices_own_and_come_from_the_round_before(worker: Worker) -> None:
    shared = shared_of(worker, PERSONAL, 0.5)
    worker.place(PERSONAL, "ann", shared, before=1)
    for round_index in (1, 2):
        train_gates(worker, float(round_index))
        worker.keep_private(PERSONAL, "ann", round_index, worker.active(PERSONAL.gate).state())
    gate = worker.split(PERSONAL).private[0]
    expected = {("ann", 3): 2.0, ("ann", 2): 1.0, ("ann", 1): 0.0, ("bob", 3): 0.0}
    for (device, before), value in expected.items():
        worker.place(PERSONAL, device, shared, before=before)
        assert torch.equal(in_slot(worker, PERSONAL)[gate], torch.full_like(worker.initial("self")[gate], value))


def test_neutral_means_neutral_even_for_a_device_with_gates_of_its_own(worker: Worker) -> None:
    shared = shared_of(worker, PERSONAL, 0.5)
    worker.place(PERSONAL, "ann", shared, before=1)
    train_gates(worker, 2.0)
    worker.keep_private(PERSONAL, "ann", 1, worker.active(PERSONAL.gate).state())
    worker.place(PERSONAL, "ann", shared, before=2, neutral=True)
    assert all(not in_slot(worker, PERSONAL)[name].any() for name in worker.split(PERSONAL).private)


def test_the_store_holds_private_tensors_only(worker: Worker) -> None:
    worker.place(PERSONAL, "ann", shared_of(worker, PERSONAL, 0.5), before=1)
    worker.keep_private(PERSONAL, "ann", 1, worker.active(PERSONAL.gate).state())
    shapes = {n: tuple(worker.initial("self")[n].shape) for n in worker.split(PERSONAL).private}
    assert worker.store.load("personalized", "ann", shapes, before=2) is not None  # complete, and nothing beside them


def test_one_slot_serves_several_arms_without_mixing_them(worker: Worker) -> None:
    glob = arm_of("global")
    worker.place(glob, "ann", shared_of(worker, glob, 0.25), before=1)
    worker.place(LOCAL, "ann", {}, before=1)
    assert equal(in_slot(worker, LOCAL), worker.initial("none"))


def test_what_a_failed_device_left_in_the_slot_is_gone_for_the_next(worker: Worker) -> None:
    worker.slot("self")
    with torch.no_grad():
        for parameter in worker.active("self").parameters.values():
            parameter.fill_(float("nan"))
    shared = shared_of(worker, PERSONAL, 0.5)
    worker.place(PERSONAL, "bob", shared, before=1)
    assert equal(in_slot(worker, PERSONAL), {**worker.initial("self"), **shared})


def test_shared_tensors_with_nan_are_refused(worker: Worker) -> None:
    with pytest.raises(AdapterError, match="NaN"):
        worker.place(PERSONAL, "ann", shared_of(worker, PERSONAL, float("nan")), before=1)


def test_a_damaged_private_state_stops_the_device_instead_of_starting_it_afresh(worker: Worker) -> None:
    worker.place(PERSONAL, "ann", shared_of(worker, PERSONAL, 0.5), before=1)
    worker.keep_private(PERSONAL, "ann", 1, worker.active(PERSONAL.gate).state())
    (worker.store.folder("personalized", "ann") / "state-000001.safetensors").write_bytes(b"broken")
    with pytest.raises(StoreError, match="damaged"):
        worker.place(PERSONAL, "ann", shared_of(worker, PERSONAL, 0.5), before=2)


def test_a_fresh_adapter_is_decided_by_the_seed(config: RunConfig, worker: Worker) -> None:
    arm = trained_arm("personalized", config)
    assert arm is not None
    other = Worker(config, worker.store.root)
    assert equal(worker.initial(arm.gate), other.initial(arm.gate))


def test_threads_are_shared_among_messages_in_flight_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    for most, expected in {"": [8, 4, 2, 1, 1], "3": [3, 3, 2, 1, 1], "1,4": [1] * 5, "all": [8, 4, 2, 1, 1]}.items():
        monkeypatch.setenv("OMP_NUM_THREADS", most)
        assert [step_threads(parallel) for parallel in (1, 2, 3, 8, 100)] == expected
    before = torch.get_num_threads()

    def fail() -> None:
        with threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert torch.get_num_threads() == before
