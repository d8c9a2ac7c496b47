"""Which devices live on a node, and that none stands in a population twice."""

from types import SimpleNamespace
from typing import Any

import pytest

from clients.node import Hosting
from clients.worker import Worker, positions
from fl.core.errors import PopulationError
from fl.protocol.node import NodeConfig


def worker(*ids: str) -> Any:
    """A worker of these devices that counts how often they are listed."""
    calls: list[int] = []

    class One:
        task = SimpleNamespace(device_ids=lambda: calls.append(1) or ids)
        listed = calls
        places = Worker.places

    return One()


def test_a_population_with_an_id_twice_is_refused_by_the_id_and_both_places() -> None:
    with pytest.raises(PopulationError, match=r"people\.jsonl lists device 'bob' twice, as number 2 and 4"):
        positions(["ann", "bob", "cho", "bob"], "people.jsonl")
    with pytest.raises(PopulationError, match="'ann' twice, as number 1 and 2"):
        Hosting(worker("ann", "ann"), NodeConfig(partition=0, partitions=1))


def test_a_node_of_a_simulation_lists_its_own_and_answers_for_all() -> None:
    own = worker("ann", "bob", "cho", "dan", "eva")
    nodes = [Hosting(own, NodeConfig(partition=i, partitions=2)) for i in range(2)]
    assert [n.ids() for n in nodes] == [("ann", "cho", "eva"), ("bob", "dan")]
    assert all(device_id in n for n in nodes for device_id in ("ann", "bob", "cho", "dan", "eva"))
    assert not any("stranger" in n for n in nodes)


def test_the_population_is_listed_once_however_many_messages_come() -> None:
    own = worker("ann", "bob")
    for _ in range(5):
        assert "ann" in Hosting(own, NodeConfig(partition=0, partitions=2))
    assert len(own.listed) == 1
