"""A node's configuration: parsed once, with the owner's demands, and refused with a remedy where it is none."""

import unicodedata

import pytest

from fl.core.errors import ConfigError
from fl.protocol.node import NodeConfig


def test_a_deployed_node_names_its_device_and_its_owners_demands() -> None:
    node = NodeConfig.parse(
        {"device-id": "ann", "store": "/s", "manifest": "/m.jsonl", "share-gates": True, "secure-sum": "pairwise",
         "local-noise": 0.8}
    )  # fmt: skip
    assert node == NodeConfig("ann", 0, 0, "/s", "/m.jsonl", True, "pairwise", 0.8)
    assert node.deployed
    assert node.masked_only


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_device_is_called_as_people_read_it(form: str) -> None:
    """As in its manifest, in whatever form its owner's system writes Hangul."""
    named = NodeConfig.parse({"device-id": f" {unicodedata.normalize(form, '김민지')} "})
    assert named.device_id == unicodedata.normalize("NFC", "김민지")


def test_a_simulated_node_is_a_part_of_the_population_and_demands_nothing() -> None:
    node = NodeConfig.parse({"partition-id": 1, "num-partitions": 3})
    assert (node.partition, node.partitions) == (1, 3)
    assert not node.deployed
    assert not node.masked_only
    assert (node.share_gates, node.local_noise, node.store, node.manifest) == (False, 0.0, "", "")
    assert NodeConfig.parse({}) == NodeConfig()


def test_numbers_may_come_as_text_as_a_command_line_gives_them() -> None:
    node = NodeConfig.parse({"partition-id": "1", "num-partitions": "3", "local-noise": "0.5"})
    assert (node.partition, node.partitions, node.local_noise) == (1, 3, 0.5)
    assert NodeConfig.parse({"device-id": 7}).device_id == "7"


@pytest.mark.parametrize("value", ["true", "yes", 1, "True", None])
def test_gates_are_shared_only_where_the_owner_says_true(value: object) -> None:
    """``share-gates=true`` is a truth value in a node-config; anything else keeps the gates."""
    assert not NodeConfig.parse({"device-id": "ann", "share-gates": value}).share_gates


@pytest.mark.parametrize("key", ["partition-id", "num-partitions", "local-noise"])
@pytest.mark.parametrize("value", ["many", "", None])
def test_what_is_no_number_is_refused_by_naming_the_numbers(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=r"node-config: .*local-noise, partition-id and num-partitions are numbers"):
        NodeConfig.parse({key: value})


@pytest.mark.parametrize(
    "demand", [{"secure-sum": "pairwize"}, {"local-noise": -1.0}, {"local-noise": "nan"}, {"local-noise": "inf"}]
)
def test_a_demand_that_is_not_understood_is_refused_and_not_dropped(demand: dict[str, object]) -> None:
    with pytest.raises(
        ConfigError, match=r"a demand that is not understood would not be held; secure-sum is none or pairwise"
    ):
        NodeConfig.parse(demand)


def test_a_key_that_is_none_is_refused_on_a_deployed_device_and_passed_over_in_a_simulation() -> None:
    assert NodeConfig.parse({"some-flower-key": "x", "partition-id": 1}) == NodeConfig(partition=1)
    with pytest.raises(ConfigError, match=r"'local_noise' is no key, .* known are device-id, .*local-noise"):
        NodeConfig.parse({"device-id": "ann", "local_noise": 0.8})
