"""An app that tries to smuggle gates out, behind the guard mod as it stands in a ClientApp."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.app import app as shipped_app
from clients.mods import discreet_mod, guard_mod
from fl.algorithms.plan import Phase
from fl.core.errors import DemandError, GuardError
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
    config = make_config({"split": split})
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

    with pytest.raises(GuardError, match="gate"):
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


def test_an_error_reply_passes_untouched():
    app = ClientApp(mods=[guard_mod])
    app.train()(lambda message, _: Message(Error(code=2, reason="no"), reply_to=message))
    assert app(request("train"), context()).has_error()


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
