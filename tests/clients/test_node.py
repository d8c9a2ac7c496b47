"""Which devices live on a node, and that none stands in a population twice."""

from types import SimpleNamespace
from typing import Any

import pytest

from clients.node import Hosting, check_job
from clients.worker import Worker, positions
from fl.algorithms.plan import Phase
from fl.core.errors import DemandError, PopulationError
from fl.protocol.node import NodeConfig
from fl.protocol.wire import Job
from fl.settings.config import make_config


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


def test_what_closes_an_arm_is_one_message_more_of_a_run_and_an_enrolment_costs_its_folds_too() -> None:
    config = make_config({"algorithm": "enrolment", "rounds": 3, "batch-size": 1, "local-steps": 1})
    needed = 3 * 24 * 2  # three folds, 24 steps of two examples

    def asks(server_round: int, most: int, phase: Phase = Phase.PERSONALIZE, *, training: bool = True) -> None:
        node = NodeConfig(device_id="ann", store="/s", manifest="/m.jsonl", max_examples=most)
        check_job(Job("personalized", server_round, ("ann",), phase=phase), config, node, training=training)

    asks(4, needed)
    asks(4, needed, training=False)
    asks(3, 1, Phase.FEDERATE)
    with pytest.raises(DemandError, match=f"train on {needed} examples"):
        asks(4, needed - 1)
    with pytest.raises(DemandError, match="round 5 is none of a run of 4"):
        asks(5, needed)
