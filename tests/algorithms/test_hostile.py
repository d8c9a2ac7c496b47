"""Hostile devices: as many as a robust rule assumes, and updates and texts that harm as their names say."""

from collections import Counter

import numpy as np
import pytest

from fl.aggregation.updates import DeviceUpdate
from fl.algorithms.base import Round
from fl.algorithms.hostile import UPDATE_ATTACKS, attacked, attackers, corrupted, hostile_count, swapped
from fl.algorithms.shared.robust import MultiKrum
from fl.algorithms.table import ALGORITHMS
from fl.core.errors import ConfigError
from fl.settings.config import make_config
from fl.settings.names import ATTACKS, LABEL_SWAP, NONE
from fl.tasks.task import DeviceExamples, Example

SHAPES = {"m.gated_lora_A": (2, 6), "m.gated_lora_B": (5, 2)}
NAMES = [f"d{place:02d}" for place in range(20)]


def draw_updates(count: int) -> tuple[DeviceUpdate, ...]:
    generator = np.random.default_rng(0)

    def draw() -> dict[str, np.ndarray]:
        return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}

    way = draw()
    return tuple(
        DeviceUpdate(name, {n: way[n] + np.float32(0.1) * own[n] for n in SHAPES}, {}, {"examples": 1.0})
        for name, own in ((name, draw()) for name in NAMES[:count])
    )


def flat(update: DeviceUpdate) -> np.ndarray:
    return np.concatenate([np.ravel(values).astype(np.float64) for values in (update.tensors or {}).values()])


# How many


@pytest.mark.parametrize(
    ("share", "devices", "count"),
    [(0.2, 3, 1), (0.2, 4, 1), (0.2, 8, 2), (0.2, 9, 2), (0.2, 13, 3), (0.2, 14, 3), (0.2, 18, 4), (0.2, 19, 4),
     (0.2, 10, 2), (0.2, 5, 1), (0.29, 100, 29), (0.07, 100, 7), (0.1, 30, 3), (0.0, 9, 0)],
)  # fmt: skip
def test_a_share_of_devices_is_rounded_up(share: float, devices: int, count: int) -> None:
    """0.29 * 100 and 0.07 * 100 are a little off in binary, and no device more for that."""
    assert hostile_count(share, devices) == count


@pytest.mark.parametrize("devices", range(1, 21))
@pytest.mark.parametrize("share", [0.1, 0.2, 0.25, 0.3, 0.49])
def test_no_rule_assumes_fewer_hostile_devices_than_the_same_share_makes(share: float, devices: int) -> None:
    assert hostile_count(share, devices) == len(attackers(NAMES[:devices], share, seed=1))


@pytest.mark.parametrize("devices", [8, 9, 13, 14, 18, 19])
def test_multi_krum_leaves_out_as_many_as_a_study_makes_hostile(devices: int) -> None:
    """All hostile devices are far away in a place of their own; the honest are at 0 and 1: none of the hostile counts."""
    hostile = attackers(NAMES[:devices], 0.2, seed=1)
    updates = tuple(
        DeviceUpdate(d, {"x": np.float32([100.0 if d in hostile else i % 2])}, {}, {"examples": 1.0})
        for i, d in enumerate(NAMES[:devices])
    )
    found = MultiKrum(hostile_share=0.2).aggregate(Round(1, {"x": np.zeros(1, np.float32)}, updates))
    assert 0 <= found["x"][0] <= 1


@pytest.mark.parametrize("name", [name for name, cls in ALGORITHMS.items() if cls.table == "krum"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_rule_that_withstands_nobody_is_refused_where_updates_are_attacked(name: str, attack: str) -> None:
    values = {"algorithm": name, "hostile-share": 0.0, "attack": attack, "attacker-share": 0.3}
    if attack in (NONE, LABEL_SWAP):
        make_config(values)
        return
    with pytest.raises(
        ConfigError, match=rf"hostile-share = 0 .*attack = '{attack}'.*set algorithm.krum.hostile-share = 0.3"
    ):
        make_config(values)


def test_the_hostile_are_drawn_by_the_seed_in_whatever_order_devices_come() -> None:
    found = attackers(NAMES, 0.2, 1)
    assert len(found) == 4
    assert attackers(NAMES[::-1], 0.2, 1) == found
    assert attackers(NAMES, 0.2, 2) != found
    assert len(attackers(NAMES[:3], 0.01, 1)) == 1


# What they send


def test_the_settings_name_these_attacks() -> None:
    assert {*UPDATE_ATTACKS, LABEL_SWAP, NONE} == set(ATTACKS)


@pytest.mark.parametrize("attack", UPDATE_ATTACKS)
def test_attacks_do_what_their_names_say_and_leave_honest_devices_alone(attack: str) -> None:
    updates, hostile = draw_updates(6), [NAMES[1], NAMES[4]]
    found = corrupted(updates, attack, hostile, seed=3)
    assert [one is other for one, other in zip(updates, found, strict=True)] == [True, False, True, True, False, True]
    again = corrupted(updates, attack, hostile, seed=3)
    assert all((flat(one) == flat(other)).all() for one, other in zip(found, again, strict=True))
    one, two = flat(found[1]), flat(found[4])
    if attack == "sign-flip":
        np.testing.assert_array_equal(one, -flat(updates[1]))
    elif attack == "scale":
        np.testing.assert_allclose(one, 100 * flat(updates[1]), rtol=1e-6)
    elif attack == "random":
        per_tensor = [np.linalg.norm(u.tensors[n]) for u in (found[1], updates[1]) for n in SHAPES]  # type: ignore[index]
        assert per_tensor[:2] == pytest.approx(per_tensor[2:], rel=1e-3)
        assert abs(one @ two) < np.linalg.norm(one) * np.linalg.norm(two)
    else:
        assert (one == two).all()
        honest = np.mean([flat(update) for i, update in enumerate(updates) if i not in (1, 4)], axis=0)
        assert one @ honest < 0


def test_an_unknown_attack_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="sign-flip"):
        corrupted(draw_updates(2), "flip", [], seed=0)


# Other texts to learn


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
