"""Hostile devices of a study that are taught other texts."""

from collections import Counter

import pytest

from fl.algorithms.attacks import attacked, swapped
from fl.algorithms.hostile import attackers
from fl.settings.config import make_config
from fl.tasks.task import DeviceExamples, Example

NAMES = [f"d{place}" for place in range(20)]


def test_swapped_targets_are_the_same_texts_at_other_examples_and_only_for_training():
    examples = tuple(Example(f"e{place}", None, f"text {place}", 1, {}) for place in range(5))
    device = DeviceExamples("ann", examples, examples, examples)
    changed = swapped(device, 1)
    assert [e.key for e in changed.train] == [e.key for e in examples]
    assert Counter(e.target for e in changed.train) == Counter(e.target for e in examples)
    assert all(a.target != b.target for a, b in zip(changed.train, examples, strict=True))
    assert (changed.validation, changed.test) == (examples, examples)
    assert swapped(device, 1) == changed


class Letters:
    """A task whose devices have the texts a to e."""

    language = "en"

    def device_ids(self):
        return tuple(NAMES)

    def is_new(self, device_id):
        return device_id == NAMES[-1]

    def device(self, device_id):
        examples = tuple(Example(letter, None, letter, 1, {}) for letter in "abcde")
        return DeviceExamples(device_id, examples, examples, examples)


@pytest.mark.parametrize("attack", ["none", "sign-flip"])
def test_an_attack_on_updates_leaves_the_data_alone(attack):
    task = Letters()
    assert attacked(task, make_config({"attack": attack})) is task


def test_only_the_hostile_devices_have_other_data_and_all_else_is_the_tasks():
    config = make_config({"attack": "label-swap", "attacker-share": 0.3})
    task = attacked(Letters(), config)
    changed = {name for name in NAMES if task.device(name) != Letters().device(name)}
    assert changed == attackers(NAMES[:-1], 0.3, config.seed)
    assert len(changed) == 6
    assert (task.language, task.device_ids()) == ("en", tuple(NAMES))
