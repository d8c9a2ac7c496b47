"""A node that trains its devices in cohorts against one that trains them one by one."""

from dataclasses import replace

import pytest
import torch

from clients.training import together
from clients.training.phase import job_arm, one_by_one, train_device
from clients.training.second import fresh_own
from clients.training.together import train_together
from clients.updates.reply import DeviceFailure, DeviceResult
from clients.worker import Worker
from fl.core.errors import ConfigError, StoreError
from fl.protocol.wire import Job
from fl.settings.config import make_config

SETTINGS = {
    "cohort": 2,
    "rounds": 4,
    "private-share": 0.0,
    "local-steps": 2,
    "learning-rate": 1e-3,
    "private-learning-rate": 1e-2,
}


@pytest.fixture
def workers(config, tmp_path):
    """Two workers of the same run with stores of their own."""
    chosen = make_config(SETTINGS, config)
    return Worker(chosen, tmp_path / "together"), Worker(chosen, tmp_path / "alone")


def job_of(worker: Worker, arm: str = "personalized", round_index: int = 1) -> Job:
    ids = tuple(d for d in worker.task.device_ids() if not worker.task.is_new(d))
    return Job(arm, round_index, ids)


def by_device(results) -> dict[str, DeviceResult]:
    found = {}
    for result in results:
        assert isinstance(result, DeviceResult), result
        found[result.device_id] = result
    return found


def distance(one: dict, other: dict) -> float:
    assert one.keys() == other.keys()
    return max((float((one[n] - other[n]).abs().max()) for n in one), default=0.0)


@pytest.mark.parametrize("arm", ["personalized", "local", "global"])
def test_two_rounds_in_cohorts_equal_two_rounds_one_by_one(workers, arm):
    """Single precision; after two rounds of two steps at rates of 1e-3 and 1e-2 no entry is off by more than 2e-4."""
    fast, slow = workers
    incoming: dict[str, torch.Tensor] = {}
    for round_index in (1, 2):
        job = job_of(fast, arm, round_index)
        assert len(job.devices) == 3  # a full cohort and a rest
        quick = by_device(train_together(fast, job, job.devices, incoming))
        reference = by_device(one_by_one(train_device)(slow, job, job.devices, incoming))
        assert quick.keys() == reference.keys() == set(job.devices)
        for device_id, expected in reference.items():
            found = quick[device_id]
            assert distance(found.shared, expected.shared) < 2e-4
            assert found.numbers["loss"] == pytest.approx(expected.numbers["loss"], rel=1e-3)
            for name in ("examples", "steps", "bytes-up", "bytes-down"):
                assert found.numbers[name] == expected.numbers[name]
        incoming = dict(reference[job.devices[0]].shared)
    if arm == "global":
        assert fast.store.rounds(arm, job.devices[0]) == []
        return
    shapes = fast.active("self" if arm == "personalized" else "none").shapes()
    private = [n for n in shapes if "gate_" in n or arm == "local"]
    for device_id in job.devices:
        kept = [w.store.load(arm, device_id, {n: shapes[n] for n in private}, before=3) for w in (fast, slow)]
        assert distance(*kept) < 2e-4
        assert any(bool(t.abs().sum() > 0) for t in kept[0].values())


@pytest.mark.parametrize("method", ["ditto", "mixture", "pfedme", "dual-adapter", "interpolation"])
def test_second_adapters_train_in_cohorts_as_one_by_one(config, tmp_path, caplog, method):
    """Single precision, relative to the way that they went: 1e-3 after each of two rounds that begin at the same tensors."""
    settings = {**SETTINGS, "algorithm": method, "local-steps": 4, "weight-decay": 0.1}
    chosen = make_config(settings, config)
    fast, slow = (Worker(chosen, tmp_path / name) for name in ("together", "alone"))
    incoming = dict(fast.initial("none"))
    for round_index in (1, 2):
        job = job_of(fast, round_index=round_index)
        quick = by_device(train_together(fast, job, job.devices, incoming))
        reference = by_device(one_by_one(train_device)(slow, job, job.devices, incoming))
        for device_id, expected in reference.items():
            found = quick[device_id]
            assert off(found.shared, expected.shared, incoming) < 1e-3
            assert found.numbers["loss"] == pytest.approx(expected.numbers["loss"], rel=1e-4)
            for name in ("examples", "steps", "bytes-up", "bytes-down"):
                assert found.numbers[name] == expected.numbers[name]
            second = job_arm(fast, job).personal.second
            begun = fresh_own(fast, second, incoming)
            kept = [
                w.store.load("personalized-own", device_id, {n: tuple(t.shape) for n, t in begun.items()}, before=9)
                for w in (fast, slow)
            ]
            assert off(*kept, begun) < 1e-3
            slow.store.save("personalized-own", device_id, round_index, kept[0])
        incoming = dict(quick[job.devices[0]].shared)
    assert "trained one by one" not in caplog.text


def off(one: dict, other: dict, start: dict) -> float:
    """How far apart two adapters are, relative to the way from where they began."""
    assert one.keys() == other.keys() == start.keys()
    flat = torch.nn.utils.parameters_to_vector
    moved = flat([other[n] - start[n] for n in one]).norm()
    assert moved > 0
    return float(flat([one[n] - other[n] for n in one]).norm() / moved)


def test_a_cohort_that_fails_as_a_whole_is_trained_one_by_one(workers, monkeypatch):
    fast, slow = workers
    job = job_of(fast)
    broken = job.devices[1]
    losses = fast.task.losses

    def fail_for_one(model, examples):
        if any(e.key.startswith(broken.split()[-1] + "-") for e in examples):
            raise RuntimeError("cannot compute this")
        return losses(model, examples)

    monkeypatch.setattr(fast.task, "losses", fail_for_one)
    monkeypatch.setattr(
        fast.task, "loss", lambda model, examples: (lambda s, n: s.sum() / n.sum())(*fail_for_one(model, examples))
    )
    results = {r.device_id: r for r in train_together(fast, job, job.devices, {})}
    assert isinstance(results[broken], DeviceFailure)
    expected = by_device(one_by_one(train_device)(slow, job, job.devices, {}))
    for device_id in set(job.devices) - {broken}:
        assert distance(results[device_id].shared, expected[device_id].shared) < 2e-4


def test_a_device_whose_private_state_is_damaged_fails_alone(workers, monkeypatch):
    fast, _ = workers
    job = job_of(fast)
    assembled = fast.assembled

    def damaged(arm, device_id, *arguments, **named):
        if device_id == job.devices[0]:
            raise StoreError("damaged")
        return assembled(arm, device_id, *arguments, **named)

    monkeypatch.setattr(fast, "assembled", damaged)
    results = {r.device_id: r for r in train_together(fast, job, job.devices, {})}
    assert [d for d, r in results.items() if isinstance(r, DeviceFailure)] == [job.devices[0]]


def test_who_is_beside_whom_does_not_depend_on_who_fails(workers, monkeypatch):
    fast, _ = workers
    beside: list[list[str]] = []
    train, assembled = together.train_cohort, fast.assembled
    monkeypatch.setattr(
        together, "train_cohort", lambda *a, **k: beside.append([m.device_id for m in a[3]]) or train(*a, **k)
    )
    job = job_of(fast)
    first, second, third = job.devices

    def damaged(arm, device_id, *arguments, **named):
        if device_id == first:
            raise StoreError("damaged")
        return assembled(arm, device_id, *arguments, **named)

    list(train_together(fast, job, job.devices, {}))
    monkeypatch.setattr(fast, "assembled", damaged)
    list(train_together(fast, job, job.devices, {}))
    assert beside == [[first, second], [third], [second], [third]]


def test_an_arm_that_only_evaluates_is_refused(workers):
    fast, _ = workers
    with pytest.raises(ConfigError, match="only evaluates"):
        list(train_together(fast, replace(job_of(fast), arm="zero-shot"), ("화자 0",), {}))
