"""A task without training: devices by number, none of them kept."""

import sys

import pytest
import torch

from fl.core.errors import ConfigError
from fl.settings.config import make_config
from fl.tasks.noop import NAME, NoOpTask
from fl.tasks.table import TASKS, load_task
from fl.tasks.task import Task


def task(devices=5, new_people=2):
    return load_task(make_config({"task": NAME, "devices": devices, "new-people": new_people}))


def test_the_task_is_chosen_by_the_setting():
    found: Task = task()
    assert isinstance(found, NoOpTask)
    assert found.fingerprint.startswith(NAME)


def test_the_table_says_that_nothing_is_learnt():
    kind = TASKS[NAME]
    assert (kind.learns, kind.augments) == (task().learns, False) == (False, False)


def test_devices_have_numbers_as_names_and_new_people_come_last():
    ids = task().device_ids()
    assert ids == tuple(f"device-00000{i}" for i in range(7))
    assert [task().is_new(d) for d in ids] == [False] * 5 + [True] * 2


def test_everybody_who_trains_has_examples_and_a_new_person_only_tests():
    own, new = task().device("device-000000"), task().device("device-000006")
    assert own.train
    assert own.validation
    assert not own.new_person
    assert (new.train, new.validation) == ((), ())
    assert new.test
    assert new.new_person


@pytest.mark.parametrize(
    "device_id", ["", "7", "device-7", "device-000007", "device-0000001", "device--00001", "device-00000²"]
)
def test_a_name_that_is_no_device_is_refused(device_id):
    with pytest.raises(ConfigError, match="device-000000 to device-000006"):
        task().device(device_id)


def test_a_hundred_thousand_devices_cost_a_task_nothing():
    few, many = task(10, 0), task(100_000, 0)
    for device_id in many.device_ids()[::1000]:
        many.device(device_id)
    attributes = [sum(sys.getsizeof(value) for value in vars(t).values()) for t in (few, many)]
    assert attributes[0] == attributes[1]


def test_its_loss_is_zero_and_teaches_nothing():
    own = task()
    model = own.new_model().requires_grad_(True)
    sums, labels = own.losses(model, own.device("device-000001").train * 3)
    assert (sums.shape, labels.shape) == ((3,), (3,))
    own.loss(model, own.device("device-000001").train * 3).backward()
    assert all(not p.grad.any() for p in model.parameters())
    assert torch.equal(own.new_model().map.weight, own.model.map.weight)
