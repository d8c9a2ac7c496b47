"""What leaves a device after training, as the node sends it: demands of its owner, secure sums step by step, sessions on disk."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from clients.app import app
from clients.updates.mask import Sessions, take_step
from clients.updates.outgoing import Release, check_demands
from fl.adapters.config import GatedLoraConfig
from fl.adapters.layer import fresh_adapter
from fl.algorithms.arms import trained_arm
from fl.algorithms.plan import Phase
from fl.core.errors import ConfigError, DemandError
from fl.privacy.secure_sum.device import SecureSumClient
from fl.privacy.secure_sum.keys import SecureSumError
from fl.privacy.secure_sum.messages import AdvertiseKeys, Participants, ShareKeys
from fl.privacy.secure_sum.server import new_setup
from fl.protocol.node import NodeConfig
from fl.protocol.reply import Exchange
from fl.protocol.wire import (
    JOB,
    SECURE,
    SECURE_STEP,
    SETTINGS_RECORD,
    SHARED,
    Job,
    device_key,
    settings_record,
    to_arrays,
)
from fl.settings.config import RunConfig, make_config
from fl.settings.names import NO_OP
from fl.tasks.table import load_task
from sim.backends.serial import SerialGrid

TRAIN = Job(arm="personalized", round=1, devices=("device-000000",))


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., RunConfig]:
    """A run without training on this machine's disk."""

    def make(**changes: Any) -> RunConfig:
        values = {"task": NO_OP, "devices": 4, "new_people": 0, "rank": 2, "gate": "self", "private_share": 0.0}
        return make_config({**values, "output": str(tmp_path / "run"), **changes})

    return make


@pytest.fixture
def send(settings: Callable[..., RunConfig]) -> Callable[..., Message]:
    """A node's answer to a training message with the given records beside it."""

    def ask(
        records: dict[str, Any] | None = None, job: Job = TRAIN, node: dict[str, Any] | None = None, **changes: Any
    ) -> Message:
        config = settings(**changes)
        task = load_task(config)
        fresh = fresh_adapter(
            task.model, GatedLoraConfig(r=2, lora_alpha=16.0, gate="self", target_modules=task.targets, init_seed=1)
        )
        shared = to_arrays({name: value for name, value in fresh.items() if name.endswith(("_A", "_B"))})
        content = RecordDict({JOB: job.to_record(), SETTINGS_RECORD: settings_record(config), SHARED: shared})
        content.update(records or {})
        grid = SerialGrid(app, 1)
        if node is not None:
            grid._contexts[1].node_config = node
        (reply,) = grid.send_and_receive([Message(content, dst_node_id=1, message_type=MessageType.TRAIN)])
        return reply

    return ask


def test_without_a_session_nothing_is_trained_for_a_secure_sum(send: Callable[..., Message]) -> None:
    reply = send(secure_sum="pairwise")
    assert reply.has_error()
    assert "brings no session" in str(reply.error.reason)


def test_a_device_that_is_to_clip_needs_to_know_how_long(send: Callable[..., Message]) -> None:
    reply = send(dp="server", aggregation="edge")
    assert dict(reply.content.metric_records[device_key("counts", "device-000000")]) == {"failed": 1}


@pytest.mark.parametrize(
    ("node", "changes", "job", "why"),
    [
        ({"device-id": "ann"}, {"attack": "sign-flip"}, TRAIN, "deployed device"),
        ({"secure-sum": "pairwise"}, {}, TRAIN, "masked only"),
        ({"local-noise": 0.8}, {}, TRAIN, "at least 0.8"),
        ({"local-noise": 0.8}, {"dp": "local"}, Job("personalized", 1, ("ann",), bound=2.0, noise=1.5), "at least 0.8"),
        ({"local-noise": 0.8}, {"dp": "local"}, Job("personalized", 1, ("ann",), bound=2.0, noise=1.6), ""),
        ({"secure-sum": "pairwise"}, {"secure_sum": "pairwise"}, TRAIN, ""),
        ({"secure-sum": "pairwise"}, {}, Job("personalized", 1, ("ann",), phase=Phase.PERSONALIZE), ""),
        ({"partition-id": 0}, {"attack": "sign-flip"}, TRAIN, ""),
        ({"device-id": "ann"}, {}, Job("centralized", 1, ("ann",)), "everybody's data"),
    ],
)
def test_a_node_refuses_what_its_owner_does_not_allow_whatever_the_aggregator_says(
    settings: Callable[..., RunConfig], node: dict[str, Any], changes: dict[str, Any], job: Job, why: str
) -> None:
    config = settings(**changes)
    exchange = Exchange.of(config, trained_arm(job.arm, config), job.phase)
    with pytest.raises(ConfigError, match=why) if why else nullcontext():
        check_demands(NodeConfig.parse(node), exchange, job)


UNCLIPPED = [{}, {"aggregation": "edge"}, {"codec": "int8"}, {"dp": "server"}]


@pytest.mark.parametrize("changes", UNCLIPPED, ids=str)
def test_a_demand_for_noise_is_void_where_the_update_is_not_clipped(
    settings: Callable[..., RunConfig], changes: dict[str, Any]
) -> None:
    config, job = settings(**changes), Job("personalized", 1, ("ann",), bound=1.0, noise=9.0)
    exchange = Exchange.of(config, trained_arm(job.arm, config), job.phase)
    assert Release.of(exchange, job).noise == 0
    with pytest.raises(DemandError, match="it would add 0"):
        check_demands(NodeConfig.parse({"device-id": "ann", "local-noise": 0.8}), exchange, job)


@pytest.mark.parametrize(
    "numbers", [{"noise": math.nan}, {"bound": math.inf, "noise": math.inf}, {"bound": -1.0, "noise": -1.0}]
)
def test_a_job_whose_bound_or_noise_is_no_number_is_none(numbers: dict[str, float]) -> None:
    record = {**Job("personalized", 1, ("ann",)).to_record(), **numbers}
    with pytest.raises(ConfigError, match="not a job"):
        Job.from_record(record)


@pytest.mark.parametrize("name", ["device-000000", "everyone"])
def test_what_leaves_a_device_whose_owner_demands_noise_has_that_noise(
    send: Callable[..., Message], tmp_path: Path, name: str
) -> None:
    owner = {"device-id": name, "store": str(tmp_path), "manifest": "run", "local-noise": 0.8}
    job = Job("personalized", 1, (name,), bound=2.0, noise=1.6)
    reply = send(job=job, node=owner, dp="local", noise_multiplier=0.8)
    if name == "everyone":  # no such person
        assert not reply.has_content()
        return
    noise = np.concatenate([array.numpy().reshape(-1) for array in reply.content.array_records["updates"].values()])
    assert abs(noise.std() / 1.6 - 1) < 5 / math.sqrt(2 * noise.size)  # the task trains nothing: all of it is noise


@pytest.mark.parametrize("owner", [{"secure-sum": "pairwise"}, {"local-noise": 0.8}], ids=str)
@pytest.mark.parametrize(
    "job",
    [
        {},
        {"bound": 2.0, "noise": 1.6},
        {"bound": 1e-9, "noise": 1e9},
        {"phase": "finetune"},
        {"phase": "personalize"},
        {"phase": "holiday"},
        {"arm": "centralized", "bound": 2.0, "noise": 1.6},
        {"arm": "local"},
        {"arm": "holiday"},
        {"bound": math.inf, "noise": math.inf},
    ],
    ids=str,
)
def test_no_word_of_an_aggregator_gets_a_tensor_past_what_the_owner_demands(
    send: Callable[..., Message], tmp_path: Path, owner: dict[str, Any], job: dict[str, Any]
) -> None:
    node = {"device-id": "device-000000", "store": str(tmp_path), "manifest": "run", **owner}
    record = ConfigRecord({**TRAIN.to_record(), **job})
    for changes in UNCLIPPED:
        reply = send({JOB: record}, node=node, **changes)
        assert reply.has_error() or not reply.content.array_records


# Sessions


def test_a_session_survives_its_process_and_no_step_is_answered_twice(tmp_path: Path) -> None:
    setup = new_setup(["ann", "bob"], 3, 1.0)
    keys = {}
    for name in setup.devices:
        record = take_step(Sessions(tmp_path, NodeConfig()), setup.to_record(), name)
        keys[name] = AdvertiseKeys.from_record(record)
    participants = Participants(
        setup.session, {n: k.mask for n, k in keys.items()}, {n: k.channel for n, k in keys.items()}
    )
    shares = ShareKeys.from_record(take_step(Sessions(tmp_path, NodeConfig()), participants.to_record(), "ann"))
    assert set(shares.sealed) == {"bob"}
    with pytest.raises(SecureSumError, match="is to mask"):
        take_step(Sessions(tmp_path, NodeConfig()), participants.to_record(), "ann")


def test_sessions_are_for_their_owner_alone_and_damage_is_named(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path, NodeConfig())
    setup = new_setup(["박지민", "ann"], 3, 1.0)
    sessions.save(SecureSumClient("박지민", setup))
    (path,) = (tmp_path / "secure-sums").glob("*/*")
    assert path.stat().st_mode & 0o777 == 0o600
    for participant, session in (("ann", setup.session), ("박지민", bytes(16))):
        with pytest.raises(SecureSumError, match="no session"):
            sessions.take(participant, session)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(SecureSumError, match="is damaged"):
        sessions.take("박지민", setup.session)
    assert not list((tmp_path / "secure-sums").glob("*/*"))


def test_a_step_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SecureSumError, match="no step of a secure sum"):
        take_step(Sessions(tmp_path, NodeConfig()), {"kind": "Vote"}, "ann")


@pytest.fixture
def flower_task() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def test_a_node_steps_for_participants_that_it_hosts(settings: Callable[..., RunConfig], flower_task: None) -> None:
    names = ("device-000000", "device-000001", "eve")
    setup = new_setup(names, 3, 1.0)
    content = RecordDict(
        {
            JOB: Job("personalized", 1, names).to_record(),
            SETTINGS_RECORD: settings_record(settings(secure_sum="pairwise")),
        }
    )
    content[SECURE] = setup.to_record()
    message = Message(content, dst_node_id=1, message_type=f"{MessageType.QUERY}.{SECURE_STEP}")
    message.metadata.__dict__["_message_id"] = "1"
    context = Context(1, 1, {"partition-id": 0, "num-partitions": 2}, RecordDict(), {})
    assert set(app(message, context).content) == {device_key(SECURE, name) for name in names[:2]}


def test_the_masked_vector_says_nothing_in_the_clear(
    send: Callable[..., Message], settings: Callable[..., RunConfig]
) -> None:
    """The words of one update differ in every session: they are uniform without the others' help."""
    found = []
    for _ in range(2):
        root = Path(settings().output) / "devices"
        setup = new_setup(["device-000000", "device-000001"], 33, 1.0)
        keys = {
            n: AdvertiseKeys.from_record(take_step(Sessions(root, NodeConfig()), setup.to_record(), n))
            for n in setup.devices
        }
        participants = Participants(
            setup.session, {n: k.mask for n, k in keys.items()}, {n: k.channel for n, k in keys.items()}
        )
        shares = {
            n: ShareKeys.from_record(take_step(Sessions(root, NodeConfig()), participants.to_record(), n))
            for n in setup.devices
        }
        inbox = {"kind": "Inbox", "session": setup.session, "device": "device-000000"}
        sealed = shares["device-000001"].sealed["device-000000"]
        record = ConfigRecord({**inbox, "sealed.names": ["device-000001"], "sealed.values": [sealed]})
        job = Job("personalized", 1, ("device-000000",), bound=1.0)
        reply = send({device_key(SECURE, "device-000000"): record}, job=job, secure_sum="pairwise")
        assert not reply.has_error(), reply.error.reason
        assert set(reply.content) == {"devices", "counts", device_key(SECURE, "device-000000")}
        found.append(reply.content.config_records[device_key(SECURE, "device-000000")]["words"])
    assert len(found[0]) == 4 * 33
    assert found[0] != found[1]
    assert np.count_nonzero(np.frombuffer(found[0], np.uint32)) > 25
