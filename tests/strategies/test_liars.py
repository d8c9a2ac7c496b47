"""One node of five lies. The others' rows, weights, ids and noise stay what they are, whatever its replies say."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives import serialization
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes

from clients.updates.reply import DeviceResult, ReplyWriter
from fl.algorithms.arms import trained_arm
from fl.algorithms.plan import Phase
from fl.core.errors import ConfigError
from fl.privacy.plan import make_plan
from fl.protocol.reply import Exchange, ReplySchema
from fl.protocol.wire import COUNTS, DEVICES, IDS, SUM, TOTALS, UPDATES, device_key
from fl.settings.config import make_config
from sim.backends.serial import SerialGrid
from strategies.arm import ArmStrategy
from strategies.keys import remember
from strategies.private import PrivateMean
from strategies.replies import read_replies
from strategies.roster import Roster, ask_roster

PEOPLE = ("ann", "bob", "cho", "dan", "liar")
HOME = {name: node for node, name in enumerate(PEOPLE, 1)}
LIE = 666.0
Forge = Callable[[Message, RecordDict], None]
Make = Callable[..., ArmStrategy]


class Lying(SerialGrid):
    """A node for each of :data:`PEOPLE`; the last one's replies are as ``forge`` makes them, and come first or last."""

    def __init__(self, devices: Any, forge: Forge, *, first: bool) -> None:
        super().__init__(devices, nodes=len(PEOPLE))
        self.devices, self.forge, self.first = devices, forge, first

    def _handle(self, message: Message) -> Message:
        reply = super()._handle(message)
        if message.metadata.dst_node_id == HOME["liar"]:
            self.forge(message, reply.content)
        return reply

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        replies = list(super().send_and_receive(messages, timeout=timeout))
        return sorted(replies, key=lambda r: (r.metadata.src_node_id == HOME["liar"]) != self.first)


def rows_for(content: RecordDict, names: tuple[str, ...], shapes: dict[str, tuple[int, ...]], **numbers: float) -> None:
    """Put sound rows of these devices into a reply, each with an update of :data:`LIE`."""
    columns = {"examples": 3, "loss": 1.0, "steps": 2, "bytes-up": 40, **numbers}
    content[DEVICES] = ConfigRecord({IDS: list(names)})
    content[COUNTS] = MetricRecord({name: [value] * len(names) for name, value in columns.items()})  # type: ignore[dict-item]
    if UPDATES in content:
        content[UPDATES] = ArrayRecord(
            {n: Array(np.full((len(names), *shape), LIE, np.float32)) for n, shape in shapes.items()}
        )


@pytest.fixture
def five(devices: Any) -> Any:
    """Five devices that move the shared tensors by 1, 2, 3, 4 and 666."""
    devices.steps = {name: float(place) for place, name in enumerate(PEOPLE, 1)} | {"liar": LIE}
    devices.examples = dict.fromkeys(PEOPLE, 3)
    return devices


@pytest.fixture
def play(five: Any, start: ArrayRecord, make_strategy: Make) -> Callable[..., tuple[ArmStrategy, np.ndarray]]:
    """One round in which the last node lies; the strategy after it and the value to which it moved ``layer.A``."""

    def run(forge: Forge, *, first: bool = True, **settings: Any) -> tuple[ArmStrategy, np.ndarray]:
        strategy = make_strategy(five, roster=Roster(HOME, five.examples), **settings)
        grid = Lying(five, forge, first=first)
        new, _ = strategy.aggregate_train(
            1, grid.send_and_receive(strategy.configure_train(1, start, ConfigRecord(), grid))
        )
        assert new is not None
        return strategy, new["layer.A"].numpy()

    return run


def record(values: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in values.items()})


# Rows of devices that live elsewhere


@pytest.mark.parametrize("first", [True, False])
def test_a_node_that_answers_for_others_leaves_their_rows_alone(play: Any, start: ArrayRecord, first: bool) -> None:
    shapes = {name: tuple(array.shape) for name, array in start.items()}
    strategy, moved = play(lambda _, content: rows_for(content, PEOPLE, shapes), first=first, algorithm="median")
    assert np.unique(moved).tolist() == [3.0]  # the median of 1, 2, 3, 4 and 666
    assert [update.device_id for update in strategy.last.sound] == list(PEOPLE)
    assert list(strategy.last.left_out) == ["node 5"]
    assert "rows for 'ann' and 3 more are passed over" in strategy.last.left_out["node 5"]


@pytest.mark.parametrize("first", [True, False])
def test_a_node_cannot_say_that_anothers_device_failed(play: Any, first: bool) -> None:
    def forge(_: Message, content: RecordDict) -> None:
        content[device_key(COUNTS, "ann")] = MetricRecord({"failed": 1})

    strategy, moved = play(forge, first=first, algorithm="median")
    assert np.unique(moved).tolist() == [3.0]
    assert [update.device_id for update in strategy.last.sound] == list(PEOPLE)


@pytest.mark.parametrize("first", [True, False])
def test_a_sum_that_holds_anothers_device_spoils_itself_alone(
    five: Any, start: ArrayRecord, make_strategy: Make, first: bool
) -> None:
    def edge(message: Message, context: Context) -> Message:
        reply = five(message, context)
        rows = reply.content.array_records[UPDATES]
        reply.content[SUM] = ArrayRecord({n: Array(3 * a.numpy().sum(axis=0, dtype=float)) for n, a in rows.items()})
        reply.content[TOTALS] = MetricRecord({"weight": 3.0, "devices": 1})
        del reply.content[UPDATES]
        return reply

    def forge(_: Message, content: RecordDict) -> None:
        rows_for(content, ("ann", "liar"), {})
        content[TOTALS] = MetricRecord({"weight": 6.0, "devices": 2})

    strategy = make_strategy(five, roster=Roster(HOME, five.examples), aggregation="edge")
    grid = Lying(edge, forge, first=first)
    messages = strategy.configure_train(1, start, ConfigRecord(), grid)
    new, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert new is not None
    assert np.unique(new["layer.A"].numpy()).tolist() == [2.5]  # the mean of 1, 2, 3 and 4
    assert [update.device_id for update in strategy.last.sound] == ["ann", "bob", "cho", "dan"]
    assert set(strategy.last.left_out) == {"liar", "node 5"}


@pytest.mark.parametrize("first", [True, False])
def test_a_node_cannot_evaluate_for_others(five: Any, start: ArrayRecord, make_strategy: Make, first: bool) -> None:
    def forge(_: Message, content: RecordDict) -> None:
        fields = ("substitutions", "deletions", "insertions", "reference")
        rows_for(content, PEOPLE, {}, **{f"wer.{name}": 10 for name in fields})

    strategy = make_strategy(five, roster=Roster(HOME, five.examples))
    grid = Lying(five, forge, first=first)
    strategy.aggregate_evaluate(1, grid.send_and_receive(strategy.configure_evaluate(1, start, ConfigRecord(), grid)))
    said = {update.device_id: update.metrics["wer"].deletions for update in strategy.last.sound}
    assert said == {**dict.fromkeys(PEOPLE, 0), "liar": 10}


def test_no_message_can_be_answered_by_a_node_that_guesses_its_id(
    five: Any, start: ArrayRecord, make_strategy: Make
) -> None:
    strategy = make_strategy(five, roster=Roster(HOME, five.examples))
    sent = [m for _ in range(2) for m in strategy.configure_train(1, start, ConfigRecord(), SerialGrid(five))]
    groups = {message.metadata.group_id for message in sent}  # part of what the id is a hash of
    assert len(groups) == len(sent)
    assert min(map(len, groups)) >= 32


# Whose device it is


Rows = dict[str, dict[str, float]]
REAL, SIMULATED = {"examples": 5, "simulated": 0}, {"examples": 5, "simulated": 1}


class Claiming(SerialGrid):
    """Nodes that answer the roster with the given rows; ``keys`` are the public keys that Flower tells of them."""

    def __init__(self, *claims: Rows | list[str], keys: tuple[bytes, ...] = ()) -> None:
        super().__init__(self.answer, nodes=len(claims))  # type: ignore[arg-type]
        self.claims, self.keys = claims, keys

    def answer(self, message: Message, context: Context) -> Message:
        rows = self.claims[context.node_id - 1]
        ids = list(rows)
        numbers = rows if isinstance(rows, dict) else dict.fromkeys(rows, REAL)
        columns = {name: [numbers[d][name] for d in ids] for name in REAL}
        content = {DEVICES: ConfigRecord({IDS: ids}), COUNTS: MetricRecord(columns)}  # type: ignore[arg-type]
        return Message(RecordDict(content), reply_to=message)  # type: ignore[arg-type]

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=n, public_key=key) for n, key in enumerate(self.keys or (b"",) * len(self.claims), 1)]


def public_keys(count: int) -> tuple[bytes, ...]:
    return tuple(public_key_to_bytes(generate_key_pairs()[1]) for _ in range(count))


def openssh(pem: bytes) -> str:
    key = serialization.load_pem_public_key(pem)
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Roster]:
    """The roster of a run in ``tmp_path``, as a run remembers it."""

    def run(grid: SerialGrid, **settings: Any) -> Roster:
        roster = ask_roster(grid, make_config({"output": str(tmp_path), **settings}))
        remember(tmp_path, roster.keys)
        return roster

    return run


def test_the_second_claim_to_an_id_is_left_out_and_the_run_goes_on(ask: Any, caplog: Any) -> None:
    roster = ask(Claiming({"ann": REAL}, {"bob": REAL}, {"ann": REAL}))
    assert roster.nodes == {"ann": 1, "bob": 2}
    assert "device ann of node 3 left out: node 1 hosts it already" in caplog.text


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (["cho", "cho"], "lists device 'cho' twice"),
        ([f"sybil {number}" for number in range(5000)], "lists 5000 devices, and a deployed node hosts one"),
        ({f"part {number}": SIMULATED for number in range(5000)}, "lists 5000 devices, and a deployed node hosts one"),
        (["everyone"], "its id"),
        (["x" * 10_000], "its id"),
        (["cho\n2026-01-01 run finished"], "its id"),
        ([""], "its id"),
        ({"cho": {"examples": 1e300, "simulated": 0}}, "examples is 1e[+]300"),
        ({"cho": {"examples": -5, "simulated": 0}}, "examples is -5"),
    ],
)
def test_a_roster_that_no_honest_node_sends_is_left_out_in_one_short_line(
    ask: Any, caplog: Any, rows: Any, why: str
) -> None:
    roster = ask(Claiming({"ann": REAL}, rows, {"bob": REAL}))
    assert roster.nodes == {"ann": 1, "bob": 3}
    (said,) = (record.getMessage() for record in caplog.records)
    assert re.search(why, said)
    assert len(said) < 500
    assert said.isprintable()


def test_in_a_resumed_run_an_id_stays_with_its_key(ask: Any, caplog: Any) -> None:
    ann, bob, liar = public_keys(3)
    assert ask(Claiming({"ann": REAL}, {"bob": REAL}, keys=(ann, bob))).nodes == {"ann": 1, "bob": 2}
    again = ask(Claiming({"ann": REAL}, {"bob": REAL}, {"ann": REAL}, {"cho": REAL}, keys=(liar, bob, ann, liar)))
    assert again.nodes == {"bob": 2, "ann": 3, "cho": 4}  # another node id, the same key
    assert "device ann of node 1 left out: it is another key's" in caplog.text


def test_a_list_of_keys_admits_those_devices_alone(ask: Any, tmp_path: Path, caplog: Any) -> None:
    ann, bob, liar = public_keys(3)
    path = tmp_path / "keys"
    path.write_text(f"# who takes part\n화자 0 {openssh(ann)} 화자@home\n\nbob {openssh(bob)}\n", encoding="utf-8")
    claims = Claiming({"화자 0": REAL}, {"화자 0": REAL}, {"bob": REAL}, {"eve": REAL}, keys=(liar, ann, bob, liar))
    assert ask(claims, **{"device-keys": str(path)}).nodes == {"화자 0": 2, "bob": 3}
    assert "device 화자 0 of node 1 left out: it is another key's" in caplog.text
    assert f"device eve of node 4 left out: it is not in {path}" in caplog.text


@pytest.mark.parametrize("line", ["ann", "ann ssh-rsa", "ecdsa-sha2-nistp384 AAAA", "{good}\n{good}"])
def test_a_list_of_keys_with_a_mistake_is_refused_with_its_line(ask: Any, tmp_path: Path, line: str) -> None:
    path = tmp_path / "keys"
    path.write_text(line.format(good=f"ann {openssh(*public_keys(1))}"))
    with pytest.raises(ConfigError, match=rf"keys:{line.count('{') or 1}: .*ssh-keygen"):
        ask(Claiming({"ann": REAL}), **{"device-keys": str(path)})
    with pytest.raises(ConfigError, match=r"absent.*give"):
        ask(Claiming({"ann": REAL}), **{"device-keys": str(tmp_path / "absent")})


# Where noise comes from


@pytest.mark.parametrize(
    ("claims", "simulated"),
    [
        ([{"ann": SIMULATED, "bob": SIMULATED}, {"cho": SIMULATED}], True),
        ([{"ann": REAL}, {"bob": SIMULATED}], False),
        ([{"ann": SIMULATED}, {"bob": REAL}], False),
        ([{"ann": REAL}, {"ann": SIMULATED}], False),
        ([{"ann": SIMULATED}, {"ann": REAL}], False),  # what is left out still counts
    ],
)
def test_one_deployed_node_switches_the_seed_off_whatever_others_say(ask: Any, claims: Any, simulated: bool) -> None:
    assert ask(Claiming(*claims)).simulated is simulated


# What a device says of itself


PAIR = {"map.gated_lora_A": np.ones((2, 6), np.float32), "map.gated_lora_B": np.ones((5, 2), np.float32)}
HUGE = 10**9


@pytest.fixture
def after(five: Any, make_strategy: Make) -> Callable[..., list[np.ndarray]]:
    """The shared tensors after two rounds in which the liar says this of itself, and what the algorithm keeps beside them."""

    def run(said: dict[str, float], **settings: Any) -> list[np.ndarray]:
        def forge(_: Message, content: RecordDict) -> None:
            for name, value in said.items():
                content.metric_records[COUNTS][name] = [value]  # type: ignore[assignment]

        five.examples = {**five.examples, "liar": said.get("examples", 3)}
        if "dp" in settings:
            plan = make_plan(make_config(settings), len(PEOPLE), 2)
            settings = {**settings, "kind": PrivateMean, "plan": plan}
        roster = Roster(HOME, {name: min(n, 1000) for name, n in five.examples.items()})
        strategy = make_strategy(five, roster=roster, **settings)
        grid, shared = Lying(five, forge, first=True), record(PAIR)
        for number in (1, 2):
            messages = strategy.configure_train(number, shared, ConfigRecord(), grid)
            new, metrics = strategy.aggregate_train(number, grid.send_and_receive(messages))
            assert new is not None
            assert metrics is not None
            shared = new
        kept = sorted(strategy.server_state().items())
        return [
            *(array.numpy() for array in shared.values()),
            *(values for _, values in kept),
            np.array(metrics["loss"]),
        ]

    return run


WEIGHTED = {
    **{
        name: {"algorithm": name}
        for name in ("fedavg", "fednova", "scaffold", "flora", "flexlora", "fedex", "sparsity-weighted", "rolora")
    },
    "clusters": {"algorithm": "clusters", "arm": "personalized"},
    "example-cap": {"dp": "server", "example-cap": 5000, "noise-multiplier": 1.0, "epsilon-budget": 1e6},
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_billion_examples_weigh_as_much_as_the_most_that_count(after: Any, name: str) -> None:
    most, much = (after({"examples": n}, **WEIGHTED[name]) for n in (1000, HUGE))
    assert all((one == other).all() for one, other in zip(most, much, strict=True))


def test_without_a_bound_the_settings_believe_what_a_device_says(after: Any) -> None:
    found, *_ = after({"examples": HUGE}, **{"max-examples": 0})
    assert found == pytest.approx(1 + 2 * LIE, rel=1e-5)


@pytest.mark.parametrize(("steps", "believed"), [(HUGE, 12), (13, 12), (12, 12)])
def test_more_steps_than_were_asked_for_are_not_believed(after: Any, steps: int, believed: int) -> None:
    settings = {"algorithm": "fednova", "local-steps": 12}
    said, bounded = (after({"steps": n}, **settings) for n in (steps, believed))
    assert all((one == other).all() for one, other in zip(said, bounded, strict=True))


@pytest.mark.parametrize(
    "said",
    [
        {"steps": 1e-300},
        {"steps": -1},
        {"loss": 1e300},
        {"bytes-up": 2**60},
        {"seconds-train": -1.0},
        {"words.deletions": 1},
    ],
)
def test_a_device_with_numbers_that_cannot_be_is_left_out(after: Any, said: dict[str, float]) -> None:
    found, *_ = after(said, algorithm="fednova")
    assert np.allclose(found, 1 + 2 * 2.5)  # the mean of 1, 2, 3 and 4, twice


def test_a_nodes_sum_has_the_bounded_weights_of_its_devices(message_with: Callable[..., Message]) -> None:
    config = make_config({"aggregation": "edge"})
    exchange = Exchange.of(config, trained_arm("global", config), Phase.FEDERATE)
    schema = ReplySchema({n: values.shape for n, values in PAIR.items()}, exchange)
    writer = ReplyWriter(2, schema)
    for name, examples, value in (("ann", 500, 1.0), ("bob", HUGE, 4.0)):
        shared = {n: torch.full(values.shape, value) for n, values in PAIR.items()}
        writer.add(DeviceResult(name, {"examples": examples}, shared=shared))
    content = writer.content()
    (part,) = read_replies([message_with(content)], {"ann": 1, "bob": 1}, schema, trains=True).parts
    assert part.examples == 1500
    assert part.tensors is not None
    assert part.tensors["map.gated_lora_A"] == pytest.approx(3.0)
    content.metric_records[TOTALS]["weight"] = float(500 + HUGE)  # as its devices say
    assert read_replies([message_with(content)], {"ann": 1, "bob": 1}, schema, trains=True).parts == ()


def test_no_device_stands_for_more_than_its_share_of_the_roster(ask: Any) -> None:
    claims = Claiming({"ann": {**REAL, "examples": HUGE}}, {"bob": REAL})
    assert ask(claims).examples == {"ann": 1000, "bob": 5}
    assert ask(claims, **{"max-examples": 0}).examples == {"ann": HUGE, "bob": 5}
