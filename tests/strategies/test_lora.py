"""Strategies for low-rank pairs on rounds made by hand, with the expected numbers computed here."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord

from fl.core.errors import AggregationError, ConfigError
from fl.protocol.wire import Job
from strategies.averaging import GAP
from strategies.base import Roster, SharedFedAvg
from strategies.lora import CORRECTION, Corrected, FedEx, FedSa, Ffa, FlexLora, Flora, HetLora, RoLora, lonely_factors
from strategies.optimizers import ServerOptimizer
from strategies.replies import DeviceReply

Round = Callable[..., dict[str, np.ndarray]]
Tensors = Mapping[str, np.ndarray]
A, B = "map.gated_lora_A", "map.gated_lora_B"
RANK, D_OUT, D_IN = 2, 5, 6
PAIR_RULES = [FlexLora, HetLora, FedEx, Flora]
ALL = [SharedFedAvg, RoLora, *PAIR_RULES]


def tensors(seed: int, **more: np.ndarray) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shapes = {A: (RANK, D_IN), B: (D_OUT, RANK)}
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()} | more


BEFORE = tensors(0)
DEVICES = {"ann": (1.0, tensors(1)), "bob": (3.0, tensors(2)), "cho": (4.0, tensors(3))}
SHARE = {"ann": 1 / 8, "bob": 3 / 8, "cho": 4 / 8}


def mean(name: str) -> np.ndarray:
    return sum(SHARE[d] * values[name] for d, (_, values) in DEVICES.items())


def mean_product() -> np.ndarray:
    return sum(SHARE[d] * values[B].astype(np.float64) @ values[A] for d, (_, values) in DEVICES.items())


def best(matrix: np.ndarray) -> np.ndarray:
    u, values, vt = np.linalg.svd(matrix)
    return (u[:, :RANK] * values[:RANK]) @ vt[:RANK]


def test_flexlora_gives_the_best_pair_for_the_mean_of_products(round_of: Round) -> None:
    new = round_of(FlexLora, BEFORE, DEVICES)
    np.testing.assert_allclose(new[B] @ new[A], best(mean_product()), atol=1e-5)
    assert {n: v.dtype for n, v in new.items()} == {A: np.float32, B: np.float32}


def test_fedex_gives_mean_factors_and_keeps_exactly_what_they_lack(round_of: Round) -> None:
    made: list[Any] = []
    new = round_of(FedEx, BEFORE, DEVICES, made=made)
    np.testing.assert_allclose(new[A], mean(A), atol=1e-6)
    np.testing.assert_allclose(new[B], mean(B), atol=1e-6)
    np.testing.assert_allclose(new[B] @ new[A] + made[0].corrections["map"], mean_product(), atol=1e-5)


def test_flora_keeps_what_its_stack_has_beyond_the_devices_rank(round_of: Round) -> None:
    made: list[Any] = []
    new = round_of(Flora, BEFORE, DEVICES, made=made)
    np.testing.assert_allclose(new[B] @ new[A], best(mean_product()), atol=1e-5)
    np.testing.assert_allclose(new[B] @ new[A] + made[0].corrections["map"], mean_product(), atol=1e-5)
    assert np.linalg.matrix_rank(mean_product()) > RANK  # or there would be nothing to keep


def test_hetlora_weighs_by_the_norm_of_the_product_and_not_by_examples(round_of: Round) -> None:
    norms = {d: np.linalg.norm(values[B] @ values[A]) for d, (_, values) in DEVICES.items()}
    new = round_of(HetLora, BEFORE, DEVICES)
    expected = sum(norms[d] * values[A] for d, (_, values) in DEVICES.items()) / sum(norms.values())
    np.testing.assert_allclose(new[A], expected, atol=1e-6)


@pytest.mark.parametrize(("server_round", "moves", "rests"), [(1, B, A), (2, A, B), (3, B, A)])
def test_rolora_averages_one_factor_and_leaves_the_other_bit_for_bit(
    round_of: Round, server_round: int, moves: str, rests: str
) -> None:
    new = round_of(RoLora, BEFORE, DEVICES, server_round=server_round)
    np.testing.assert_allclose(new[moves], mean(moves), atol=1e-6)
    assert new[rests].tobytes() == BEFORE[rests].tobytes()


def test_rolora_with_a_resting_factor_loses_nothing_in_the_mean(round_of: Round) -> None:
    resting = {d: (n, {**values, A: BEFORE[A]}) for d, (n, values) in DEVICES.items()}
    made: list[Any] = []
    new = round_of(RoLora, BEFORE, resting, made=made)
    exact = sum(SHARE[d] * values[B] @ values[A] for d, (_, values) in resting.items())
    np.testing.assert_allclose(new[B] @ new[A], exact, atol=1e-5)
    assert made[1][GAP] < 1e-6


def test_momentum_does_not_move_a_resting_factor(round_of: Round) -> None:
    optimizer = ServerOptimizer("fedavgm", 1.0)
    round_of(RoLora, BEFORE, DEVICES, server_round=2, optimizer=optimizer)  # A gets momentum
    new = round_of(RoLora, BEFORE, DEVICES, server_round=3, optimizer=optimizer)
    assert new[A].tobytes() == BEFORE[A].tobytes()


@pytest.mark.parametrize("kind", ALL)
def test_one_device_alone_gives_its_own_update_back(round_of: Round, kind: type[SharedFedAvg]) -> None:
    mine = {**tensors(4), A: BEFORE[A]} if kind is RoLora else tensors(4)
    made: list[Any] = []
    new = round_of(kind, BEFORE, {"ann": (3.0, mine)}, made=made)
    for name in (A, B):
        np.testing.assert_allclose(new[name], mine[name], rtol=1e-4, atol=1e-5)
    if isinstance(made[0], Corrected):
        assert np.abs(made[0].corrections["map"]).max() < 1e-5


@pytest.mark.parametrize("kind", ALL)
def test_the_order_of_devices_and_the_unit_of_weights_change_nothing(round_of: Round, kind: type[SharedFedAvg]) -> None:
    one = round_of(kind, BEFORE, DEVICES)
    turned = round_of(kind, BEFORE, dict(reversed(DEVICES.items())))
    assert all(one[name].tobytes() == turned[name].tobytes() for name in one)
    heavier = round_of(kind, BEFORE, {d: (1000 * n, values) for d, (n, values) in DEVICES.items()})
    for name in one:
        np.testing.assert_allclose(heavier[name], one[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", PAIR_RULES)
def test_shared_gates_are_averaged_beside_the_pairs(round_of: Round, kind: type[SharedFedAvg]) -> None:
    gate = "map.gated_lora_gate_bias"

    def with_gate(values: Tensors, number: float) -> dict[str, np.ndarray]:
        return {**values, gate: np.full(3, number, np.float32)}

    devices = {d: (n, with_gate(values, n)) for d, (n, values) in DEVICES.items()}
    new = round_of(kind, with_gate(BEFORE, 0.0), devices)
    assert new[gate].tolist() == [(1 * 1 + 3 * 3 + 4 * 4) / 8] * 3


@pytest.mark.parametrize("kind", PAIR_RULES)
def test_products_of_zero_leave_a_as_the_mean_and_not_as_an_arbitrary_basis(
    round_of: Round, kind: type[SharedFedAvg]
) -> None:
    still = {d: (n, {**values, B: np.zeros_like(values[B])}) for d, (n, values) in DEVICES.items()}
    new = round_of(kind, BEFORE, still)
    np.testing.assert_allclose(new[A], mean(A), atol=1e-6)
    assert not new[B].any()


def test_each_round_says_how_much_the_mean_of_factors_loses(round_of: Round) -> None:
    made: list[Any] = []
    round_of(SharedFedAvg, BEFORE, DEVICES, made=made)
    expected = np.linalg.norm(mean_product() - mean(B) @ mean(A)) / np.linalg.norm(mean_product())
    assert made[1][GAP] == pytest.approx(expected, rel=1e-5)
    assert made[1][f"{GAP}:map"] == pytest.approx(expected, rel=1e-5)
    round_of(SharedFedAvg, {"x.weight": np.ones(3)}, {"ann": (1.0, {"x.weight": np.ones(3, np.float32)})}, made=made)
    assert GAP not in made[1]


def shapes(*names: str) -> dict[str, tuple[int, ...]]:
    return {f"map.gated_lora_{name}": (RANK, D_IN) if name == "A" else (D_OUT, RANK) for name in names}


def plain(kind: type[SharedFedAvg], **options: Any) -> SharedFedAvg:
    job = Job(arm="global", round=0, devices=("ann",))
    return kind(roster=Roster({"ann": 1}, {"ann": 1}), settings=ConfigRecord(), job=job, **options)


@pytest.mark.parametrize(
    ("kind", "shared", "said"),
    [
        (Ffa, ("A", "B"), "split = 'ffa'"),
        (Ffa, ("A",), "split = 'ffa'"),
        (FedSa, ("A", "B"), "split = 'fedsa'"),
        *((kind, (one,), "A and B of each layer") for kind in (RoLora, *PAIR_RULES) for one in "AB"),
    ],
)
def test_a_split_that_a_strategy_cannot_work_with_is_refused(
    kind: type[SharedFedAvg], shared: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        plain(kind).require_fit(shapes(*shared))


def test_a_split_that_fits_is_taken() -> None:
    plain(Ffa).require_fit(shapes("B"))
    plain(FedSa).require_fit(shapes("A"))
    for kind in ALL:
        plain(kind).require_fit(shapes("A", "B"))
    assert lonely_factors({**shapes("A", "B"), "other.gated_lora_B": (3, 2)}) == ["other.gated_lora_B"]


@pytest.mark.parametrize("kind", PAIR_RULES)
def test_sums_at_the_nodes_are_refused_where_single_products_are_needed(kind: type[SharedFedAvg]) -> None:
    with pytest.raises(ConfigError, match="aggregation = 'device'"):
        plain(kind, aggregation="edge")


@pytest.mark.parametrize("kind", [FedEx, Flora])
def test_a_correction_does_not_go_with_a_server_optimizer(kind: type[SharedFedAvg]) -> None:
    with pytest.raises(ConfigError, match="server-optimizer = 'fedadam'"):
        plain(kind, optimizer=ServerOptimizer("fedadam", 0.1))


@pytest.mark.parametrize("kind", [FedEx, Flora])
def test_a_correction_is_the_state_and_comes_back(round_of: Round, kind: type[Corrected]) -> None:
    made: list[Any] = []
    round_of(kind, BEFORE, DEVICES, made=made)
    state = made[0].server_state()
    assert set(state) == {f"{CORRECTION}map"}
    again = plain(kind)
    again.restore(state)
    assert (again.corrections["map"] == made[0].corrections["map"]).all()


@pytest.mark.parametrize("kind", PAIR_RULES)
def test_an_update_so_large_that_the_products_overflow_changes_nothing(
    round_of: Round, kind: type[SharedFedAvg]
) -> None:
    huge = {name: np.full_like(values, 3e38) for name, values in tensors(1).items()}
    made: list[Any] = []
    with suppress(AggregationError):  # refused whole, or finite
        new = round_of(kind, BEFORE, {**DEVICES, "ann": (1.0, huge)}, made=made)
        assert all(np.isfinite(values).all() for values in new.values())
        assert all(np.isfinite(values).all() for values in made[0].server_state().values())


@pytest.mark.parametrize("kind", [FedEx, Flora])
def test_a_correction_that_is_not_finite_is_refused_and_the_one_before_is_kept(
    round_of: Round, kind: type[Corrected]
) -> None:
    strategy = plain(kind)
    strategy.corrections = {"map": np.ones((D_OUT, D_IN), np.float32)}
    far = DeviceReply("ann", {n: np.float32(1e30) * v for n, v in tensors(1).items()}, {}, {"examples": 1.0})
    other = DeviceReply("bob", tensors(2), {}, {"examples": 1.0})
    with pytest.raises(AggregationError, match="not finite"):
        strategy.aggregate((far, other))
    assert (strategy.corrections["map"] == 1).all()
