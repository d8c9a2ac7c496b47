"""Every refusal of a combination follows from what an algorithm says it can do: the whole table against the checker."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fl.algorithms.base import Algorithm, Capabilities, Role
from fl.algorithms.personal.gates import Gates
from fl.algorithms.table import ALGORITHMS, choosable, make_algorithm, names_of
from fl.core.errors import ConfigError
from fl.settings.config import RunConfig, make_config

ROOT = Path(__file__).parents[2]
PARTS = names_of(Role.AGGREGATION, Role.PERSONALIZATION)


def with_algorithm(name: str, **values: Any) -> RunConfig:
    """Settings with an algorithm and the gate or split that it needs."""
    gate = "self" if ALGORITHMS[name] is Gates else "none"
    return make_config({"algorithm": name, "gate": gate, "split": ALGORITHMS[name].split or "gates", **values})


def refuses(name: str, **values: Any) -> str:
    """Why an algorithm does not go with these settings; empty if it does."""
    try:
        with_algorithm(name, **values)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", choosable())
def test_every_algorithm_goes_with_the_defaults(name: str) -> None:
    assert refuses(name) == ""


def test_corrections_of_frozen_weights_do_not_go_with_bf16() -> None:
    refused = [name for name in choosable() if refuses(name, precision="bf16")]
    assert refused == ["fedex", "flora"]
    assert "base.precision = 'float32'" in refuses("flora", precision="bf16")


@pytest.mark.parametrize(
    ("capability", "values"),
    [
        ("sums", {"aggregation": "edge"}),
        ("optimizer", {"server_optimizer": "fedadam"}),
        ("encoded", {"codec": "int8"}),
        ("encoded", {"codec": "top-k:0.1"}),
        ("sampled", {"sample": 0.5}),
    ],
)
@pytest.mark.parametrize("name", choosable())
def test_what_it_cannot_do_is_refused_by_its_name_and_what_it_can_is_taken(
    name: str, capability: str, values: dict[str, Any]
) -> None:
    why, able = refuses(name, **values), getattr(ALGORITHMS[name].can, capability)
    assert (why == "") == able, why
    if not able:
        assert name in why
        (value,) = values.values()
        assert f"{value}" in why
        assert "set " in why


@pytest.mark.parametrize(
    "values",
    [
        {"secure_sum": "pairwise"},
        {"dp": "server", "noise_multiplier": 1.0},
        {"dp": "distributed", "secure_sum": "pairwise", "noise_multiplier": 1.0},
    ],
    ids=lambda values: "-".join(map(str, values.values())),
)
@pytest.mark.parametrize("name", PARTS)
def test_only_means_are_summed_behind_masks_and_noised_in_the_middle(name: str, values: dict[str, Any]) -> None:
    why, able = refuses(name, **values), ALGORITHMS[name].can.mean
    assert (why == "") == able, why
    assert able or f"'{name}'" in why


@pytest.mark.parametrize("name", PARTS)
def test_noise_at_the_device_goes_with_all_that_make_one_model(name: str) -> None:
    why = refuses(name, dp="local", noise_multiplier=1.0)
    assert (why == "") == (not ALGORITHMS[name].aggregates), why


@pytest.mark.parametrize("name", PARTS)
def test_devices_of_different_ranks_need_a_rule_for_them(name: str) -> None:
    why, cls = refuses(name, device_ranks="2,4"), ALGORITHMS[name]
    assert (why == "") == bool(cls.can.ranks), why
    if not cls.can.ranks:
        assert "device-ranks = '2,4'" in why
        assert name in why


@pytest.mark.parametrize(
    "values",
    [{"dp": "server"}, {"dp": "local"}, {"secure-sum": "pairwise"}, {"codec": "int8"}, {"attack": "sign-flip"}],
    ids=str,
)
def test_what_is_done_to_updates_does_not_go_with_different_ranks(values: dict[str, str]) -> None:
    make_config(values)
    with pytest.raises(ConfigError, match=r"device-ranks = '2,4': .* has no room for.*or leave device-ranks empty"):
        make_config({**values, "device-ranks": "2,4"})


@pytest.mark.parametrize("name", PARTS)
def test_what_needs_a_and_b_is_refused_for_a_method_without_them(name: str) -> None:
    cls = ALGORITHMS[name]
    layers = {"split": "layers:decoder"} if not (cls.split or cls.decides_split) else {}
    why = refuses(name, method="bottleneck", **layers)
    assert (why == "") == (not cls.can.low_rank), why
    if cls.can.low_rank:
        assert "method = 'bottleneck'" in why
        assert name in why


@pytest.mark.parametrize("split", ["fedsa", "ffa"])
@pytest.mark.parametrize("name", [name for name in PARTS if ALGORITHMS[name].can.pairs])
def test_what_needs_both_factors_is_refused_where_one_of_them_stays_at_the_devices(name: str, split: str) -> None:
    why = refuses(name, split=split)
    assert f"algorithm = '{name}' needs A and B" in why
    assert f"split = '{split}'" in why
    assert refuses(name, split=split, arms="global") == ""


@pytest.mark.parametrize("name", [name for name, cls in ALGORITHMS.items() if cls.split])
def test_an_algorithm_with_one_split_is_refused_with_another_and_without_the_arm_that_has_it(name: str) -> None:
    assert f"split = {ALGORITHMS[name].split!r}" in refuses(name, split="gates")
    assert "personalized" in refuses(name, arms="global")


@pytest.mark.parametrize("name", [name for name, cls in ALGORITHMS.items() if cls.decides_split])
def test_an_algorithm_that_decides_what_is_private_is_refused_with_another_split_and_without_its_arm(name: str) -> None:
    assert "split = 'all-private'" in refuses(name, split="all-private")
    assert "add personalized" in refuses(name, arms="global")


@pytest.mark.parametrize("name", [name for name, cls in ALGORITHMS.items() if cls.aggregates])
@pytest.mark.parametrize("other", [name for name in names_of(Role.AGGREGATION) if name != "fedavg"])
def test_one_that_aggregates_by_itself_goes_with_no_other_aggregation(name: str, other: str) -> None:
    with pytest.raises(ConfigError):
        make_config({"algorithm": f"{name},{other}"})


@pytest.mark.parametrize(
    "name", [name for name in PARTS if (found := make_algorithm(RunConfig(), name).second) and found.follows]
)
@pytest.mark.parametrize(
    "other", [name for name in choosable() if name not in PARTS or ALGORITHMS[name].role is Role.AGGREGATION]
)
def test_a_shared_part_that_follows_the_personal_one_is_not_trained_otherwise(name: str, other: str) -> None:
    cls = ALGORITHMS[other]
    changes = cls.role is Role.LOCAL or cls.local is not Algorithm.local or cls.begin is not Algorithm.begin
    together = {"algorithm": f"{name},{other}"}
    if not changes and not cls.split:
        make_config(together)
        return
    with pytest.raises(ConfigError, match=other):
        make_config(together)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"algorithm": "pfedme", "algorithm.pfedme.steps": 13}, ["algorithm.pfedme.steps = 13", "local-steps = 12"]),
        ({"algorithm": "fedrep", "local-steps": 1}, ["fedrep", "train.local-steps = 1"]),
        ({"algorithm": "fedrep", "local-steps": 4, "algorithm.fedrep.steps": 4}, ["train.local-steps = 5"]),
        ({"algorithm": "clusters", "attack": "scale"}, ["clusters", "attack = 'none'"]),
        ({"algorithm": "pfedme,fedprox"}, ["pfedme", "fedprox"]),
        ({"algorithm": "pfedme,scaffold"}, ["pfedme", "scaffold"]),
        ({"algorithm": "pfedme,rolora"}, ["pfedme", "rolora"]),
    ],
)
def test_what_an_algorithm_refuses_by_itself_names_the_setting_to_change(
    values: dict[str, Any], named: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        make_config(values)
    assert all(part in str(error.value) for part in named)


def test_each_capability_is_read_outside_the_file_that_defines_it() -> None:
    texts = [
        path.read_text(encoding="utf-8")
        for package in ("fl", "clients", "strategies")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "base.py"
    ]
    unread = [field.name for field in fields(Capabilities) if not any(f".can.{field.name}" in text for text in texts)]
    assert unread == [], "nobody asks for this capability: remove it, or derive a refusal from it"
