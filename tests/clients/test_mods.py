"""The guard at the boundary: whatever goes wrong further in, only shared tensors and counts of the right devices leave."""

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.mods import guard_mod
from fl.config import RunConfig
from fl.wire import COUNTS, JOB, SETTINGS_RECORD, SHARED, Job, device_key, settings_record
from sim.serial import SerialGrid

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


GOOD: Content = {device_key(SHARED, "ann"): arrays(A), device_key(COUNTS, "ann"): MetricRecord({"examples": 3})}


def test_shared_tensors_and_counts_pass(answer: Callable[..., Message]) -> None:
    reply = answer(GOOD)
    assert not reply.has_error()
    assert set(reply.content) == set(GOOD)


@pytest.mark.parametrize(
    ("content", "asked", "reason"),
    [
        ({device_key(SHARED, "ann"): arrays(A, GATE)}, arrays(A), "private tensor|not a shared tensor"),
        ({device_key(SHARED, "ann"): arrays(A, GATE)}, arrays(A, GATE), "private tensor"),
        ({device_key(SHARED, "ann"): arrays(A, value=float("nan"))}, arrays(A), "NaN"),
        ({device_key(SHARED, "ann"): arrays(A, shape=(3, 2))}, arrays(A), "shape"),
        ({device_key(SHARED, "bob"): arrays(A)}, arrays(A), "not asked"),
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
    reply = answer({**GOOD, **content}, asked=asked, kind=kind)
    assert reply.has_error()
    assert not reply.has_content()
    assert "GuardError" in str(reply.error.reason)
    assert any(part in str(reply.error.reason) for part in reason.split("|"))
    assert "meeting" not in str(reply.error.reason)


def test_an_answer_to_a_query_holds_counts_only(answer: Callable[..., Message]) -> None:
    roster: Content = {device_key(COUNTS, "ann"): MetricRecord({"examples": 3, "new-person": 0})}
    assert set(answer(roster, kind=MessageType.QUERY).content) == set(roster)
    assert answer(GOOD, kind=MessageType.QUERY).has_error()
