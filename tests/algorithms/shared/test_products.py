"""Algorithms on low-rank pairs in rounds made by hand, with the expected numbers computed here."""

from collections.abc import Callable, Mapping
from contextlib import suppress

import numpy as np
import pytest

from fl.aggregation.mean import GAP, product_gaps
from fl.algorithms.base import Aggregator, Round
from fl.algorithms.server_optimizers import ServerOptimizer
from fl.algorithms.shared.products import CORRECTION
from fl.algorithms.table import ALGORITHMS
from fl.core.errors import AggregationError, ConfigError
from fl.settings.config import make_config

After = Callable[..., dict[str, np.ndarray]]
Half = Callable[..., Aggregator]
Tensors = Mapping[str, np.ndarray]
A, B = "map.gated_lora_A", "map.gated_lora_B"
RANK, D_OUT, D_IN = 2, 5, 6
PAIR_RULES = [name for name, cls in ALGORITHMS.items() if cls.can.pairs and not cls.can.mean]
CORRECTED = [name for name in PAIR_RULES if not ALGORITHMS[name].can.optimizer]  # which keep more than the pair
ALL = ["fedavg", "rolora", *PAIR_RULES]


def tensors(seed: int, **more: np.ndarray) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shapes = {A: (RANK, D_IN), B: (D_OUT, RANK)}
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()} | more


START = tensors(0)
DEVICES = {"ann": (1.0, tensors(1)), "bob": (3.0, tensors(2)), "cho": (4.0, tensors(3))}
SHARE = {"ann": 1 / 8, "bob": 3 / 8, "cho": 4 / 8}


def mean(name: str) -> np.ndarray:
    return sum(SHARE[d] * values[name] for d, (_, values) in DEVICES.items())


def mean_product() -> np.ndarray:
    return sum(SHARE[d] * values[B].astype(np.float64) @ values[A] for d, (_, values) in DEVICES.items())


def best(matrix: np.ndarray) -> np.ndarray:
    u, values, vt = np.linalg.svd(matrix)
    return (u[:, :RANK] * values[:RANK]) @ vt[:RANK]


def test_all_four_algorithms_on_products_are_looked_at() -> None:
    assert sorted(PAIR_RULES) == ["fedex", "flexlora", "flora", "sparsity-weighted"]
    assert sorted(CORRECTED) == ["fedex", "flora"]


def test_flexlora_gives_the_best_pair_for_the_mean_of_products(after_round: After) -> None:
    new = after_round("flexlora", START, DEVICES)
    np.testing.assert_allclose(new[B] @ new[A], best(mean_product()), atol=1e-5)
    assert {n: v.dtype for n, v in new.items()} == {A: np.float32, B: np.float32}


def test_fedex_gives_mean_factors_and_keeps_exactly_what_they_lack(after_round: After, half: Half) -> None:
    new = after_round(fedex := half("fedex"), START, DEVICES)
    np.testing.assert_allclose(new[A], mean(A), atol=1e-6)
    np.testing.assert_allclose(new[B], mean(B), atol=1e-6)
    np.testing.assert_allclose(new[B] @ new[A] + fedex.corrections()["map"], mean_product(), atol=1e-5)


def test_flora_keeps_what_its_stack_has_beyond_the_devices_rank(after_round: After, half: Half) -> None:
    new = after_round(flora := half("flora"), START, DEVICES)
    np.testing.assert_allclose(new[B] @ new[A], best(mean_product()), atol=1e-5)
    np.testing.assert_allclose(new[B] @ new[A] + flora.corrections()["map"], mean_product(), atol=1e-5)
    assert np.linalg.matrix_rank(mean_product()) > RANK  # or there would be nothing to keep


def test_sparsity_weighting_weighs_by_the_norm_of_the_product_and_not_by_examples(after_round: After) -> None:
    norms = {d: np.linalg.norm(values[B] @ values[A]) for d, (_, values) in DEVICES.items()}
    expected = sum(norms[d] * values[A] for d, (_, values) in DEVICES.items()) / sum(norms.values())
    np.testing.assert_allclose(after_round("sparsity-weighted", START, DEVICES)[A], expected, atol=1e-6)


@pytest.mark.parametrize(("number", "moves", "frozen"), [(1, B, A), (2, A, B), (3, B, A)])
def test_rolora_averages_one_factor_and_leaves_the_other_bit_for_bit(
    after_round: After, number: int, moves: str, frozen: str
) -> None:
    new = after_round("rolora", START, DEVICES, number=number)
    np.testing.assert_allclose(new[moves], mean(moves), atol=1e-6)
    assert new[frozen].tobytes() == START[frozen].tobytes()


def test_rolora_with_a_frozen_factor_loses_nothing_in_the_mean(
    after_round: After, updates_of: Callable[..., tuple]
) -> None:
    frozen = {d: (n, {**values, A: START[A]}) for d, (n, values) in DEVICES.items()}
    new = after_round("rolora", START, frozen)
    exact = sum(SHARE[d] * values[B] @ values[A] for d, (_, values) in frozen.items())
    np.testing.assert_allclose(new[B] @ new[A], exact, atol=1e-5)
    assert product_gaps(updates_of(START, frozen), START)[GAP] < 1e-6


def test_momentum_does_not_move_a_frozen_factor(half: Half, updates_of: Callable[..., tuple]) -> None:
    rolora, optimizer = half("rolora"), ServerOptimizer("fedavgm", 1.0)
    for number, moving in ((2, A), (3, B)):  # A has momentum by round 3
        update = rolora.aggregate(Round(number, START, updates_of(START, DEVICES)))
        assert list(optimizer.step(update, rolora.moving((A, B), number))) == [moving]


@pytest.mark.parametrize("name", ALL)
def test_one_device_alone_gives_its_own_update_back(after_round: After, half: Half, name: str) -> None:
    mine = {**tensors(4), A: START[A]} if name == "rolora" else tensors(4)
    new = after_round(rule := half(name), START, {"ann": (3.0, mine)})
    for tensor in (A, B):
        np.testing.assert_allclose(new[tensor], mine[tensor], rtol=1e-4, atol=1e-5)
    assert all(np.abs(lost).max() < 1e-5 for lost in rule.corrections().values())


@pytest.mark.parametrize("name", ALL)
def test_the_unit_of_weights_changes_nothing(after_round: After, name: str) -> None:
    one = after_round(name, START, DEVICES)
    heavier = after_round(name, START, {d: (1000 * n, values) for d, (n, values) in DEVICES.items()})
    for tensor in one:
        np.testing.assert_allclose(heavier[tensor], one[tensor], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PAIR_RULES)
def test_shared_gates_are_averaged_beside_the_pairs(after_round: After, name: str) -> None:
    gate = "map.gated_lora_gate_bias"

    def with_gate(values: Tensors, number: float) -> dict[str, np.ndarray]:
        return {**values, gate: np.full(3, number, np.float32)}

    devices = {d: (n, with_gate(values, n)) for d, (n, values) in DEVICES.items()}
    assert after_round(name, with_gate(START, 0.0), devices)[gate].tolist() == [(1 * 1 + 3 * 3 + 4 * 4) / 8] * 3


@pytest.mark.parametrize("name", PAIR_RULES)
def test_products_of_zero_leave_a_as_the_mean_and_not_as_an_arbitrary_basis(after_round: After, name: str) -> None:
    still = {d: (n, {**values, B: np.zeros_like(values[B])}) for d, (n, values) in DEVICES.items()}
    new = after_round(name, START, still)
    np.testing.assert_allclose(new[A], mean(A), atol=1e-6)
    assert not new[B].any()


# What does not fit


def shapes(*kinds: str) -> dict[str, tuple[int, ...]]:
    return {f"map.gated_lora_{kind}": (RANK, D_IN) if kind == "A" else (D_OUT, RANK) for kind in kinds}


@pytest.mark.parametrize(
    ("name", "shared", "said"),
    [
        ("ffa", ("A", "B"), "shares B alone.*set adapter.split = 'ffa'"),
        ("ffa", (), "shares B alone.*'none'"),
        ("fedsa", ("B",), "shares A alone.*set adapter.split = 'fedsa'"),
        *((name, ("B",), "needs A and B.*'gates'") for name in ("rolora", *PAIR_RULES)),
        *((name, (), "'no pair'") for name in ("rolora", *PAIR_RULES)),
    ],
)
def test_a_split_that_an_algorithm_cannot_work_with_is_refused(name: str, shared: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ALGORITHMS[name]().require_fit(shapes(*shared), 1)


def test_one_lonely_factor_among_pairs_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'other\.gated_lora_B' alone"):
        ALGORITHMS["flexlora"]().require_fit({**shapes("A", "B"), "other.gated_lora_B": (3, 2)}, 1)


def test_a_split_that_fits_is_taken() -> None:
    ALGORITHMS["ffa"]().require_fit(shapes("B"), 1)
    ALGORITHMS["fedsa"]().require_fit(shapes("A"), 1)
    for name in ALL:
        ALGORITHMS[name]().require_fit(shapes("A", "B"), 1)


def test_ffa_and_fedsa_are_the_mean_of_what_they_share(after_round: After) -> None:
    for name, kind in (("ffa", B), ("fedsa", A)):
        devices = {d: (n, {kind: values[kind]}) for d, (n, values) in DEVICES.items()}
        np.testing.assert_allclose(after_round(name, {kind: START[kind]}, devices)[kind], mean(kind), atol=1e-6)


@pytest.mark.parametrize("name", CORRECTED)
def test_a_correction_does_not_go_with_a_server_optimizer(name: str) -> None:
    with pytest.raises(ConfigError, match="server-optimizer = 'fedadam'"):
        make_config({"algorithm": name, "server-optimizer": "fedadam"})


# Corrections


@pytest.mark.parametrize("name", CORRECTED)
def test_a_correction_is_the_state_and_survives_a_restart(after_round: After, half: Half, name: str) -> None:
    first, second = half(name), half(name)
    after_round(first, START, DEVICES)
    state = first.state()
    assert set(state) == {f"{CORRECTION}map"}
    second.restore(state, ())
    assert (second.corrections()["map"] == first.corrections()["map"]).all()


@pytest.mark.parametrize("name", CORRECTED)
def test_a_correction_is_of_the_newest_round_alone(after_round: After, half: Half, name: str) -> None:
    after_round(rule := half(name), START, DEVICES)
    once = rule.corrections()["map"].copy()
    after_round(rule, START, DEVICES)
    assert (rule.corrections()["map"] == once).all()


@pytest.mark.parametrize("name", PAIR_RULES)
def test_an_update_so_large_that_the_products_overflow_leaves_no_correction_that_is_not_finite(
    after_round: After, half: Half, name: str
) -> None:
    huge = {tensor: np.full_like(values, 3e38) for tensor, values in tensors(1).items()}
    rule = half(name)
    with suppress(AggregationError):  # refused whole; or what does not fit is refused by the driver
        after_round(rule, START, {**DEVICES, "ann": (1.0, huge)})
    assert all(np.isfinite(values).all() for values in rule.state().values())


@pytest.mark.parametrize("name", CORRECTED)
def test_a_correction_that_is_not_finite_is_refused_and_the_one_before_is_kept(
    after_round: After, half: Half, name: str
) -> None:
    rule = half(name)
    rule.restore({f"{CORRECTION}map": np.ones((D_OUT, D_IN), np.float32)}, ())
    far = {tensor: np.float32(1e30) * values for tensor, values in tensors(1).items()}
    with pytest.raises(AggregationError, match="not finite"):
        after_round(rule, START, {"ann": (1.0, far), "bob": (1.0, tensors(2))})
    assert (rule.corrections()["map"] == 1).all()


# Devices of different ranks: zeros fill up the smaller ones


def of_rank(rank: int, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    a, b = np.zeros((RANK, D_IN), np.float32), np.zeros((D_OUT, RANK), np.float32)
    a[:rank], b[:, :rank] = generator.standard_normal((rank, D_IN)), generator.standard_normal((D_OUT, rank))
    return {A: a, B: b}


SMALL, LARGE = of_rank(1, 1), of_rank(2, 2)
RANKS = {"ann": (1.0, SMALL), "bob": (3.0, LARGE)}
RANKS_PRODUCT = 0.25 * np.outer(SMALL[B][:, 0], SMALL[A][0]) + 0.75 * LARGE[B].astype(np.float64) @ LARGE[A]


@pytest.mark.parametrize("name", ["flexlora", "flora"])
def test_the_best_pair_for_ranks_one_and_two_is_the_truncated_sum_of_their_products(
    after_round: After, half: Half, name: str
) -> None:
    new = after_round(rule := half(name), START, RANKS)
    assert np.linalg.svd(RANKS_PRODUCT)[1][2] > 0.1  # a third direction, which does not fit
    np.testing.assert_allclose(new[B] @ new[A], best(RANKS_PRODUCT), atol=1e-5)
    for lost in rule.corrections().values():
        np.testing.assert_allclose(new[B] @ new[A] + lost, RANKS_PRODUCT, atol=1e-5)


def test_sparsity_weighting_weighs_padded_factors_by_the_norm_of_each_product(after_round: After) -> None:
    small = np.linalg.norm(SMALL[B][:, 0]) * np.linalg.norm(SMALL[A][0])
    large = np.linalg.norm(LARGE[B] @ LARGE[A])
    new = after_round("sparsity-weighted", START, RANKS)
    share = large / (small + large)
    np.testing.assert_allclose(new[A][0], (1 - share) * SMALL[A][0] + share * LARGE[A][0], atol=1e-6)
    np.testing.assert_allclose(new[A][1], share * LARGE[A][1], atol=1e-6)
    np.testing.assert_allclose(new[B][:, 1], share * LARGE[B][:, 1], atol=1e-6)


def test_fedavg_counts_what_a_device_has_no_room_for_as_zero_and_fedex_keeps_what_that_loses(
    after_round: After, half: Half
) -> None:
    fedex = half("fedex")
    for new in (after_round("fedavg", START, RANKS), exact := after_round(fedex, START, RANKS)):
        np.testing.assert_allclose(new[A][0], 0.25 * SMALL[A][0] + 0.75 * LARGE[A][0], atol=1e-6)
        np.testing.assert_allclose(new[A][1], 0.75 * LARGE[A][1], atol=1e-6)
    np.testing.assert_allclose(exact[B] @ exact[A] + fedex.corrections()["map"], RANKS_PRODUCT, atol=1e-5)


def test_with_the_best_pair_a_coordinate_that_one_device_has_does_not_fade_with_the_rounds(after_round: After) -> None:
    """Devices with the same A: the mean of products is mean(B) A, and A stays as long as it is, round after round."""
    a, small = LARGE[A], SMALL[B]
    devices = {
        "ann": (99.0, {A: np.vstack([a[:1], np.zeros_like(a[1:])]), B: small}),
        "bob": (1.0, {A: a, B: LARGE[B]}),
    }
    new = after_round("flexlora", START, devices)
    np.testing.assert_allclose(new[A], a, atol=1e-4)
    np.testing.assert_allclose(new[B], 0.99 * small + 0.01 * LARGE[B], atol=1e-4)


def test_a_round_in_which_nothing_was_learned_leaves_a_as_it_is(after_round: After) -> None:
    idle = {name: (n, {**values, B: np.zeros_like(values[B])}) for name, (n, values) in RANKS.items()}
    new = after_round("flexlora", START, idle)
    np.testing.assert_allclose(new[A][1], LARGE[A][1], atol=1e-6)  # of the only device that has it
    assert not new[B].any()
