"""The guard at the boundary: whatever goes wrong further in, only shared tensors and counts of the right devices leave."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.mods import discreet_mod, guard_mod
from fl.core.errors import ManifestError
from fl.protocol.wire import (
    COUNTS,
    DEVICES,
    IDS,
    JOB,
    SETTINGS_RECORD,
    SHARED,
    UPDATES,
    Job,
    device_key,
    settings_record,
)
from fl.settings.config import RunConfig
from sim.backends.serial import SerialGrid

A, GATE = "layer.gated_lora_A", "layer.gated_lora_gate_weight"
Content = dict[str, ArrayRecord | MetricRecord | ConfigRecord]


def arrays(*names: str, value: float = 1.0, shape: tuple[int, ...] = (2, 2)) -> ArrayRecord:
    return ArrayRecord({name: Array(np.full(shape, value, np.float32)) for name in names})


@pytest.fixture
def answer(config: RunConfig) -> Callable[..., Message]:
    """What comes back from a node whose inside answers with ``content``, whatever it was asked."""

    def send(content: Content, *, asked: ArrayRecord | None = None, kind: str = MessageType.TRAIN) -> Message:
        inside = ClientApp(mods=[guard_mod])

        def respond(message: Message, context: Context) -> Message:
            return Message(RecordDict(content), reply_to=message)

        for register in (inside.train, inside.evaluate, inside.query):
            register()(respond)
        job = Job(arm="personalized", round=1, devices=("ann",))
        request = RecordDict({JOB: job.to_record(), SETTINGS_RECORD: settings_record(config)})
        request[SHARED] = arrays(A) if asked is None else asked
        (reply,) = SerialGrid(inside, nodes=1).send_and_receive([Message(request, dst_node_id=1, message_type=kind)])
        return reply

    return send


def of(device: str, *names: str, **values: Any) -> Content:
    """One device's counts in columns, and its update as a stack of one."""
    counts = {DEVICES: ConfigRecord({IDS: [device]}), COUNTS: MetricRecord({"examples": [3]})}
    shape = values.pop("shape", (2, 2))
    return {**counts, UPDATES: arrays(*names, shape=(1, *shape), **values)}


GOOD = of("ann", A)


def test_shared_tensors_and_counts_pass(answer: Callable[..., Message]) -> None:
    reply = answer(GOOD)
    assert not reply.has_error()
    assert set(reply.content) == set(GOOD)


@pytest.mark.parametrize(
    ("content", "asked", "reason"),
    [
        (of("ann", A, GATE), arrays(A), "private tensor|not a shared tensor|not agreed"),
        (of("ann", A, GATE), arrays(A, GATE), "private tensor|not agreed"),
        (of("ann", A, value=float("nan")), arrays(A), "NaN|not agreed"),
        (of("ann", A, shape=(3, 2)), arrays(A), "float32|not agreed"),
        (of("bob", A), arrays(A), "not asked"),
        ({device_key(COUNTS, "bob"): MetricRecord({"examples": 3})}, arrays(A), "not asked"),
        ({device_key(COUNTS, "ann"): MetricRecord({"pitch": 3})}, arrays(A), "no count"),
        ({"transcripts:ann": ConfigRecord({"text": "나는 meeting 있어"})}, arrays(A), "neither"),
    ],
    ids=["unasked gate", "gate asked for", "NaN", "shape", "other device", "other counts", "odd count", "text"],
)
@pytest.mark.parametrize("kind", [MessageType.TRAIN, MessageType.EVALUATE])
def test_everything_else_is_stopped_and_nothing_is_sent(
    answer: Callable[..., Message], content: Content, asked: ArrayRecord, reason: str, kind: str
) -> None:
    usual = {name: GOOD[name] for name in GOOD if kind == MessageType.TRAIN or name != UPDATES}
    reply = answer({**usual, **content}, asked=asked, kind=kind)
    assert reply.has_error()
    assert not reply.has_content()
    assert "GuardError" in str(reply.error.reason)
    assert any(part in str(reply.error.reason) for part in reason.split("|"))
    assert "meeting" not in str(reply.error.reason)


def test_an_answer_to_a_query_holds_counts_only(answer: Callable[..., Message]) -> None:
    roster: Content = {device_key(COUNTS, "ann"): MetricRecord({"examples": 3, "new-person": 0})}
    assert set(answer(roster, kind=MessageType.QUERY).content) == set(roster)
    assert answer(GOOD, kind=MessageType.QUERY).has_error()


# A deployed device


@pytest.fixture
def deployed(config: RunConfig, tmp_path: Path) -> Callable[..., Message]:
    """What comes back from a deployed device, whose inside does as ``inside`` does, when it is asked to share ``asked``."""

    def send(
        inside: Callable[[], RecordDict],
        *,
        asked: ArrayRecord | None = None,
        kind: str = MessageType.TRAIN,
        **node: bool | str,
    ) -> Message:
        client = ClientApp(mods=[discreet_mod, guard_mod])

        def respond(message: Message, context: Context) -> Message:
            return Message(inside(), reply_to=message)

        for register in (client.train, client.evaluate, client.query):
            register()(respond)
        grid = SerialGrid(client, nodes=1)
        grid._contexts[1].node_config = node if node else {"device-id": "ann", "store": str(tmp_path)}
        job = Job(arm="global", round=1, devices=("ann",))
        request = RecordDict({JOB: job.to_record(), SETTINGS_RECORD: settings_record(with_shared_gates(config))})
        request[SHARED] = asked or arrays(A)
        (reply,) = grid.send_and_receive([Message(request, dst_node_id=1, message_type=kind)])
        return reply

    return send


def with_shared_gates(config: RunConfig) -> RunConfig:
    """The settings of a run whose arm ``global`` shares gates too."""
    return config.changed({"gated-arms": "all"})


def shares(*names: str) -> Callable[[], RecordDict]:
    return lambda: RecordDict(of("ann", *names))


def test_a_deployed_device_shares_no_gate_even_if_the_run_calls_gates_shared(deployed: Callable[..., Message]) -> None:
    reply = deployed(shares(A, GATE), asked=arrays(A, GATE))
    assert reply.has_error()
    assert "DemandError" in str(reply.error.reason)
    assert "1 gates" in str(reply.error.reason)
    assert deployed(shares(A)).has_content()


def test_gates_are_shared_where_the_owner_says_so_or_where_devices_are_simulated(
    deployed: Callable[..., Message], tmp_path: Path
) -> None:
    owner: dict[str, bool | str] = {"device-id": "ann", "store": str(tmp_path), "share-gates": True}
    for node in (owner, {"partition-id": "0", "num-partitions": "1"}):
        assert set(deployed(shares(A, GATE), asked=arrays(A, GATE), **node).content) == set(shares(A)())


@pytest.mark.parametrize("kind", [MessageType.TRAIN, MessageType.EVALUATE, MessageType.QUERY])
def test_what_an_exception_quotes_stays_on_the_device(
    deployed: Callable[..., Message], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> RecordDict:
        raise ManifestError("/home/minji/manifest.jsonl:3: no spans in '나는 meeting 있어'")

    reply = deployed(fail, kind=kind)
    assert reply.has_error()
    assert str(reply.error.reason) == "RunError: ManifestError on the device, whose log says more"
    assert "나는 meeting 있어" in caplog.text  # the owner can read why
    simulated = deployed(fail, kind=kind, **{"partition-id": "0", "num-partitions": "1"})
    assert "나는 meeting 있어" in str(simulated.error.reason)


def test_an_error_without_secrets_is_said_to_the_aggregator(deployed: Callable[..., Message]) -> None:
    reply = deployed(lambda: RecordDict({"transcripts:ann": ConfigRecord({"text": "안녕"})}))
    assert "GuardError" in str(reply.error.reason)
