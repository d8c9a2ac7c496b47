"""The ClientApp: a node answers for each of its devices, and keeps to itself what is theirs."""

import json
import logging
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.supercore.task_identity import TaskIdentity

from clients import app as client
from clients.app import app
from clients.node import Hosting, node_worker
from clients.training import together
from clients.training.phase import local_plan, local_seed
from clients.updates.reply import DeviceResult
from clients.worker import Worker
from fl.adapters.files import load_adapter
from fl.algorithms.arms import EVERYONE, trained_arm
from fl.algorithms.schedule import rate_factor
from fl.core.errors import AudioError, ConfigError, RunError, StoreError
from fl.data.manifest import read_manifest, write_manifest
from fl.packed.blob import read_info
from fl.packed.folder import pack_folder
from fl.protocol.node import NodeConfig
from fl.protocol.wire import (
    COUNTS,
    DEVICES,
    JOB,
    SETTINGS_RECORD,
    SHARED,
    UPDATES,
    Job,
    device_key,
    settings_record,
    to_arrays,
)
from fl.settings.config import RunConfig
from sim.backends.serial import SerialGrid


def one_by_one(reply: RecordDict) -> RecordDict:
    """A reply with a record for each device and kind, whatever the form it came in."""
    ids = list(reply.config_records.get(DEVICES, {}).get("ids", []))
    known = {DEVICES: ids, COUNTS: (), UPDATES: ()}
    alone = RecordDict({key: record for key, record in reply.items() if key not in known})
    for place, device_id in enumerate(ids):
        numbers = {name: column[place] for name, column in reply.metric_records[COUNTS].items()}
        alone[device_key(COUNTS, device_id)] = MetricRecord(numbers)
        if UPDATES in reply:
            rows = {name: Array(stack.numpy()[place]) for name, stack in reply.array_records[UPDATES].items()}
            alone[device_key(UPDATES, device_id)] = ArrayRecord(rows)
    return alone


@pytest.fixture
def ask(config: RunConfig, worker: Worker) -> Callable[..., RecordDict]:
    """Send one job to a node, by default one that hosts everybody, and return what it answered."""

    def send(job: Job | None = None, *, shared: ArrayRecord | None = None, kind: str = MessageType.TRAIN) -> RecordDict:
        content = RecordDict({SETTINGS_RECORD: settings_record(config)})
        if job is not None:
            content[JOB] = job.to_record()
        if shared is not None:
            content[SHARED] = shared
        (reply,) = SerialGrid(app, 1).send_and_receive([Message(content, dst_node_id=1, message_type=kind)])
        assert not reply.has_error(), reply.error.reason
        return one_by_one(reply.content)

    return send


@pytest.fixture
def shared(config: RunConfig, worker: Worker) -> ArrayRecord:
    """Shared tensors as after some rounds. In a fresh adapter B is zero, and gates get no gradient from the first step."""
    arm = trained_arm("personalized", config)
    assert arm is not None
    fresh = worker.initial(arm.gate)
    return to_arrays(
        {name: fresh[name] if name.endswith("_A") else fresh[name] + 0.01 for name in worker.split(arm).shared}
    )


@pytest.fixture
def trainees(worker: Worker) -> tuple[str, ...]:
    return tuple(d for d in worker.task.device_ids() if not worker.task.is_new(d))


def job(*devices: str, arm: str = "personalized", **changes: object) -> Job:
    return Job(arm=arm, round=1, devices=devices, **changes)  # type: ignore[arg-type]


def broken(monkeypatch: pytest.MonkeyPatch, worker: Worker, device_id: str, error: Exception) -> None:
    """Make one device's data unreadable."""
    whole = worker.task.device

    def device(wanted: str) -> object:
        if wanted == device_id:
            raise error
        return whole(wanted)

    monkeypatch.setattr(worker.task, "device", device)


def test_the_roster_counts_training_examples_and_marks_new_people(
    ask: Callable[..., RecordDict], worker: Worker
) -> None:
    roster = ask(kind=MessageType.QUERY)
    assert set(roster) == {device_key(COUNTS, d) for d in worker.task.device_ids()}
    new = [d for d in worker.task.device_ids() if worker.task.is_new(d)]
    assert len(new) == 1
    for device_id in worker.task.device_ids():
        record = roster.metric_records[device_key(COUNTS, device_id)]
        wanted = 0 if device_id in new else len(worker.task.device(device_id).train)
        assert (record["examples"], record["new-person"]) == (wanted, int(device_id in new))


@pytest.mark.parametrize("nodes", [1, 2, 3, 9])
def test_nodes_of_a_simulation_share_the_devices_without_overlap(worker: Worker, nodes: int) -> None:
    parts = [Hosting(worker, NodeConfig(partition=i, partitions=nodes)).ids() for i in range(nodes)]
    assert sorted(d for part in parts for d in part) == sorted(worker.task.device_ids())
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_deployed_node_hosts_the_device_that_it_names(worker: Worker, trainees: tuple[str, ...]) -> None:
    assert Hosting(worker, NodeConfig(device_id=trainees[1])).ids() == (trainees[1],)
    with pytest.raises(ConfigError, match=r"nobody.*known devices"):
        Hosting(worker, NodeConfig(device_id="nobody"))
    with pytest.raises(ConfigError, match="--node-config"):
        Hosting(worker, NodeConfig())


def test_training_answers_with_shared_tensors_and_keeps_the_gates(
    ask: Callable[..., RecordDict], worker: Worker, shared: ArrayRecord, trainees: tuple[str, ...]
) -> None:
    reply = ask(job(*trainees), shared=shared)
    for device_id in trainees:
        sent = reply.array_records[device_key(UPDATES, device_id)]
        assert set(sent) == set(shared)
        assert any(sent[n].numpy().any() for n in shared)
        counts = reply.metric_records[device_key(COUNTS, device_id)]
        assert counts["bytes-up"] == sum(len(array.data) for array in sent.values())
        assert counts["bytes-down"] == sum(len(array.data) for array in shared.values())
        assert counts["examples"] == len(worker.task.device(device_id).train)
        assert worker.store.rounds("personalized", device_id) == [1]


def test_a_mistake_in_training_cannot_send_the_gates(
    config: RunConfig, worker: Worker, shared: ArrayRecord, trainees: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = worker.initial("self")
    monkeypatch.setattr(
        together, "train_device", lambda *_: DeviceResult(trainees[0], {"examples": 3}, shared=everything)
    )
    content = RecordDict({JOB: job(trainees[0]).to_record(), SETTINGS_RECORD: settings_record(config), SHARED: shared})
    (reply,) = SerialGrid(app, 1).send_and_receive([Message(content, dst_node_id=1, message_type=MessageType.TRAIN)])
    assert not reply.content.array_records
    assert reply.content.metric_records[device_key(COUNTS, trainees[0])] == {"failed": 1}


def test_each_device_gets_the_same_whoever_else_is_on_its_node(
    ask: Callable[..., RecordDict], shared: ArrayRecord, trainees: tuple[str, ...]
) -> None:
    key = device_key(UPDATES, trainees[0])
    alone = ask(job(trainees[0]), shared=shared).array_records[key]
    last = ask(job(*trainees[::-1]), shared=shared).array_records[key]
    assert {n: a.data for n, a in alone.items()} == {n: a.data for n, a in last.items()}


@pytest.mark.parametrize(
    "error",
    [AudioError("오늘 meeting.wav is silent"), OSError("disk of 김민수 is gone"), RuntimeError("shape of bug")],
)
def test_a_device_that_fails_is_counted_and_the_others_go_on(
    ask: Callable[..., RecordDict],
    worker: Worker,
    shared: ArrayRecord,
    trainees: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    broken(monkeypatch, worker, trainees[0], error)
    with caplog.at_level(logging.WARNING, "idiolect.client"):
        reply = ask(job(*trainees), shared=shared)
    assert dict(reply.metric_records[device_key(COUNTS, trainees[0])]) == {"failed": 1}
    assert device_key(UPDATES, trainees[0]) not in reply
    assert all(device_key(UPDATES, d) in reply for d in trainees[1:])
    assert str(error) in caplog.text  # the reason is in the device's own log, and there alone


def test_a_device_whose_data_cannot_be_read_does_not_hide_the_others_from_the_roster(
    ask: Callable[..., RecordDict], worker: Worker, trainees: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, worker, trainees[0], AudioError("corrupt"))
    roster = ask(kind=MessageType.QUERY).metric_records
    assert dict(roster[device_key(COUNTS, trainees[0])]) == {"failed": 1}
    assert all(roster[device_key(COUNTS, d)]["examples"] for d in trainees[1:])


def test_a_device_that_is_not_hosted_is_refused(
    ask: Callable[..., RecordDict], worker: Worker, shared: ArrayRecord
) -> None:
    first = worker.task.device_ids()[0]
    reply = ask(job(first, "stranger"), shared=shared)
    assert device_key(UPDATES, first) in reply
    assert dict(reply.metric_records[device_key(COUNTS, "stranger")]) == {"failed": 1}


@pytest.mark.parametrize("arm", ["neutral", "zero-shot"])
def test_arms_that_only_evaluate_are_not_trained(
    ask: Callable[..., RecordDict], shared: ArrayRecord, trainees: tuple[str, ...], arm: str
) -> None:
    with pytest.raises(AssertionError, match="it only evaluates"):  # of ``ask``: the reply is an error
        ask(job(trainees[0], arm=arm), shared=shared)


def test_a_new_person_is_never_trained(ask: Callable[..., RecordDict], worker: Worker, shared: ArrayRecord) -> None:
    (new,) = [d for d in worker.task.device_ids() if worker.task.is_new(d)]
    reply = ask(job(new), shared=shared)
    assert set(reply) == {device_key(COUNTS, new)}
    assert worker.store.rounds("personalized", new) == []


def test_centralized_trains_on_everybodys_data_with_everybodys_batches(
    ask: Callable[..., RecordDict],
    config: RunConfig,
    worker: Worker,
    trainees: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fresh = to_arrays(dict(worker.initial("none")))
    counts = ask(job(EVERYONE, arm="centralized"), shared=fresh).metric_records[device_key(COUNTS, EVERYONE)]
    assert counts["steps"] == config.train.local_steps
    arm = trained_arm("centralized", config)
    assert arm is not None
    plan = local_plan(worker, job(EVERYONE, arm="centralized"), EVERYONE, arm)
    assert plan.batch_size == config.train.batch_size * len(trainees)
    monkeypatch.setattr(
        "fl.algorithms.plan.EVERYONE_BATCHES", 2
    )  # three devices' batches do not fit into one: more steps of two
    plan = local_plan(worker, job(EVERYONE, arm="centralized"), EVERYONE, arm)
    assert (plan.steps, plan.batch_size) == (math.ceil(config.train.local_steps * 3 / 2), 2 * config.train.batch_size)
    assert counts["examples"] == sum(len(worker.task.device(d).train) for d in trainees)


def test_finetuning_goes_on_at_the_rate_where_the_schedule_ended(
    config: RunConfig, worker: Worker, trainees: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"rounds": 10, "private-share": 0.0, "learning-rate": 1.0, "finetune-steps": 7}
    monkeypatch.setattr(worker, "config", config.changed({**values, "arms": "global,global+finetune"}))
    arm = trained_arm("global+finetune", worker.config)
    assert arm is not None
    finetuning = replace(job(trainees[0], arm=arm.name), phase=arm.schedule.phase(1))
    plan = local_plan(worker, finetuning, trainees[0], arm)
    assert plan.steps == 7
    assert plan.learning_rate == pytest.approx(rate_factor("cosine", 10, 10))
    assert local_seed(worker, finetuning, "ann") != local_seed(
        worker, job("ann"), "ann"
    )  # not round 1's sentences again


@pytest.fixture
def deployed(config: RunConfig) -> Iterator[Context]:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})


def test_a_deployed_device_never_acts_for_everybody_and_keeps_its_state_where_its_owner_said(
    config: RunConfig, worker: Worker, trainees: tuple[str, ...], deployed: Context, tmp_path: Path, shared: ArrayRecord
) -> None:
    deployed.node_config = {"device-id": trainees[0], "store": str(tmp_path / "own"), "manifest": "run"}
    content = RecordDict(
        {JOB: job(trainees[0], EVERYONE).to_record(), SETTINGS_RECORD: settings_record(config), SHARED: shared}
    )
    reply = app(Message(content, dst_node_id=1, message_type=MessageType.TRAIN), deployed)
    assert dict(reply.content.metric_records[device_key(COUNTS, EVERYONE)]) == {"failed": 1}
    assert list((tmp_path / "own").rglob("state-000001.safetensors"))
    assert worker.store.rounds("personalized", trainees[0]) == []


def evaluate_finally(
    ask: Callable[..., RecordDict], shared: ArrayRecord, *devices: str, arm: str = "personalized"
) -> RecordDict:
    return ask(job(*devices, arm=arm, split="test", final=True), shared=shared, kind=MessageType.EVALUATE)


def test_transcripts_and_the_finished_adapter_stay_on_the_devices_disk(
    ask: Callable[..., RecordDict], worker: Worker, shared: ArrayRecord, trainees: tuple[str, ...]
) -> None:
    ask(job(*trainees), shared=shared)
    reply = evaluate_finally(ask, shared, *trainees)
    sent = recorddict_to_proto(reply).SerializeToString()
    assert not reply.array_records
    for device_id in trainees:
        folder = worker.store.folder("personalized", device_id)
        rows = [
            json.loads(line) for line in (folder / client.PREDICTIONS_NAME).read_text(encoding="utf-8").splitlines()
        ]
        test = worker.task.device(device_id).test
        assert [(r["utterance"], r["reference"]) for r in rows] == [(e.key, e.target) for e in test]
        assert {r["new_person"] for r in rows} == {False}
        for row in rows:
            assert row["reference"].encode() not in sent
        tensors, info = load_adapter(folder / "adapter")
        assert set(tensors) == set(worker.initial("self"))
        assert info.base_fingerprint == worker.task.fingerprint
        assert read_info(pack_folder(folder / "adapter")).tokenizer == worker.task.base.tokenizer.digest
        assert all((tensors[name].numpy() == shared[name].numpy()).all() for name in shared)
        assert any(tensors[name].any() for name in tensors if "gate_" in name)


def test_a_new_person_is_tested_with_neutral_gates_and_marked_as_new(
    ask: Callable[..., RecordDict], worker: Worker, shared: ArrayRecord
) -> None:
    (new,) = [d for d in worker.task.device_ids() if worker.task.is_new(d)]
    evaluate_finally(ask, shared, new, arm="neutral")
    folder = worker.store.folder("neutral", new)
    tensors, _ = load_adapter(folder / "adapter")
    assert not any(tensors[name].any() for name in tensors if "gate_" in name)
    rows = (folder / client.PREDICTIONS_NAME).read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["new_person"] for line in rows} == {True}


def test_a_full_disk_at_the_end_fails_one_device_and_not_its_neighbours(
    ask: Callable[..., RecordDict],
    shared: ArrayRecord,
    trainees: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = client.write_atomically

    def full(path: Path, data: bytes) -> None:
        if json.loads(data.splitlines()[0])["device"] == trainees[0]:
            raise OSError(28, "No space left on device")
        whole(path, data)

    monkeypatch.setattr(client, "write_atomically", full)
    reply = evaluate_finally(ask, shared, *trainees)
    assert dict(reply.metric_records[device_key(COUNTS, trainees[0])]) == {"failed": 1}
    assert all("wer.reference" in reply.metric_records[device_key(COUNTS, d)] for d in trainees[1:])


def test_damaged_private_state_is_a_failed_device_and_not_a_fresh_start(
    ask: Callable[..., RecordDict], worker: Worker, shared: ArrayRecord, trainees: tuple[str, ...]
) -> None:
    ask(job(*trainees), shared=shared)
    path = worker.store.folder("personalized", trainees[0]) / "state-000001.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    second = Job(arm="personalized", round=2, devices=trainees)
    reply = ask(second, shared=shared)
    assert dict(reply.metric_records[device_key(COUNTS, trainees[0])]) == {"failed": 1}
    assert device_key(UPDATES, trainees[1]) in reply
    with pytest.raises(StoreError):
        worker.store.load("personalized", trainees[0], {}, before=2)


@pytest.mark.parametrize("output", ["", "where/the/aggregator/says"])
def test_a_deployed_device_that_was_given_no_place_for_private_state_trains_nothing(
    config: RunConfig, deployed: Context, trainees: tuple[str, ...], output: str, caplog: pytest.LogCaptureFixture
) -> None:
    deployed.node_config = {"device-id": trainees[0]}
    settings = settings_record(config.changed({"output": output}))
    message = Message(
        RecordDict({JOB: job(trainees[0]).to_record(), SETTINGS_RECORD: settings}),
        dst_node_id=1,
        message_type=MessageType.TRAIN,
    )
    with pytest.raises(RunError, match=r"^ConfigError on the device, whose log says more$"):
        app(message, deployed)
    assert "store='/path/to/private/state'" in caplog.text


def test_a_simulation_without_a_folder_has_no_place_for_private_state(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match="set output in the run-config"):
        node_worker(config.changed({"output": ""}), NodeConfig(partitions=1))


# What an aggregator may not decide on a real device


@pytest.fixture
def ask_deployed(
    config: RunConfig, worker: Worker, trainees: tuple[str, ...], shared: ArrayRecord, tmp_path: Path
) -> Callable[..., Message]:
    """What a deployed device answers to a job, with its owner's and the run's settings changed."""

    def send(
        asked: Job | None = None,
        *,
        kind: str = MessageType.TRAIN,
        owner: dict[str, object] | None = None,
        **run: object,
    ) -> Message:
        grid = SerialGrid(app, 1)
        own = {"device-id": trainees[0], "store": str(tmp_path / "own"), "manifest": "run"} if owner is None else owner
        grid._contexts[1].node_config = own  # type: ignore[assignment]
        record = (asked or job(trainees[0])).to_record()
        content = RecordDict({JOB: record, SETTINGS_RECORD: settings_record(config.changed(run)), SHARED: shared})
        (reply,) = grid.send_and_receive([Message(content, dst_node_id=1, message_type=kind)])
        return reply

    return send


def states(tmp_path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(tmp_path)): p.read_bytes() for p in sorted((tmp_path / "own").rglob("state-*"))}


def test_what_a_deployed_device_cannot_use_is_said_in_its_own_log_alone(
    ask_deployed: Callable[..., Message], trainees: tuple[str, ...], manifest: Path, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    mine = [replace(u, id=f"x{n}") for n, u in enumerate(read_manifest(manifest)) if u.speaker == trainees[0]]
    again = replace(mine[1], id="again", text="전혀 다른 말", spans=(), loanwords=())
    write_manifest(tmp_path / "own.jsonl", [*mine, replace(mine[0], id="gone", audio=tmp_path / "gone.wav"), again])
    own = {"device-id": trainees[0], "store": str(tmp_path / "own"), "manifest": str(tmp_path / "own.jsonl")}
    reply = ask_deployed(kind=MessageType.QUERY, owner=own, language="ko")
    assert f"left out: {tmp_path / 'own.jsonl'}:9: {tmp_path / 'gone.wav'}: no such audio file" in caplog.text
    assert f"with another text or speaker; first in {tmp_path / 'own.jsonl'}:10" in caplog.text
    assert b"gone" not in recorddict_to_proto(reply.content).SerializeToString()
    assert set(reply.content.metric_records[COUNTS]) == {"examples", "new-person", "simulated"}
    lost = [replace(u, audio=tmp_path / "gone.wav") for u in mine[:2]]
    others = [replace(mine[n], id=f"o{n}", speaker="somebody else") for n in range(3)]
    write_manifest(tmp_path / "lost.jsonl", [*lost, *others])
    reply = ask_deployed(kind=MessageType.QUERY, owner={**own, "manifest": str(tmp_path / "lost.jsonl")}, language="ko")
    assert "has no data here: none of its 2 examples can be used; the first: " in caplog.text
    assert "gone" not in str(reply.error.reason)


@pytest.mark.parametrize("kind", [MessageType.TRAIN, MessageType.EVALUATE, MessageType.QUERY])
@pytest.mark.parametrize(
    ("owner", "run", "why"),
    [
        ({}, {}, r"DemandError: no data: .*manifest='/path/to/manifest\.jsonl'"),
        ({"manifest": "run"}, {"base": "someone/else"}, r"DemandError: base = 'someone/else' .*bases='\.\.\.'"),
        ({"manifest": "run"}, {"base": "/etc"}, "DemandError: base = '/etc' is none that this device loads"),
        ({"manifest": "run", "bases": "whisper-base"}, {}, "DemandError: base = 'random:whisper-nano' is none"),
    ],
    ids=["whose speech", "a repository", "a folder", "not the owner's"],
)
def test_speech_and_base_of_a_device_are_its_owners_choice(
    ask_deployed: Callable[..., Message], trainees: tuple[str, ...], tmp_path: Path, kind: str, owner: dict[str, object],
    run: dict[str, object], why: str,
) -> None:  # fmt: skip
    own = {"device-id": trainees[0], "store": str(tmp_path / "own"), **owner}
    reply = ask_deployed(kind=kind, owner=own, **run)
    assert reply.has_error()
    assert re.search(why, str(reply.error.reason))
    assert not states(tmp_path)


def test_no_message_of_another_run_touches_what_a_run_keeps_and_a_resumed_one_finds_it(
    ask_deployed: Callable[..., Message], trainees: tuple[str, ...], tmp_path: Path
) -> None:
    ours, theirs = "a" * 32, "b" * 32
    for number in (1, 2):
        assert ask_deployed(replace(job(trainees[0]), round=number, run=ours), rounds=3).has_content()
    kept = states(tmp_path)
    assert [Path(name).parts[1] for name in kept] == [ours] * 2
    for number in (1, 2, 3):
        assert ask_deployed(replace(job(trainees[0]), round=number, run=theirs), rounds=3).has_content()
    assert {name: data for name, data in states(tmp_path).items() if ours in name} == kept
    assert ask_deployed(replace(job(trainees[0]), round=3, run=ours), rounds=3).has_content()
    assert [Path(name).name for name in states(tmp_path) if ours in name] == [
        f"state-00000{n}.safetensors" for n in (1, 2, 3)
    ]
    with pytest.raises(ConfigError, match="not a job"):
        Job.from_record({**job(trainees[0]).to_record(), "run": "../../elsewhere"})


@pytest.mark.parametrize(
    ("asked", "run", "why"),
    [
        ({"round": 10**9}, {}, "round 1000000000 is none of a run of 1 rounds"),
        ({}, {"local-steps": 100_000}, r"200,000 examples .*max-examples"),
        ({}, {"batch-size": 4096, "local-steps": 25}, r"102,400 examples .*max-examples"),
    ],
    ids=["round", "steps", "batch"],
)
def test_a_job_that_no_run_has_or_that_never_ends_is_refused_before_anything_is_done(
    ask_deployed: Callable[..., Message], trainees: tuple[str, ...], tmp_path: Path, asked: dict[str, int],
    run: dict[str, object], why: str,
) -> None:  # fmt: skip
    reply = ask_deployed(replace(job(trainees[0]), **asked), **run)  # type: ignore[arg-type]
    assert reply.has_error()
    assert re.search(f"DemandError.*{why}", str(reply.error.reason))
    assert not states(tmp_path)


@pytest.mark.parametrize("kind", ["train.default", "evaluate.default", "query.default"])
def test_another_name_of_a_message_is_no_way_around_what_is_asked_of_it(
    ask_deployed: Callable[..., Message], tmp_path: Path, kind: str
) -> None:
    reply = ask_deployed(kind=kind, **{"local-steps": 100_000})
    assert "GuardError: nothing was done" in str(reply.error.reason)
    assert not states(tmp_path)


# What a device says of its errors


def numbers_said(reply: Message) -> set[str]:
    assert not reply.has_error(), reply.error.reason
    return set(reply.content.metric_records[COUNTS])


PROTECTED = [
    ({}, {"dp": "local", "noise-multiplier": 1.0}),
    ({}, {"secure-sum": "pairwise"}),
    ({"secure-sum": "pairwise"}, {}),
    ({"local-noise": 0.5}, {}),
    ({"evaluation": "off"}, {}),
]


@pytest.mark.parametrize(("owner", "run"), PROTECTED, ids=str)
def test_exact_counts_do_not_bypass_noise_and_masks_and_what_was_transcribed_is_kept_all_the_same(
    ask_deployed: Callable[..., Message], trainees: tuple[str, ...], tmp_path: Path, owner: dict[str, object],
    run: dict[str, object],
) -> None:  # fmt: skip
    own = {"device-id": trainees[0], "store": str(tmp_path / "own"), "manifest": "run", **owner}
    for final in (False, True):
        asked = job(trainees[0], final=final)
        said = numbers_said(ask_deployed(asked, kind=MessageType.EVALUATE, owner=own, **run))
        assert not any("." in name for name in said)
        assert bool(list((tmp_path / "own").rglob(client.PREDICTIONS_NAME))) == final
    opted_in = ask_deployed(kind=MessageType.EVALUATE, owner={**own, "evaluation": "full"}, **run)
    assert "mer.reference" in numbers_said(opted_in)


def test_a_loss_does_not_bypass_noise_either(
    ask_deployed: Callable[..., Message], trainees: tuple[str, ...], tmp_path: Path
) -> None:
    assert "loss" in numbers_said(ask_deployed())
    noisy = {"dp": "local", "noise-multiplier": 1.0}
    reply = ask_deployed(job(trainees[0], bound=1.0, noise=1.0), **noisy)
    assert UPDATES in reply.content
    assert numbers_said(reply) == {"examples", "steps", "bytes-up", "bytes-down", "seconds-train"}


def test_a_coarse_evaluation_is_one_rate_in_twentieths_and_says_nothing_of_spellings(
    ask_deployed: Callable[..., Message], trainees: tuple[str, ...], tmp_path: Path
) -> None:
    own = {"device-id": trainees[0], "store": str(tmp_path / "own"), "manifest": "run"}
    full = ask_deployed(kind=MessageType.EVALUATE, owner=own).content.metric_records[COUNTS]
    reply = ask_deployed(kind=MessageType.EVALUATE, owner={**own, "evaluation": "coarse"})
    said = reply.content.metric_records[COUNTS]
    fields = ("substitutions", "deletions", "insertions", "reference")
    assert {name for name in said if "." in name} == {f"mer.{field}" for field in fields}
    *errors, reference = (full[f"mer.{field}"][0] for field in fields)  # type: ignore[index]
    assert [said[f"mer.{field}"] for field in fields] == [[round(20 * sum(errors) / reference)], [0], [0], [20]]


def test_evaluations_are_counted_on_the_device_whatever_the_run(
    ask_deployed: Callable[..., Message], trainees: tuple[str, ...], tmp_path: Path
) -> None:
    own = {"device-id": trainees[0], "store": str(tmp_path / "own"), "manifest": "run", "max-evaluations": 2}
    answers = [
        numbers_said(ask_deployed(job(trainees[0], run=32 * letter), kind=MessageType.EVALUATE, owner=own))
        for letter in "abc"
    ]
    assert ["mer.reference" in said for said in answers] == [True, True, False]
    (tmp_path / "own" / "evaluations").write_text("many")
    assert ask_deployed(kind=MessageType.EVALUATE, owner=own).has_error()


def test_the_guard_itself_keeps_counts_that_the_owner_does_not_say(
    ask_deployed: Callable[..., Message], trainees: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "said", lambda result, *_: result)
    for evaluation in ("off", "coarse"):
        own = {"device-id": trainees[0], "store": str(tmp_path / "own"), "manifest": "run", "evaluation": evaluation}
        reply = ask_deployed(job(trainees[0], final=True), kind=MessageType.EVALUATE, owner=own)
        assert "GuardError: nothing was sent: counts holds" in str(reply.error.reason)
