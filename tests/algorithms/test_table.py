"""The table of algorithms: complete, chosen by name, with options that reach each half."""

from pathlib import Path
from typing import Any

import pytest

from fl.algorithms.arms import trained_arm
from fl.algorithms.base import Aggregator, Algorithm, Role
from fl.algorithms.personal.clusters import ClusterAggregator
from fl.algorithms.personal.fedrep import FedRep
from fl.algorithms.plan import LocalPlan, Phase
from fl.algorithms.server_optimizers import LEARNING_RATES
from fl.algorithms.shared.fedavg import FedAvg
from fl.algorithms.shared.robust import Bulyan, Krum, NormBound, TrimmedMean
from fl.algorithms.shared.rolora import RoLora
from fl.algorithms.table import ALGORITHMS, choosable, chosen, make_algorithm, names_of, option_tables
from fl.core.errors import ConfigError
from fl.settings.config import SETTINGS, RunConfig, make_config
from fl.settings.names import ARMS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = "".join((DOCS / name).read_text(encoding="utf-8") for name in ("strategies.md", "gated-lora.md"))
PLAN = LocalPlan(steps=12, batch_size=2, learning_rate=0.5, private_learning_rate=0.25)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_each_algorithm_says_what_it_is(name: str) -> None:
    algorithm = make_algorithm(RunConfig(), name)
    assert algorithm.name == name
    about = algorithm.about
    assert about.paper
    assert about.shares
    assert about.keeps
    assert len(about.arxiv) == 10
    assert isinstance(algorithm.aggregator(), Aggregator)
    half = algorithm.aggregator()
    assert half is algorithm or half is not algorithm.aggregator(), "its state is of one arm alone"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_made_without_options_has_their_defaults(name: str) -> None:
    assert ALGORITHMS[name]() == make_algorithm(RunConfig(), name)


@pytest.mark.parametrize("name", choosable())
def test_the_page_names_every_algorithm_with_its_paper(name: str) -> None:
    assert f"`{name}`" in PAGE
    assert ALGORITHMS[name].about.arxiv in PAGE


@pytest.mark.parametrize("name", LEARNING_RATES)
def test_the_page_names_every_server_optimizer(name: str) -> None:
    assert f"`{name}`" in PAGE


def test_the_roles_divide_the_table() -> None:
    assert sorted(name for role in Role for name in names_of(role)) == sorted(ALGORITHMS)
    assert set(choosable()) == set(ALGORITHMS) - {"finetune"}
    assert names_of(Role.LOCAL) == ("fedprox",)


def test_each_option_is_a_setting_under_its_algorithm() -> None:
    wanted = {
        f"algorithm.{table}.{field.replace('_', '-')}"
        for table, options in option_tables().items()
        for field in options.model_fields
    }
    assert wanted | {"algorithm.name"} == {key for key in SETTINGS if key.startswith("algorithm.")}


def test_without_a_choice_it_is_fedavg_and_whoever_took_part_enrols() -> None:
    found = chosen(RunConfig())
    assert [algorithm.name for algorithm in found.all] == ["fedavg", "enrolment"]
    for name in ("fedavg", "enrolment", "enrolment,fedavg"):
        assert chosen(make_config({"algorithm": name})) == found


@pytest.mark.parametrize(
    ("values", "personal"),
    [
        # whatever the shared part is trained by and with: devices of two ranks and an aggregation that corrects the base too
        ({"method": "lora", "device-ranks": "2,8", "algorithm": "flexlora", "aggregation": "device"}, "enrolment"),
        ({"task": "no-op", "arms": "personalized"}, "enrolment"),
        ({"sites": "encoder.self", "algorithm": "scaffold"}, "enrolment"),
        # a private part that the settings name
        ({"gate": "self"}, "gates"),
        ({"gate": "low-rank", "gated-arms": "all"}, "gates"),
        ({"method": "scalar-gate"}, "gates"),
        ({"split": "fedsa"}, "gates"),
        ({"algorithm": "ffa", "split": "ffa"}, "gates"),
        ({"split": "layers:decoder"}, "gates"),
        # no arm, or nothing to enrol: it must not be refused for what nobody asked for
        ({"arms": "global,global+finetune"}, "gates"),
        ({"method": "prefix", "arms": "global"}, "gates"),
        ({"method": "bottleneck", "split": "layers:decoder"}, "gates"),
        # and an algorithm that says it
        ({"algorithm": "ditto", "gate": "self"}, "ditto"),
        ({"algorithm": "enrolment", "gate": "self"}, "enrolment"),
    ],
)
def test_what_is_personal_unless_an_algorithm_says_it_follows_from_the_private_part(
    values: dict[str, Any], personal: str
) -> None:
    assert chosen(make_config(values)).personal.name == personal


def test_a_default_run_shares_the_whole_adapter_and_enrols_after_its_last_round() -> None:
    arm = trained_arm("personalized", RunConfig())
    assert arm is not None
    assert (arm.gate, arm.split) == ("none", "all-shared")
    assert arm.schedule.phase(12) is Phase.FEDERATE
    assert (arm.schedule.rounds, arm.schedule.phase(13)) == (13, Phase.PERSONALIZE)


@pytest.mark.parametrize(
    "values", [{"algorithm": "gates"}, {"gated-arms": "all"}, {"gated-arms": "all", "arms": "local"}]
)
def test_gates_without_a_gate_are_refused_by_asking_for_one(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"gate = 'none'.*choose .*such as self"):
        make_config(values)
    assert make_config({**values, "gate": "self"}).gate == "self"


def test_one_of_each_role_in_whatever_order_they_are_named() -> None:
    one, other = (
        chosen(make_config({"algorithm": n})) for n in ("scaffold,ditto,fedprox", "fedprox, ditto , scaffold")
    )
    assert one == other
    assert (one.shared.name, one.personal.name, [a.name for a in one.local]) == ("scaffold", "ditto", ["fedprox"])


@pytest.mark.parametrize(
    ("names", "role"), [(("krum", "median"), "aggregation"), (("ditto", "mixture"), "personalization")]
)
def test_two_algorithms_of_one_role_are_refused_by_naming_both(names: tuple[str, str], role: str) -> None:
    with pytest.raises(ConfigError, match=f"'{names[0]}' and '{names[1]}'.* one {role} algorithm"):
        make_config({"algorithm": ",".join(names)})


@pytest.mark.parametrize("name", ["finetune", "fedavgg", ""])
def test_a_name_that_cannot_be_chosen_is_refused_by_naming_those_that_can(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_config({"algorithm": name})
    assert all(known in str(error.value) for known in choosable())


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown algorithm 'flexlor': did you mean 'flexlora'"):
        make_algorithm(RunConfig(), "flexlor")


def test_options_reach_the_aggregators_half() -> None:
    def half(**values: Any) -> Any:
        return chosen(make_config(values)).shared.aggregator()

    for rule, name in ((Krum, "krum"), (Bulyan, "bulyan")):  # which have one table of options
        assert half(algorithm=name, hostile_share=0.1) == rule(hostile_share=0.1)
    assert half(algorithm="trimmed-mean", trim_share=0.3) == TrimmedMean(trim_share=0.3)
    assert half(**{"algorithm": "norm-bound", "algorithm.norm-bound.bound": 2.5}) == NormBound(bound=2.5)
    clusters = chosen(make_config({"algorithm": "clusters", "algorithm.clusters.count": 7})).personal.aggregator()
    assert isinstance(clusters, ClusterAggregator)
    assert clusters.rule.count == 7


def test_options_reach_the_devices_half() -> None:
    def plan_of(algorithm: Algorithm) -> Any:
        assert algorithm.second is not None
        return algorithm.second.plan(PLAN)

    def make(name: str, **options: float) -> Algorithm:
        return make_algorithm(
            make_config({f"algorithm.{name}.{k.replace('_', '-')}": v for k, v in options.items()}), name
        )

    ditto = make("ditto", pull=0.7, steps=5)
    assert (plan_of(ditto).shrinkage, plan_of(ditto).steps) == (0.7, 5)
    assert plan_of(make("ditto")).steps == 12
    assert plan_of(make("mixture", mixing_learning_rate=0.3)).mixing_learning_rate == 0.3
    own = plan_of(make("pfedme", steps=4, pull=0.5, outer_learning_rate=0.5))
    assert (own.steps, own.repeat, own.shrinkage, own.outer) == (3, 4, 0.5, 0.25)
    assert (plan_of(make("pfedme")).steps, plan_of(make("pfedme")).repeat) == (4, 3)
    assert make("fedprox", proximal=0.5).local(PLAN, 1).proximal == 0.5


@pytest.mark.parametrize(("steps", "first", "then"), [(0, 6, 6), (4, 4, 8), (11, 11, 1), (99, 11, 1)])
def test_fedrep_trains_the_last_layers_first_and_leaves_a_step_for_the_others(
    steps: int, first: int, then: int
) -> None:
    plan = FedRep(steps=steps).local(PLAN, 1)
    assert (plan.first_private, plan.steps) == (first, then)


def test_rolora_freezes_one_factor_in_turns_beginning_with_a() -> None:
    assert [RoLora().local(PLAN, number).frozen for number in (1, 2, 3)] == ["A", "B", "A"]


# Arms


@pytest.mark.parametrize("name", [arm for arm in ARMS if trained_arm(arm, RunConfig())])
def test_only_arms_that_federate_have_an_aggregation_algorithm(name: str) -> None:
    arm = trained_arm(name, make_config({"algorithm": "median"}))
    assert arm is not None
    assert arm.federates == (name in ("global", "personalized"))
    assert (arm.shared.name if arm.shared is not None else "") == ("median" if arm.federates else "")


def test_an_algorithm_with_a_split_of_its_own_leaves_the_arm_alone_whose_split_is_fixed() -> None:
    config = make_config({"algorithm": "ffa", "split": "ffa"})
    names = {name: trained_arm(name, config).shared.name for name in ("global", "personalized")}  # type: ignore[union-attr]
    assert names == {"global": FedAvg.name, "personalized": "ffa"}


def test_all_data_in_one_place_has_neither_proximal_term_nor_frozen_factor() -> None:
    arm = trained_arm("centralized", make_config({"algorithm": "rolora,fedprox"}))
    assert arm is not None
    assert arm.algorithms == ()


def test_what_is_personal_is_what_the_algorithm_says() -> None:
    for name, wanted in {
        "gates": ("self", "gates"),
        "ditto": ("none", "all-shared"),
        "fedper": ("none", "last:2"),
        "clusters": ("none", "all-shared"),
    }.items():
        values = {"algorithm": name, "gate": "self", **({"algorithm.fedper.layers": 2} if name == "fedper" else {})}
        arm = trained_arm("personalized", make_config(values))
        assert arm is not None
        assert (arm.gate, arm.split) == wanted
