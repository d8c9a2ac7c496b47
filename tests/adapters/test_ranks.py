"""Devices of smaller rank: who has which, and what a device keeps of a pair that is too large for it."""

import numpy as np
import pytest
import torch

from fl.adapters.pairs import LowRankPair
from fl.adapters.ranks import device_rank, fitted, reduced
from fl.adapters.state import State
from fl.settings.config import make_config

A, B, GATE = "map.gated_lora_A", "map.gated_lora_B", "map.gated_lora_gate_weight"
RANK, D_OUT, D_IN = 4, 7, 9


def pair_of(seed: int) -> LowRankPair:
    generator = np.random.default_rng(seed)
    return LowRankPair(generator.standard_normal((RANK, D_IN)), generator.standard_normal((D_OUT, RANK)))


def state_of(seed: int) -> State:
    pair = pair_of(seed)
    return {A: torch.from_numpy(pair.a).float(), B: torch.from_numpy(pair.b).float(), GATE: torch.ones(RANK, D_IN)}


def test_a_devices_rank_follows_from_the_seed_and_its_name_alone() -> None:
    devices = [f"device-{i}" for i in range(60)]
    ranks = {
        seed: [device_rank(make_config({"device-ranks": "2, 4,8", "seed": seed}), d) for d in devices]
        for seed in (1, 2)
    }
    again = [device_rank(make_config({"device-ranks": "2,4,8", "seed": 1, "rounds": 99}), d) for d in reversed(devices)]
    assert again[::-1] == ranks[1] != ranks[2]
    assert set(ranks[1]) == {2, 4, 8}


def test_without_the_setting_the_rank_is_that_of_the_adapter() -> None:
    assert device_rank(make_config({"rank": 6}), "ann") == 6


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_best_that_fits_is_the_truncated_product_near_the_first_coordinates(rank: int) -> None:
    pair = pair_of(3)
    found = fitted(pair, rank, best=True)
    u, values, vt = np.linalg.svd(pair.b @ pair.a)
    np.testing.assert_allclose(found.b @ found.a, (u[:, :rank] * values[:rank]) @ vt[:rank], atol=1e-10)
    assert (found.a.shape, found.b.shape) == ((RANK, D_IN), (D_OUT, RANK))
    assert not found.a[rank:].any()
    assert not found.b[:, rank:].any()
    kept = found.a[:rank]  # orthogonal rows, as long as the first ones are on average
    np.testing.assert_allclose(kept @ kept.T, np.eye(rank) * np.square(pair.a[:rank]).sum() / rank, atol=1e-10)
    # No other turn of the same rows comes closer to the first coordinates: their product is symmetric and not negative.
    agreement = kept @ pair.a[:rank].T
    np.testing.assert_allclose(agreement, agreement.T, atol=1e-10)
    assert np.linalg.eigvalsh(agreement).min() > -1e-10


def test_coordinates_that_fit_are_the_first() -> None:
    pair = pair_of(4)
    found = fitted(pair, 2, best=False)
    assert (found.a[:2] == pair.a[:2]).all()
    assert (found.b[:, :2] == pair.b[:, :2]).all()
    assert not found.a[2:].any()
    assert not found.b[:, 2:].any()


@pytest.mark.parametrize("best", [False, True])
def test_a_fresh_adapter_keeps_its_first_coordinates_whatever_the_algorithm(*, best: bool) -> None:
    fresh = {**state_of(5), B: torch.zeros(D_OUT, RANK)}
    found = reduced(fresh, 2, best=best)
    assert torch.equal(found[A][:2], fresh[A][:2])
    assert not found[A][2:].any()
    assert not found[B].any()


@pytest.mark.parametrize("best", [False, True])
def test_what_fits_already_stays_to_the_bit_and_what_was_given_is_not_changed(*, best: bool) -> None:
    state = state_of(6)
    before = {name: tensor.clone() for name, tensor in state.items()}
    once = reduced(state, 2, best=best)
    twice = reduced(once, 2, best=best)
    assert all(torch.equal(state[n], before[n]) for n in before)
    assert all(torch.equal(once[n], twice[n]) for n in once)
    assert torch.equal(
        once[GATE], state[GATE]
    )  # private: what lies there beyond the rank has no effect and no gradient
    assert {n: (t.shape, t.dtype) for n, t in once.items()} == {n: (t.shape, t.dtype) for n, t in state.items()}
    assert all(torch.equal(reduced(state, RANK, best=best)[n], state[n]) for n in state)
