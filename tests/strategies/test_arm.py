"""The strategy of one arm: who is asked for what, and what is made of the answers, whatever the algorithm."""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from fl.adapters.split import CONTROL
from fl.aggregation.mean import GAP
from fl.algorithms.arms import NEUTRAL
from fl.algorithms.plan import Phase
from fl.core.errors import AggregationError, ConfigError
from fl.protocol.wire import COUNTS, DEVICES, IDS, JOB, SUM, TOTALS, Job, from_arrays, to_arrays
from sim.backends.serial import SerialGrid
from strategies.arm import ArmStrategy, check_population, weighted_mean
from strategies.roster import Roster

Make = Callable[..., ArmStrategy]
Round = Callable[..., dict[str, np.ndarray]]
STEP = (1 * 1.0 + 2 * 2.0 + 5 * 4.0) / 8  # of the three devices together


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def answers(devices: Any, strategy: ArmStrategy, arrays: ArrayRecord, server_round: int = 1) -> list[Message]:
    grid = SerialGrid(devices)
    return list(grid.send_and_receive(strategy.configure_train(server_round, arrays, ConfigRecord(), grid)))


def train(devices: Any, strategy: ArmStrategy, start: ArrayRecord, server_round: int = 1) -> dict[str, np.ndarray]:
    new, _ = strategy.aggregate_train(server_round, answers(devices, strategy, start, server_round)[::-1])
    assert new is not None
    return {name: array.numpy() for name, array in new.items()}


def test_a_round_moves_the_shared_tensors_by_the_weighted_steps(
    devices: Any, make_strategy: Make, start: ArrayRecord
) -> None:
    new = train(devices, make_strategy(devices), start)
    assert set(new) == set(start)
    for name, array in start.items():
        assert (new[name] == array.numpy() + STEP).all()


def test_where_devices_live_and_in_which_order_they_are_named_changes_nothing(
    devices: Any, make_strategy: Make, start: ArrayRecord
) -> None:
    one = train(devices, make_strategy(devices), start)
    moved = Roster({"ann": 2, "bob": 2, "cho": 1}, devices.examples)
    other = train(devices, make_strategy(devices, roster=moved, order=("cho", "ann", "bob")), start)
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_a_failing_device_is_left_out_of_the_average(devices: Any, make_strategy: Make, start: ArrayRecord) -> None:
    devices.failing = {"cho": 1}
    strategy = make_strategy(devices)
    new = train(devices, strategy, start)
    assert np.allclose(new["layer.A"], (1 * 1.0 + 2 * 2.0) / 3)
    assert set(strategy.last.left_out) == {"cho"}


@pytest.mark.parametrize("arm", ["global", "local", "global+finetune"])
def test_without_a_sound_reply_there_is_no_new_state(
    devices: Any, make_strategy: Make, start: ArrayRecord, arm: str
) -> None:
    devices.failing = dict.fromkeys(devices.steps, 1)
    strategy = make_strategy(devices, arm=arm)
    assert strategy.aggregate_train(1, answers(devices, strategy, start)) == (None, None)


def test_each_node_gets_one_message_with_its_own_devices(devices: Any, make_strategy: Make, start: ArrayRecord) -> None:
    messages = list(make_strategy(devices).configure_train(3, start, ConfigRecord(), SerialGrid(devices)))
    jobs = {m.metadata.dst_node_id: Job.from_record(m.content.config_records[JOB]) for m in messages}
    assert {node: job.devices for node, job in jobs.items()} == {1: ("ann", "cho"), 2: ("bob",)}
    assert {(job.round, job.parallel, job.phase) for job in jobs.values()} == {(3, 2, Phase.FEDERATE)}


def test_it_is_an_ordinary_strategy_of_flower(devices: Any, make_strategy: Make, start: ArrayRecord) -> None:
    strategy = make_strategy(devices)
    assert isinstance(strategy, Strategy)
    result = strategy.start(SerialGrid(devices), start, num_rounds=2)
    assert (result.arrays["layer.A"].numpy() == 2 * STEP).all()
    assert sorted(result.train_metrics_clientapp) == [1, 2]
    final = result.evaluate_metrics_clientapp[2]
    assert [final[f"wer.{f}"] for f in ("substitutions", "insertions", "reference")] == [3, 6, 30]
    assert result.train_metrics_clientapp[1]["loss"] == STEP


def test_an_aggregate_that_is_not_finite_is_refused_with_a_remedy(
    make_strategy: Make, round_of: Round, devices: Any
) -> None:
    before = {"x": np.full(2, 3e38, np.float32)}
    far = {d: (1.0, {"x": np.full(2, 3e38, np.float32)}) for d in devices.steps}
    with pytest.raises(AggregationError, match=r"the aggregate of 'x' is not finite.*robust"):
        round_of(make_strategy(devices), before, far)


# Phases


def test_fine_tuning_sends_tensors_and_keeps_none(devices: Any, make_strategy: Make, start: ArrayRecord) -> None:
    strategy = make_strategy(devices, arm="global+finetune")
    new, metrics = strategy.aggregate_train(1, answers(devices, strategy, start))
    assert {job.phase for _, job in devices.jobs} == {Phase.FINETUNE}
    assert all(got == start for _, got in devices.got)
    assert (new, metrics and metrics["devices"]) == (ArrayRecord(), 3)


def test_a_frozen_shared_part_goes_out_stays_as_it_is_and_is_not_sent_back(
    devices: Any, make_strategy: Make, start: ArrayRecord
) -> None:
    """Four rounds of which the last half is one message for the gates alone: rounds 1 and 2 federate, 3 does not."""
    strategy = make_strategy(devices, arm="personalized", **{"federation.rounds": 4, "private-share": 0.5})
    moved = start
    for server_round in (1, 2):
        moved = ArrayRecord({n: Array(v) for n, v in train(devices, strategy, moved, server_round).items()})
    devices.got.clear()
    kept = train(devices, strategy, moved, 3)
    assert [job.phase.value for _, job in devices.jobs] == ["federate"] * 4 + ["personalize"] * 2
    assert all(got == moved for _, got in devices.got)
    assert all(kept[name].tobytes() == moved[name].numpy().tobytes() for name in moved)


def test_tensors_that_nobody_asked_for_are_passed_over(devices: Any, make_strategy: Make, start: ArrayRecord) -> None:
    strategy = make_strategy(devices, arm="global+finetune")
    replies = answers(devices, strategy, start)
    for reply in replies:
        reply.content["updates"] = ArrayRecord({"gate": Array(np.ones(2, np.float32))})
    new, _ = strategy.aggregate_train(1, replies)
    assert new == ArrayRecord()
    assert all(update.tensors is None for update in strategy.last.sound)


@pytest.mark.parametrize(
    ("arm", "server_round", "phase"), [("personalized", 11, Phase.PERSONALIZE), ("global+finetune", 1, Phase.FINETUNE)]
)
def test_every_device_takes_part_in_a_phase_without_exchange_whether_it_was_sampled_or_not(
    devices: Any, make_strategy: Make, start: ArrayRecord, arm: str, server_round: int, phase: Phase
) -> None:
    strategy = make_strategy(devices, arm=arm, sample=0.3)
    train(devices, strategy, start, server_round)
    assert {job.phase for _, job in devices.jobs} == {phase}
    assert sorted(d for _, job in devices.jobs for d in job.devices) == ["ann", "bob", "cho"]
    assert strategy.last.left_out == {}


def test_a_round_is_paid_for_before_it_starts_and_only_where_updates_are_sent(
    devices: Any, make_strategy: Make, start: ArrayRecord
) -> None:
    paid: list[tuple[str, int]] = []
    strategy = make_strategy(devices, arm="personalized", charge=lambda arm, number: paid.append((arm, number)))
    train(devices, strategy, start, 10)
    train(devices, strategy, start, 11)
    assert paid == [("personalized", 10)]

    def broke(arm: str, number: int) -> None:
        raise ConfigError("spent")

    devices.jobs.clear()
    with pytest.raises(ConfigError, match="spent"):
        answers(devices, make_strategy(devices, charge=broke), start)
    assert devices.jobs == []


# Sampling


def drawn(make_strategy: Make, devices: Any, **changes: Any) -> list[tuple[str, ...]]:
    order = changes.pop("order", [f"device {i:02}" for i in range(20)])
    strategy = make_strategy(devices, order=order, **{"sample": 0.25, **changes})
    return [strategy.sampled(r) for r in range(1, 40)]


def test_sampling_depends_on_the_seed_and_the_round_alone(devices: Any, make_strategy: Make) -> None:
    first = drawn(make_strategy, devices)
    random.seed(99)
    backwards = [f"device {i:02}" for i in range(19, -1, -1)]
    assert drawn(make_strategy, devices, order=backwards) == first
    assert drawn(make_strategy, devices, seed=2) != first
    assert make_strategy(devices, order=backwards, sample=0.25).sampled(17) == first[16]  # whatever was drawn before


def test_every_arm_draws_the_same_devices_in_a_round(devices: Any, make_strategy: Make) -> None:
    assert drawn(make_strategy, devices, arm="personalized") == drawn(make_strategy, devices, arm="global")


def test_a_sample_has_the_size_asked_for_and_reaches_everybody(devices: Any, make_strategy: Make) -> None:
    rounds = drawn(make_strategy, devices)
    assert {len(chosen) for chosen in rounds} == {5}
    assert all(len(set(chosen)) == 5 for chosen in rounds)
    assert len({d for chosen in rounds for d in chosen}) == 20


@pytest.mark.parametrize(("sample", "size"), [(1.0, 20), (1e-9, 1), (0.5, 10), (2.0, 2), (19.0, 19), (1000.0, 20)])
def test_a_sample_is_a_share_or_a_number_of_at_least_one_and_at_most_all(
    devices: Any, make_strategy: Make, sample: float, size: int
) -> None:
    assert {len(chosen) for chosen in drawn(make_strategy, devices, sample=sample)} == {size}


def test_a_number_of_devices_draws_the_same_ones_as_the_share_that_it_is(devices: Any, make_strategy: Make) -> None:
    assert drawn(make_strategy, devices, sample=5.0) == drawn(make_strategy, devices, sample=0.25)


def test_a_device_that_was_not_drawn_is_not_asked(devices: Any, make_strategy: Make, start: ArrayRecord) -> None:
    strategy = make_strategy(devices, sample=0.3)
    train(devices, strategy, start)
    (chosen,) = strategy.sampled(1)
    assert [job.devices for _, job in devices.jobs] == [(chosen,)]


# Driving an algorithm


def test_the_algorithm_says_whether_so_few_devices_are_enough(devices: Any, make_strategy: Make) -> None:
    strategy = make_strategy(devices, algorithm="krum")
    with pytest.raises(ConfigError, match="krum needs at least 5 devices in a round to withstand 1, and there are 3"):
        strategy.require_fit({"x": (1,)})
    make_strategy(devices, algorithm="krum", order=[f"d{i}" for i in range(5)]).require_fit({"x": (1,)})
    few = make_strategy(devices, algorithm="krum", order=[f"d{i}" for i in range(20)], sample=4.0)
    with pytest.raises(ConfigError, match="there are 4"):
        few.require_fit({"x": (1,)})


def test_a_device_that_the_algorithm_cannot_use_is_left_out_by_name(
    devices: Any, make_strategy: Make, start: ArrayRecord
) -> None:
    strategy = make_strategy(devices, algorithm="fednova")
    replies = answers(devices, strategy, start)
    for reply in replies:
        ids = list(reply.content.config_records[DEVICES][IDS])  # type: ignore[arg-type]
        reply.content.metric_records[COUNTS]["steps"] = [0 if d == "cho" else 2 for d in ids]
    new, metrics = strategy.aggregate_train(1, replies)
    assert new is not None
    assert new["layer.A"].numpy() == pytest.approx((1 * 1.0 + 2 * 2.0) / 3)
    assert "local steps" in strategy.last.left_out["cho"]
    assert metrics is not None
    assert (metrics["devices"], metrics["left-out"]) == (2, 1)


def test_every_round_says_how_much_the_mean_of_factors_loses(devices: Any, make_strategy: Make) -> None:
    """All factors are ones, and device k adds s_k to each: of rank 2, B A is 2 (1 + s_k)^2 everywhere."""
    start = ArrayRecord({"map.gated_lora_A": Array(ones(2, 6)), "map.gated_lora_B": Array(ones(5, 2))})
    strategy = make_strategy(devices)
    _, metrics = strategy.aggregate_train(1, answers(devices, strategy, start))
    exact = (1 * 2.0**2 + 2 * 3.0**2 + 5 * 5.0**2) / 8
    gap = 1 - (1 + STEP) ** 2 / exact
    assert metrics is not None
    assert [metrics[GAP], metrics[f"{GAP}:map"]] == pytest.approx([gap, gap])


def test_an_optimizer_steps_where_an_arm_federates_and_its_moments_are_kept(
    devices: Any, make_strategy: Make, start: ArrayRecord
) -> None:
    plain = train(devices, make_strategy(devices), start)
    settings = {"server_optimizer": "fedavgm", "server-optimizer.rate": 1.0, "server-optimizer.momentum": 0.0}
    stepped = train(devices, strategy := make_strategy(devices, **settings), start)
    assert all((plain[name] == stepped[name]).all() for name in plain)
    assert set(strategy.server_state()) == {f"first:{name}" for name in start}
    assert make_strategy(devices, arm="local", **settings).optimizer is None
    assert make_strategy(devices).optimizer is None
    default = make_strategy(devices, server_optimizer="fedadam").optimizer
    assert default is not None
    assert (default.learning_rate, default.momentum) == (0.003, 0.9)


@pytest.mark.parametrize("optimizer", ["none", "fedadam"])
def test_moments_and_what_an_algorithm_keeps_survive_side_by_side(
    devices: Any, make_strategy: Make, start: ArrayRecord, optimizer: str
) -> None:
    def make() -> ArmStrategy:
        return make_strategy(devices, algorithm="scaffold", server_optimizer=optimizer)

    first, second = make(), make()
    new = train(devices, first, start)
    state = first.server_state()
    assert {name.partition(":")[0] for name in state} == {"control", *(["first", "second"] if first.optimizer else [])}
    second.restore(state)
    again = ArrayRecord({n: Array(v) for n, v in new.items()})
    one, other = (train(devices, strategy, again, 2) for strategy in (first, second))
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_scaffold_gets_the_share_of_all_examples_that_answered(
    devices: Any, make_strategy: Make, start: ArrayRecord
) -> None:
    strategy = make_strategy(devices, algorithm="scaffold")
    train(devices, strategy, start)
    assert {name for _, got in devices.got for name in got} == {*start, *(CONTROL + name for name in start)}
    assert strategy.server_state()[f"{CONTROL}layer.A"] == pytest.approx(STEP)
    devices.failing = {"cho": 2}
    train(devices, strategy, start, 2)
    assert strategy.server_state()[f"{CONTROL}layer.A"] == pytest.approx(STEP + 3 / 8 * (1 * 1.0 + 2 * 2.0) / 3)


def test_devices_of_one_node_that_get_different_models_get_a_message_each(
    devices: Any, make_strategy: Make, start: ArrayRecord
) -> None:
    """ann and cho live on node 1; once they are in two clusters, it gets two messages. Held-out speakers get one model."""
    strategy = make_strategy(devices, arm="personalized", algorithm="clusters", **{"algorithm.clusters.agreement": 1.0})
    devices.steps = {"ann": 1.0, "bob": 1.0, "cho": -1.0}
    new = train(devices, strategy, start)
    assert len(devices.got) == 2
    devices.got.clear()
    train(devices, strategy, ArrayRecord({n: Array(v) for n, v in new.items()}), 2)
    got = {asked: float(arrays["layer.A"].numpy()[0, 0]) for asked, arrays in devices.got}
    assert got == {("ann",): 1.0, ("bob",): 1.0, ("cho",): -1.0}
    arrays = ArrayRecord({n: Array(v) for n, v in new.items()})
    neutral = strategy.with_job(replace(strategy.job, arm=NEUTRAL))
    messages = list(neutral.configure_evaluate(2, arrays, ConfigRecord(), SerialGrid(devices)))
    assert len(messages) == 2
    assert {float(m.content.array_records["shared"]["layer.A"].numpy()[0, 0]) for m in messages} == {1.0}


def a_node_that_sums(devices: Any, moved: Callable[[str, str], float]) -> Any:
    """A ClientApp that answers with the sum over its devices, as ``aggregation = edge`` asks."""

    def node(message: Message, context: Context) -> Message:
        asked = Job.from_record(message.content.config_records[JOB]).devices
        people = {d: devices.examples[d] for d in asked}
        sums = {
            n: np.full(a.shape, sum(w * moved(d, n) for d, w in people.items()), np.float64)
            for n, a in message.content.array_records["shared"].items()
        }
        columns = {"examples": list(people.values()), "loss": [0.5] * len(people), "steps": [2] * len(people)}
        content: dict[str, Any] = {
            DEVICES: ConfigRecord({IDS: list(people)}),
            COUNTS: MetricRecord(columns),  # type: ignore[arg-type]
            SUM: ArrayRecord({n: Array(v) for n, v in sums.items()}),
            TOTALS: MetricRecord({"weight": float(sum(people.values())), "devices": len(people)}),
        }
        return Message(RecordDict(content), reply_to=message)

    return node


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_sums_at_the_nodes_give_what_single_updates_give(devices: Any, make_strategy: Make, algorithm: str) -> None:
    start = ArrayRecord({"map.gated_lora_A": Array(ones(2, 6)), "map.gated_lora_B": Array(ones(5, 2))})
    single = make_strategy(devices, algorithm=algorithm)
    summed = make_strategy(devices, algorithm=algorithm, aggregation="edge")
    one = train(devices, single, start)
    replies = answers(a_node_that_sums(devices, lambda d, name: devices.steps[d]), summed, start)
    new, metrics = summed.aggregate_train(1, replies)
    assert new is not None
    assert metrics is not None
    assert all(new[name].numpy() == pytest.approx(one[name]) for name in one)
    assert (metrics["devices"], metrics["left-out"]) == (3, 0)
    assert not any(name.startswith(GAP) for name in metrics)
    assert [r.device_id for r in summed.last.sound] == ["ann", "bob", "cho"]
    assert [p.device_id for p in summed.last.parts] == ["node 1", "node 2"]
    for name, values in single.server_state().items():
        assert summed.server_state()[name] == pytest.approx(values)


# Hostile devices


@pytest.mark.parametrize("arm", ["global", "local", "centralized"])
def test_updates_are_attacked_where_an_arm_federates_alone(devices: Any, make_strategy: Make, arm: str) -> None:
    hostile = make_strategy(devices, arm=arm, attack="sign-flip").hostile
    assert bool(hostile) == (arm == "global")
    assert not make_strategy(devices, arm=arm, attack="label-swap").hostile


def test_another_round_draws_other_noise_and_the_same_round_the_same(
    devices: Any, make_strategy: Make, start: ArrayRecord
) -> None:
    strategy = make_strategy(devices, attack="random")
    first, again, second = (train(devices, strategy, start, number) for number in (1, 1, 2))
    assert all((first[name] == again[name]).all() for name in start)
    assert any((first[name] != second[name]).any() for name in start)


def test_a_study_of_hostile_devices_runs_in_a_simulation_alone(devices: Any, make_strategy: Make) -> None:
    for attack in ("sign-flip", "label-swap"):
        strategy = make_strategy(devices, attack=attack)
        check_population(strategy.config, strategy.roster)
        with pytest.raises(ConfigError, match="some of these nodes are deployed"):
            check_population(strategy.config, replace(strategy.roster, simulated=False))
    check_population(make_strategy(devices).config, Roster({"ann": 1}, {"ann": 1}, simulated=False))


# Odds and ends


def test_the_roster_divides_people_into_those_who_train_and_those_who_only_test() -> None:
    roster = Roster({"new": 1, "bob": 2, "ann": 1}, {"ann": 3, "bob": 1, "new": 0})
    assert (roster.training, roster.new_people) == (("ann", "bob"), ("new",))
    together = roster.with_everyone()
    assert (together.nodes["everyone"], together.examples["everyone"]) == (1, 4)


def test_a_mean_loss_is_weighted() -> None:
    assert weighted_mean([(1.0, 3), (5.0, 1)]) == 2.0
    assert weighted_mean([]) == 0.0


def test_tensors_survive_the_records_of_the_wire() -> None:
    values = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(1, np.float32)}
    back = to_arrays(from_arrays(ArrayRecord({name: Array(value) for name, value in values.items()})))
    assert list(back) == ["a", "b"]
    assert all(re.fullmatch("float32", array.dtype) for array in back.values())
    assert all((back[name].numpy() == value).all() for name, value in values.items())
