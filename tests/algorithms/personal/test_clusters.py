"""Clustered federated learning by hand: who is divided from whom, who gets which model, and what survives."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest

from fl.aggregation.updates import DeviceUpdate, moved
from fl.algorithms.base import Aggregator, Round
from fl.algorithms.personal.clusters import ClusterAggregator, Clusters, bipartition

X = "x"
# Two groups that move apart: ann and bob along the first axis, cem and dan against it, each a little aside.
UPDATES = {"ann": (2.0, 0.5), "bob": (2.0, -0.5), "cem": (-2.0, 0.25), "dan": (-2.0, -0.25)}
EXAMPLES = {"ann": 1, "bob": 3, "cem": 2, "dan": 2}
START = {X: np.array([1.0, 1.0], np.float32)}


def clustered(**options: Any) -> ClusterAggregator:
    return ClusterAggregator(Clusters(**options))


def models_sent(clusters: Aggregator, shared: dict[str, np.ndarray], **how: Any) -> dict[str, tuple[float, ...]]:
    """What each device gets in a round."""
    recipients = clusters.recipients(tuple(EXAMPLES), shared, **{"training": True, **how})
    return {d: tuple(map(float, tensors[X])) for devices, tensors in recipients for d in devices}


def a_round(
    clusters: Aggregator, shared: dict[str, np.ndarray], devices: tuple[str, ...] = tuple(EXAMPLES), number: int = 1
) -> dict[str, np.ndarray]:
    """A round in which every device sends its update; the shared tensors after it."""
    clusters.recipients(tuple(EXAMPLES), shared, training=True)
    updates = tuple(
        DeviceUpdate(d, {X: np.array(UPDATES[d], np.float32)}, {}, {"examples": EXAMPLES[d]}) for d in devices
    )
    return moved(shared, clusters.aggregate(Round(number, shared, updates)))


def test_a_cluster_whose_devices_pull_apart_is_divided_and_each_part_goes_on_from_its_own_mean() -> None:
    """mean (0, ...) is short beside 2.06; ann and bob are alike (cosine 15 / 17), as are cem and dan (63 / 65)."""
    clusters = clustered()
    assert set(models_sent(clusters, START).values()) == {(1.0, 1.0)}
    new = a_round(clusters, START)
    first = [1 + (1 * 2.0 + 3 * 2.0) / 4, 1 + (1 * 0.5 - 3 * 0.5) / 4]
    second = [1 - 2.0, 1 + 0.0]
    assert new[X] == pytest.approx(first)  # of two as large ones the first
    got = models_sent(clusters, new)
    assert got["ann"] == got["bob"] == pytest.approx(first)
    assert got["cem"] == got["dan"] == pytest.approx(second)
    a_round(clusters, new, number=2)
    assert clusters.members == {"ann": 0, "bob": 0, "cem": 1, "dan": 1}  # within a part they agree


def test_agreement_a_missing_device_and_the_largest_number_keep_a_cluster_whole() -> None:
    mean = np.array([1.0, 1.0]) + sum(EXAMPLES[d] * np.array(UPDATES[d]) for d in EXAMPLES) / 8
    for options in ({"agreement": 0.01}, {"count": 1}):
        clusters = clustered(**options)
        assert a_round(clusters, START)[X] == pytest.approx(mean)
        assert len(clusters.models) == 1
    clusters = clustered()
    a_round(clusters, START, ("ann", "bob", "cem"))
    assert len(clusters.models) == 1


def test_one_device_alone_gives_its_own() -> None:
    alone = clustered()
    alone.recipients(("bob",), START, training=True)
    mine = DeviceUpdate("bob", {X: np.array(UPDATES["bob"], np.float32)}, {}, {"examples": 3})
    assert tuple(alone.aggregate(Round(1, START, (mine,)))[X]) == UPDATES["bob"]


def test_clusters_survive_in_the_state_and_held_out_speakers_get_the_largest() -> None:
    first, second = clustered(), clustered()
    new = a_round(first, START)
    second.restore(first.state(), sorted(EXAMPLES))
    assert models_sent(first, new) == models_sent(second, new)
    assert len(set(models_sent(second, new).values())) == 2
    assert set(models_sent(second, new, training=False, held_out=True).values()) == {tuple(map(float, new[X]))}
    (held_out,) = second.recipients(("eve",), new, training=False)
    assert held_out[1] is new


@pytest.mark.parametrize("seed", range(4))
def test_no_other_division_has_a_smaller_largest_similarity_across(seed: int) -> None:
    directions = np.random.default_rng(seed).standard_normal((6, 3))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    similarity = directions @ directions.T

    def across(group: tuple[int, ...]) -> float:
        return max(similarity[i, j] for i in range(6) for j in range(6) if group[i] != group[j])

    found = tuple(bipartition(similarity))
    others = {tuple(map(int, bin(code)[2:].zfill(6))) for code in range(1, 32)}
    assert found[0] == 0
    assert across(found) == pytest.approx(min(across(group) for group in others))
    for order in list(permutations(range(6)))[::90]:
        turned = bipartition(similarity[np.ix_(order, order)])
        sides = dict(zip(order, turned, strict=True))
        assert {frozenset(i for i in range(6) if sides[i] == s) for s in (0, 1)} == {
            frozenset(i for i in range(6) if found[i] == s) for s in (0, 1)
        }
