"""An app that tries to smuggle gates out, behind the guard mod as it stands in a ClientApp."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.app import app as shipped_app
from clients.mods import discreet_mod, guard_mod
from fl.algorithms.plan import Phase
from fl.core.errors import DemandError, GuardError, RunError
from fl.protocol.wire import JOB, SETTINGS_RECORD, SHARED, Job, settings_record, to_arrays
from fl.settings.config import make_config

SHARED_PART = {"q_proj.gated_lora_A": torch.ones(2, 3), "q_proj.gated_lora_B": torch.ones(4, 2)}
GATES = {"q_proj.gated_lora_gate_weight": torch.full((2, 3), 0.125), "q_proj.gated_lora_gate_bias": torch.zeros(2)}
COUNTS = MetricRecord({"examples": 3, "loss": 0.5})
COLUMNS = {"devices": ConfigRecord({"ids": ["ann"]}), "counts": MetricRecord({"examples": [3], "loss": [0.5]})}


def stacked(tensors):
    """The update of one device, as its node sends it."""
    return ArrayRecord({name: Array(tensor.numpy()[None]) for name, tensor in tensors.items()})


def context(node_config=None) -> Context:
    return Context(run_id=1, node_id=2, node_config=node_config or {}, state=RecordDict(), run_config={})


def request(kind, asked=SHARED_PART, arm="personalized", split="gates", phase=Phase.FEDERATE):
    config = make_config({"gate": "self", "split": split})
    content = RecordDict({JOB: Job(arm, 1, ("ann",), phase).to_record(), SETTINGS_RECORD: settings_record(config)})
    content[SHARED] = to_arrays(asked)
    message = Message(content, dst_node_id=2, message_type=kind)
    message.metadata.__dict__["_message_id"] = "1"  # Flower's runtime gives it when it sends
    return message


def node(answer, kind):
    """A ClientApp whose inside answers with ``answer(message)`` and whose last mod is the guard."""
    app = ClientApp(mods=[guard_mod])

    def respond(message, _):
        return Message(RecordDict(answer(message)), reply_to=message)

    getattr(app, kind)()(respond)
    return app


def honest(_):
    return {**COLUMNS, "updates": stacked(SHARED_PART)}


@pytest.fixture(autouse=True)
def flower_task(monkeypatch):
    """Replies are stamped with the identity of a running task, which only Flower's own runtimes set."""
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


SMUGGLERS = {
    "gates beside the shared part": lambda _: {**COLUMNS, "updates": stacked({**SHARED_PART, **GATES})},
    "gates alone": lambda _: {**COLUMNS, "updates": stacked(GATES)},
    "gates in a record of their own": lambda _: {**honest(_), "private:ann": to_arrays(GATES)},
    "gates under the name of the request": lambda _: {**honest(_), "shared": to_arrays(GATES)},
    "gates under the name of a device that was not asked": lambda _: {**honest(_), "updates:bob": to_arrays(GATES)},
    "gates as a list of counts": lambda _: {"counts:ann": MetricRecord({"loss": [0.125] * 6})},
    "gates as a column": lambda _: {**COLUMNS, "counts": MetricRecord({"examples": [3], "loss": [0.125] * 6})},
    "gates as many counts": lambda _: {"counts:ann": MetricRecord({f"g{i}.substitutions": 0.125 for i in range(6)})},
    "gates inside a larger A": lambda _: {**COLUMNS, "updates": stacked({**SHARED_PART, "q_proj.gated_lora_A": torch.ones(4, 3)})},
}  # fmt: skip


def test_an_honest_app_gets_through():
    reply = node(honest, "train")(request("train"), context())
    assert set(reply.content) == {"devices", "counts", "updates"}
    scored = node(lambda _: {"counts:ann": COUNTS}, "evaluate")(request("evaluate"), context())
    assert set(scored.content) == {"counts:ann"}


@pytest.mark.parametrize("kind", ["evaluate", "query"])
def test_nothing_but_training_sends_tensors(kind):
    with pytest.raises(GuardError, match="none were"):
        node(honest, kind)(request(kind), context())


@pytest.mark.parametrize("kind", ["train", "evaluate", "query"])
@pytest.mark.parametrize("answer", SMUGGLERS.values(), ids=SMUGGLERS)
def test_an_app_that_smuggles_gates_raises_and_nothing_is_sent(answer, kind):
    sent = []
    with pytest.raises(GuardError) as error:
        sent.append(node(answer, kind)(request(kind), context()))
    assert not sent
    assert "0.125" not in str(error.value)


def test_an_aggregator_that_asks_for_gates_does_not_get_them():
    everything = {**SHARED_PART, **GATES}
    app = node(lambda _: {**COLUMNS, "updates": stacked(everything)}, "train")
    with pytest.raises(GuardError, match="private tensor"):
        app(request("train", asked=everything), context())
    for arm, phase in (
        ("local", Phase.FEDERATE),
        ("personalized", Phase.PERSONALIZE),
        ("personalized", Phase.FINETUNE),
    ):
        with pytest.raises(GuardError, match="none were"):
            app(request("train", asked=everything, arm=arm, phase=phase), context())


def test_an_app_cannot_widen_what_was_agreed_by_changing_the_request():
    def tamper(message):
        message.content[SHARED] = to_arrays({**SHARED_PART, **GATES})
        message.content[JOB] = Job("global", 1, ("ann", "bob")).to_record()
        return {**COLUMNS, "updates": stacked({**SHARED_PART, **GATES})}

    with pytest.raises(GuardError, match="not a shared tensor"):
        node(tamper, "train")(request("train"), context())


def test_what_the_split_shares_may_travel():
    everything = {**SHARED_PART, **GATES}
    app = node(lambda _: {**COLUMNS, "updates": stacked(everything)}, "train")
    reply = app(request("train", asked=everything, split="all-shared"), context())
    assert set(reply.content.array_records["updates"]) == set(everything)


@pytest.mark.parametrize(
    "config", [{"device-id": "ann", "store": "/nowhere"}, {"device-id": "ann", "share-gates": "true"}]
)
def test_a_deployed_device_shares_no_gate_unless_its_owner_says_so(config):
    everything = {**SHARED_PART, **GATES}
    app = node(lambda _: {**COLUMNS, "updates": stacked(everything)}, "train")
    asked = request("train", asked=everything, split="all-shared")
    with pytest.raises(DemandError, match="2 gates"):
        app(asked, context(config))
    assert "updates" in app(asked, context({**config, "share-gates": True})).content


SECRET = "나는 meeting 있어"


def padded(array: Array, data=lambda bytes_: bytes_ + SECRET.encode(), **changes) -> Array:
    """The same array with other bytes."""
    return Array(
        **{"dtype": array.dtype, "shape": array.shape, "stype": array.stype, "data": data(array.data), **changes}
    )


def with_a(array):
    return {**COLUMNS, "updates": ArrayRecord({**stacked(SHARED_PART), "q_proj.gated_lora_A": array})}


A_OF_ANN = Array(np.ones((1, 2, 3), np.float32))
ROOMY = A_OF_ANN.data[:10].replace(b"\x76", b"\xb6") + A_OF_ANN.data[10:127] + b" " * 64 + A_OF_ANN.data[127:]
HIDERS = {
    "behind the numbers": lambda: with_a(padded(A_OF_ANN)),
    "in a longer header": lambda: with_a(padded(A_OF_ANN, lambda _: ROOMY)),
    "in the blanks of the header": lambda: with_a(padded(A_OF_ANN, lambda data: data.replace(b" " * 16, SECRET.encode()[:16], 1))),
    "in the order of the numbers": lambda: with_a(Array(np.ones((3, 2, 1), np.float32).T)),
    "in the type": lambda: with_a(padded(A_OF_ANN, dtype=SECRET)),
    "in the kind of serialization": lambda: with_a(padded(A_OF_ANN, stype=SECRET)),
    "in the name of a tensor": lambda: {**COLUMNS, "updates": ArrayRecord({**stacked(SHARED_PART), SECRET: A_OF_ANN})},
    "in the name of a record": lambda: {**honest(0), SECRET: MetricRecord({"examples": 3})},
    "in the name of an empty record": lambda: {**honest(0), SECRET: ArrayRecord()},
    "in the name of a device": lambda: {**honest(0), f"counts:{SECRET}": MetricRecord({"examples": 3})},
    "in the list of devices": lambda: {"devices": ConfigRecord({"ids": [SECRET]}), "counts": COLUMNS["counts"]},
    "in the name of a count": lambda: {"counts:ann": MetricRecord({SECRET: 3})},
    "as the fraction of a size": lambda: {"counts:ann": MetricRecord({"bytes-up": 0.125})},
    "as a record without a name": lambda: {**COLUMNS, "": ArrayRecord()},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["train", "evaluate", "query"])
@pytest.mark.parametrize("content", HIDERS.values(), ids=HIDERS)
def test_there_is_no_room_beside_the_numbers_and_no_refusal_quotes_what_was_found(kind, content, caplog):
    deployed = context({"device-id": "ann", "store": "/nowhere", "manifest": "/nowhere"})
    with pytest.raises(GuardError, match="nothing was sent") as error:
        node(lambda _: content(), kind)(request(kind), deployed)
    assert not any(part in str(error.value) for part in ("meeting", "0.125", repr(SECRET)[1:4]))
    assert "nothing was sent" in caplog.text  # the owner can read the rest


@pytest.mark.parametrize("kind", ["train", "evaluate", "query"])
def test_an_error_made_inside_has_a_free_text_and_stays(kind):
    app = ClientApp(mods=[guard_mod])
    getattr(app, kind)()(lambda message, _: Message(Error(code=2, reason=SECRET), reply_to=message))
    with pytest.raises(GuardError, match="without records"):
        app(request(kind), context())


def test_only_the_records_of_a_reply_leave():
    def respond(message, _):
        reply = Message(RecordDict(honest(0)), reply_to=message)
        reply.metadata.__dict__["_group_id"] = SECRET
        return reply

    app = ClientApp(mods=[guard_mod])
    app.train()(respond)
    assert app(request("train"), context()).metadata.group_id == ""


def test_a_deployed_node_lists_no_device_but_its_own():
    def listing(*ids):
        app = node(
            lambda _: {
                "devices": ConfigRecord({"ids": list(ids)}),
                "counts": MetricRecord({"examples": [3] * len(ids)}),
            },
            "query",
        )
        return app(request("query"), context({"device-id": "ann", "store": "/nowhere"}))

    assert "devices" in listing("ann").content
    with pytest.raises(GuardError, match="does not live here"):
        listing("ann", "he said no")


def test_the_text_of_a_demand_that_is_not_understood_stays_on_the_device():
    app = ClientApp(mods=[discreet_mod, guard_mod])
    app.train()(lambda message, _: Message(RecordDict(honest(0)), reply_to=message))
    with pytest.raises(RunError, match="ConfigError on the device"):
        app(request("train"), context({"device-id": "ann", "local-noise": SECRET}))


def test_the_guard_is_the_last_mod_before_the_wire_in_the_shipped_app():
    # Outside it is only what stops exceptions: it passes replies on as they are.
    assert shipped_app._mods == [discreet_mod, guard_mod]
    message, answer = request("train"), Message(RecordDict(), reply_to=request("train"))
    assert discreet_mod(message, context(), lambda *_: answer) is answer


def test_the_request_itself_is_left_alone():
    message = request("train")
    before = {name: array.numpy().copy() for name, array in message.content.array_records[SHARED].items()}
    node(honest, "train")(message, context())
    after = message.content.array_records[SHARED]
    assert isinstance(after, ArrayRecord)
    assert all(np.array_equal(after[name].numpy(), before[name]) for name in before)
