"""Whole runs of a small Whisper: what the ServerApp and the ClientApp do together, over a grid in this process."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.common.serde import recorddict_to_proto
from safetensors.torch import load_file

from clients.app import app as client_app
from clients.store import folder_name
from clients.training import phase
from clients.training.evaluate import KnownEvaluations, evaluate
from fl.adapters.files import load_adapter
from fl.algorithms.arms import EVERYONE, HELD_OUT, trained_arm
from fl.core.errors import AdapterError, BaseModelError, ConfigError, RunError
from fl.data.manifest import read_manifest, write_manifest
from fl.protocol.wire import COUNTS, DEVICES, JOB, UPDATES, Job, split_key
from fl.runs.files import read_rows
from fl.runs.schema import LeftOutRow
from fl.runs.status import RunState, read_status
from fl.settings.config import RunConfig
from fl.settings.names import ARMS
from fl.tasks.speech.task import SpeechTask
from fl.tasks.task import DeviceExamples
from sim.backends.serial import SerialGrid
from strategies import app as server_app
from strategies.app import run_server

MakeRun = Callable[..., RunConfig]
Rows = Callable[[Path], list[dict[str, Any]]]
Tensors = Callable[[Path], dict[str, bytes]]


class Killed(BaseException):
    """The end of the process."""


class CountingGrid(SerialGrid):
    """A grid that remembers which arm was trained in which round."""

    def __init__(self) -> None:
        super().__init__(client_app)
        self.trained: list[tuple[str, int]] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        for message in messages:
            if message.metadata.message_type == MessageType.TRAIN:
                job = Job.from_record(message.content.config_records[JOB])
                self.trained.append((job.arm, job.round))
        return super().push_messages(messages)


class MortalGrid(SerialGrid):
    """A grid whose process dies after the devices of one round have trained, before the aggregator hears of it."""

    def __init__(self, dies_in_round: int) -> None:
        super().__init__(client_app)
        self.dies_in_round = dies_in_round

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        messages = list(messages)
        replies = list(super().send_and_receive(messages, timeout=timeout))
        for message in messages:
            if message.metadata.message_type != MessageType.TRAIN:
                continue
            if Job.from_record(message.content.config_records[JOB]).round == self.dies_in_round:
                raise Killed
        return replies


class Wiretap:
    """A ClientApp with everything that goes in and comes out of it on record."""

    def __init__(self) -> None:
        self.requests: list[RecordDict] = []
        self.replies: list[RecordDict] = []

    def __call__(self, message: Message, context: Context) -> Message:
        self.requests.append(message.content)
        reply = client_app(message, context)
        self.replies.append(reply.content)
        return reply

    def bytes(self) -> bytes:
        return b"\n".join(recorddict_to_proto(c).SerializeToString() for c in (*self.requests, *self.replies))


@pytest.fixture(scope="module")
def whole(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The personalized arm without an interruption, on two nodes."""
    return run_server(SerialGrid(client_app), make_run(tmp_path_factory.mktemp("whole") / "run"), 1)


# Resuming


@pytest.mark.parametrize("rounds_done", [1, 2])
def test_a_run_killed_between_rounds_resumes_to_the_same_bytes(
    make_run: MakeRun, rows_of: Rows, tensors_of: Tensors, whole: Path, tmp_path: Path, rounds_done: int
) -> None:
    def kill(what: str, done: int, total: int) -> None:
        if done == rounds_done:
            raise Killed

    config = make_run(tmp_path / "run")
    with pytest.raises(Killed):
        run_server(SerialGrid(client_app), config, 1, kill)
    folder = run_server(SerialGrid(client_app), config, 2)
    assert rows_of(folder) == rows_of(whole)
    assert tensors_of(folder) == tensors_of(whole)


@pytest.mark.parametrize("dies_in_round", [1, 3])
def test_a_run_killed_after_devices_wrote_their_gates_and_before_the_checkpoint_resumes_to_the_same_bytes(
    make_run: MakeRun, rows_of: Rows, tensors_of: Tensors, whole: Path, tmp_path: Path, dies_in_round: int
) -> None:
    config = make_run(tmp_path / "run")
    with pytest.raises(Killed):
        run_server(MortalGrid(dies_in_round), config, 1)
    written = {p.name for p in (tmp_path / "run" / "devices").rglob("state-*")}
    assert f"state-{dies_in_round:06d}.safetensors" in written
    folder = run_server(SerialGrid(client_app), config, 2)
    assert rows_of(folder) == rows_of(whole)
    assert tensors_of(folder) == tensors_of(whole)


def test_a_run_has_a_checkpoint_and_the_private_state_of_each_device(
    whole: Path, tensors_of: Tensors, manifest: Path
) -> None:
    names = Counter(Path(name).name for name in tensors_of(whole))
    assert names["personalized.safetensors"] == 2  # that of the round before too
    assert [names[f"state-00000{number}.safetensors"] for number in (1, 2, 3)] == [3, 3, 3]
    assert names["adapter_model.safetensors"] == 3 + 1  # of each device, and for people who took no part


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rounds": 4}, "federation.rounds was 3, is 4"),
        ({"gate": "low-rank"}, "adapter.gate was 'self', is 'low-rank'"),
        ({"learning_rate": 0.5, "seed": 2}, "seed was 1, is 2, train.learning-rate was 0.001, is 0.5"),
    ],
)
def test_a_folder_of_a_run_with_other_settings_is_refused_by_their_names(
    make_run: MakeRun, whole: Path, tensors_of: Tensors, changes: dict[str, Any], named: str
) -> None:
    before = tensors_of(whole)
    with pytest.raises(RunError) as caught:
        run_server(SerialGrid(client_app), make_run(whole, **changes), 1)
    assert named in str(caught.value)
    assert "another output" in str(caught.value)
    assert tensors_of(whole) == before


def test_a_run_that_was_refused_before_it_began_leaves_its_folder_free_for_other_settings(
    make_run: MakeRun, tmp_path: Path
) -> None:
    with pytest.raises(BaseModelError):
        run_server(SerialGrid(client_app), make_run(tmp_path / "run", base="random:nano"), 1)
    assert not list((tmp_path / "run").iterdir())
    with pytest.raises(ConfigError, match="bulyan needs at least 11"):
        run_server(SerialGrid(client_app), make_run(tmp_path / "run", algorithm="bulyan", hostile_share=0.4), 1)
    assert not list((tmp_path / "run").iterdir())
    assert (run_server(SerialGrid(client_app), make_run(tmp_path / "run"), 1) / "config.toml").exists()


def test_a_run_that_was_begun_keeps_its_settings_when_it_cannot_go_on(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_server(SerialGrid(client_app), make_run(tmp_path / "run"), 1)
    before = {path.name for path in folder.iterdir()}

    def no_node(grid: Any, config: RunConfig) -> None:
        raise RunError("no node came up")

    monkeypatch.setattr(server_app, "ask_roster", no_node)
    with pytest.raises(RunError, match="no node"):
        run_server(SerialGrid(client_app), make_run(tmp_path / "run"), 1)
    assert {path.name for path in folder.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(RunError, match=r"cannot be written \(.+\): give another output$"):
        run_server(SerialGrid(client_app), make_run(tmp_path / "file" / "run"), 1)


def test_a_run_does_not_lie_among_recordings(make_run: MakeRun, manifest: Path) -> None:
    before = {path.name for path in manifest.parent.iterdir()}
    with pytest.raises(RunError, match="holds the manifest, and a run's folder may have to be removed"):
        run_server(SerialGrid(client_app), make_run(manifest.parent), 1)
    assert {path.name for path in manifest.parent.iterdir()} == before


# The same numbers


@pytest.mark.parametrize("nodes", [1, 3])
def test_the_number_of_nodes_does_not_change_the_numbers(
    make_run: MakeRun, rows_of: Rows, tensors_of: Tensors, whole: Path, tmp_path: Path, nodes: int
) -> None:
    folder = run_server(SerialGrid(client_app, nodes), make_run(tmp_path / "run"), 1)
    assert rows_of(folder) == rows_of(whole)
    assert tensors_of(folder) == tensors_of(whole)


def test_another_seed_gives_other_numbers(make_run: MakeRun, rows_of: Rows, whole: Path, tmp_path: Path) -> None:
    folder = run_server(SerialGrid(client_app), make_run(tmp_path / "run", seed=2, **{"data.seed": 1}), 1)
    losses = [[row["train_loss"] for row in rows_of(f)] for f in (folder, whole)]
    assert losses[0] != losses[1]


# Devices that cannot take part


def changed(manifest: Path, folder: Path, **splits: str) -> Path:
    """The manifest with all that some speakers said in one split."""
    path = folder / "manifest.jsonl"
    write_manifest(
        path, [replace(u, split=splits.get(u.speaker.replace(" ", ""), u.split)) for u in read_manifest(manifest)]
    )
    return path


@pytest.fixture
def trainee(whole: Path, rows_of: Rows) -> str:
    """A device that trains."""
    return next(row["device"] for row in rows_of(whole) if row["steps"])


def test_a_device_without_training_data_only_tests(
    make_run: MakeRun, rows_of: Rows, manifest: Path, tmp_path: Path, trainee: str
) -> None:
    data = changed(manifest, tmp_path, **{trainee.replace(" ", ""): "test"})
    config = make_run(tmp_path / "run", manifest=str(data), rounds=1, arms="personalized,neutral")
    folder = run_server(SerialGrid(client_app), config, 1)
    mine = [row for row in rows_of(folder) if row["device"] == trainee]
    assert [(row["arm"], row["split"], row["steps"], row["new_person"]) for row in mine] == [
        ("neutral", "test", 0, True)
    ]
    transcripts = [json.loads(line) for line in (folder / "transcripts.jsonl").read_text("utf-8").splitlines()]
    assert {t["new_person"] for t in transcripts if t["device"] == trainee} == {True}
    assert len({row["device"] for row in rows_of(folder) if row["steps"]}) == 2


def test_a_damaged_recording_is_left_out_and_nobody_else_is(
    make_run: MakeRun,
    rows_of: Rows,
    manifest: Path,
    tmp_path: Path,
    trainee: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF, but not for long")
    utterances = read_manifest(manifest)
    victim = next(i for i, u in enumerate(utterances) if u.speaker == trainee)
    utterances[victim] = replace(utterances[victim], audio=broken)
    write_manifest(tmp_path / "manifest.jsonl", utterances)
    config = make_run(tmp_path / "run", manifest=str(tmp_path / "manifest.jsonl"), rounds=1)
    folder = run_server(SerialGrid(client_app), config, 1)
    assert len({row["device"] for row in rows_of(folder) if row["steps"]}) == 3
    assert f"manifest.jsonl:{victim + 1}: {broken}: cannot be read as audio" in caplog.text
    (row,) = read_rows(folder / "left-out.jsonl", LeftOutRow)
    assert (row.device, row.example) == (trainee, utterances[victim].id)
    broken.unlink()  # it cannot be used either way, and so the run may go on
    assert run_server(SerialGrid(client_app), config, 1) == folder
    utterances[victim] = replace(utterances[victim], audio=utterances[victim - 1].audio)
    write_manifest(tmp_path / "manifest.jsonl", utterances)
    with pytest.raises(RunError, match=r"1 examples were left out when this run began, 0 are now"):
        run_server(SerialGrid(client_app), config, 1)


def test_why_a_device_failed_is_said_on_the_terminal(
    make_run: MakeRun, tmp_path: Path, trainee: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load, asked = SpeechTask.device, Counter[str]()

    def sometimes(task: SpeechTask, device_id: str) -> DeviceExamples:
        asked[device_id] += 1
        if device_id == trainee and asked[device_id] > 1:
            raise OSError("the disk is gone")
        return load(task, device_id)

    monkeypatch.setattr(SpeechTask, "device", sometimes)
    run_server(SerialGrid(client_app), make_run(tmp_path / "run", rounds=1, evaluate_every=0), 1)
    assert f"round 1, arm personalized: {trainee} left out: failed: OSError: the disk is gone" in caplog.text


def test_a_device_that_diverges_in_one_round_is_left_out_of_that_round(
    make_run: MakeRun, rows_of: Rows, tmp_path: Path, trainee: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker = trainee.split()[-1]
    train = phase.train_locally
    calls = Counter[str]()

    def sometimes(*args: Any, **options: Any) -> Any:
        mine = all(e.key.startswith(f"{speaker}-") for e in args[4])
        calls["mine"] += mine
        if mine and calls["mine"] == 2:
            raise AdapterError("training diverged")
        return train(*args, **options)

    monkeypatch.setattr(phase, "train_locally", sometimes)
    folder = run_server(SerialGrid(client_app), make_run(tmp_path / "run", evaluate_every=0), 1)
    trained = {(row["round"], row["device"]) for row in rows_of(folder) if row["steps"]}
    assert (2, trainee) not in trained
    assert {(1, trainee), (3, trainee)} < trained
    assert len(trained) == 3 * 3 - 1


def test_a_run_without_any_device_that_trains_says_so(make_run: MakeRun, manifest: Path, tmp_path: Path) -> None:
    data = changed(manifest, tmp_path, **{f"화자{i}": "test" for i in range(4)})
    with pytest.raises(RunError, match="none of 2 nodes hosts a device with training data"):
        run_server(SerialGrid(client_app), make_run(tmp_path / "run", manifest=str(data)), 1)


# All seven arms, with a tap on the wire


@pytest.fixture(scope="module")
def comparison(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Wiretap, RunConfig]:
    """One round of every arm; the finished folder and everything that was said."""
    config = make_run(
        tmp_path_factory.mktemp("comparison") / "run",
        arms=",".join(ARMS),
        rounds=1,
        evaluate_every=0,
        finetune_steps=3,
    )
    tap = Wiretap()
    return run_server(SerialGrid(tap), config, 1), tap, config  # type: ignore[arg-type]


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def test_every_arm_is_in_the_results_and_in_the_transcripts(comparison: tuple[Path, Wiretap, RunConfig]) -> None:
    folder, _, _ = comparison
    tested = {row["arm"] for row in lines(folder, "results.jsonl") if row["split"] == "test"}
    assert tested == set(ARMS)
    assert {row["arm"] for row in lines(folder, "transcripts.jsonl")} == set(ARMS)
    assert set(json.loads((folder / "costs.json").read_text(encoding="utf-8"))["seconds"]) == set(ARMS)


def test_every_arm_is_tested_on_the_same_sentences(comparison: tuple[Path, Wiretap, RunConfig]) -> None:
    folder, _, _ = comparison
    tested: dict[str, set[tuple[str, str]]] = {arm: set() for arm in ARMS}
    for row in lines(folder, "transcripts.jsonl"):
        if not row["new_person"]:
            tested[row["arm"]].add((row["device"], row["utterance"]))
    assert len({frozenset(sentences) for sentences in tested.values()}) == 1
    assert {device for device, _ in tested["global"]} == {
        row["device"] for row in lines(folder, "results.jsonl") if row["arm"] == "local" and row["steps"]
    }


def test_held_out_speakers_are_never_trained_and_are_tested_where_it_means_something(
    comparison: tuple[Path, Wiretap, RunConfig],
) -> None:
    folder, tap, _ = comparison
    rows = [row for row in lines(folder, "results.jsonl") if row["new_person"]]
    (new,) = {row["device"] for row in rows}
    assert {row["arm"] for row in rows} == set(HELD_OUT)
    assert all(row["split"] == "test" and row["steps"] == 0 for row in rows)
    assert {row["arm"] for row in lines(folder, "transcripts.jsonl") if row["device"] == new} == set(HELD_OUT)
    assert not any(UPDATES in reply and new in answered(reply) for reply in tap.replies)
    trained = {p.parent.name for p in (folder / "devices").rglob("state-*")}
    assert len(trained) == 3
    assert folder_name(new) not in trained


def test_centralized_takes_as_many_steps_as_one_device(
    comparison: tuple[Path, Wiretap, RunConfig],
) -> None:
    folder, _, config = comparison
    steps = Counter[str]()
    for row in lines(folder, "results.jsonl"):
        steps[row["arm"]] += row["steps"]
    assert steps["global"] == steps["local"] == steps["personalized"] == 3 * config.train.local_steps
    assert steps["centralized"] == config.train.local_steps
    assert steps["global+finetune"] == 3 * 3
    assert steps["zero-shot"] == steps["neutral"] == 0
    assert {
        row["device"] for row in lines(folder, "results.jsonl") if row["arm"] == "centralized" and row["steps"]
    } == {EVERYONE}


def answered(reply: RecordDict) -> list[str]:
    """Devices that a reply speaks of, in columns or in records of their own."""
    listed = reply.config_records[DEVICES]["ids"] if DEVICES in reply else []
    return [*listed, *(split_key(key)[1] for key in reply if split_key(key)[1])]  # type: ignore[misc]


def test_no_private_tensor_is_ever_named_in_a_message(
    comparison: tuple[Path, Wiretap, RunConfig], tensors_of: Tensors
) -> None:
    folder, tap, _ = comparison
    # That there are gates, and that they were trained, can be seen on the devices' disks.
    stored = b"".join(data for name, data in tensors_of(folder).items() if "personalized" in name and "state-" in name)
    assert b"gated_lora_gate_weight" in stored
    said = tap.bytes()
    assert b"gated_lora_A" in said
    assert b"gated_lora_gate" not in said


def test_an_arm_that_shares_nothing_sends_no_tensor(comparison: tuple[Path, Wiretap, RunConfig]) -> None:
    _, tap, _ = comparison
    sent = Counter[str]()
    for request, reply in zip(tap.requests, tap.replies, strict=True):
        if JOB in request:
            job = Job.from_record(request.config_records[JOB])
            sent[job.arm] += UPDATES in reply
    assert {arm for arm, count in sent.items() if count} == {"global", "personalized", "centralized"}


def test_no_transcript_travels_and_all_of_them_stay_on_the_devices_disk(
    comparison: tuple[Path, Wiretap, RunConfig],
) -> None:
    folder, tap, _ = comparison
    said = tap.bytes()
    rows = lines(folder, "transcripts.jsonl")
    for row in rows:
        assert row["reference"].encode() not in said
        assert not row["hypothesis"] or len(row["hypothesis"]) < 4 or row["hypothesis"].encode() not in said
    own = [
        json.loads(text) for p in (folder / "devices").rglob("transcripts.jsonl") for text in p.open(encoding="utf-8")
    ]
    key = lambda row: (row["arm"], row["device"], row["utterance"])  # noqa: E731
    assert sorted(own, key=key) == sorted(rows, key=key)


def test_a_reply_holds_counts_of_the_devices_that_were_asked_and_shared_tensors(
    comparison: tuple[Path, Wiretap, RunConfig],
) -> None:
    _, tap, _ = comparison
    for request, reply in zip(tap.requests, tap.replies, strict=True):
        assert {split_key(key)[0] for key in reply} <= {COUNTS, UPDATES, DEVICES}
        if JOB in request:
            asked = set(Job.from_record(request.config_records[JOB]).devices)
            assert sorted(answered(reply)) == sorted(asked)


def test_the_personalized_arm_decodes_with_trained_gates_and_the_neutral_arm_with_zeros(
    comparison: tuple[Path, Wiretap, RunConfig],
) -> None:
    folder, _, _ = comparison
    devices = folder / "devices"
    weights = {
        arm: {p.parts[-3]: p.read_bytes() for p in (devices / arm).rglob("adapter_model.safetensors")}
        for arm in ("personalized", "neutral")
    }
    assert weights["personalized"].keys() < weights["neutral"].keys()
    for device in weights["personalized"]:
        personal, _ = load_adapter(devices / "personalized" / device / "adapter")
        neutral, _ = load_adapter(devices / "neutral" / device / "adapter")
        for name, tensor in personal.items():
            if "gate_" in name:
                assert not neutral[name].any()
            else:
                assert tensor.equal(neutral[name])


def test_costs_add_up(comparison: tuple[Path, Wiretap, RunConfig]) -> None:
    folder, tap, config = comparison
    costs = json.loads((folder / "costs.json").read_text(encoding="utf-8"))
    assert costs["shared_bytes"] + costs["private_bytes"] == costs["adapter_bytes"] == 4 * costs["adapter_parameters"]
    assert costs["devices"] == 3
    assert costs["new_people"] == config.data.new_people == 1
    # Each device's own part: its values, and a header of 128 bytes for each of its tensors.
    sent = [
        sum((len(array.data) - 128) // len(answered(reply)) + 128 for array in record.values())
        for request, reply in zip(tap.requests, tap.replies, strict=True)
        if JOB in request and Job.from_record(request.config_records[JOB]).arm == "personalized"
        for record in reply.array_records.values()
    ]
    assert set(sent) == {costs["bytes_up_per_device_round"]}
    assert costs["bytes_up_per_device_round"] >= costs["shared_bytes"]


def test_in_the_private_phase_only_private_state_changes_and_no_shared_byte_is_sent(
    tmp_path: Path, make_run: MakeRun, tensors_of: Tensors
) -> None:
    long = make_run(tmp_path / "long", rounds=4, private_share=0.5, evaluate_every=0, schedule="constant")
    short = make_run(tmp_path / "short", rounds=2, arms="global", evaluate_every=0, schedule="constant")
    for config in (long, short):
        run_server(SerialGrid(client_app, 2), config, 1)
    after = tensors_of(tmp_path / "long")
    shared = [
        load_file(tmp_path / folder / "checkpoints" / f"{arm}.safetensors")
        for folder, arm in (("long", "personalized"), ("short", "global"))
    ]
    assert shared[0].keys() == shared[1].keys()
    assert all(torch.equal(shared[0][name], shared[1][name]) for name in shared[0])
    third = [name for name in after if "state-000003" in name]
    assert len(third) == 3
    assert all(after[name] != after[name.replace("000003", "000002")] for name in third)
    rows = [json.loads(line) for line in (tmp_path / "long/results.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = [row for row in rows if row["split"] == "validation"]
    assert {(row["round"], row["steps"], row["bytes_up"] > 0) for row in trained} == {
        (1, 2, True),
        (2, 2, True),
        (3, 4, False),
    }


def test_rounds_that_global_and_personalized_have_in_common_are_trained_once_with_the_same_result(
    tmp_path: Path, make_run: MakeRun, rows_of: Rows, tensors_of: Tensors
) -> None:
    settings = {"rounds": 4, "private_share": 0.25, "evaluate_every": 2}
    asked: dict[str, list[tuple[str, int]]] = {}
    for arms in ("personalized", "global,personalized"):
        grid = CountingGrid()
        run_server(grid, make_run(tmp_path / arms, arms=arms, **settings), 1)
        asked[arms] = grid.trained
    arm = trained_arm("personalized", make_run(tmp_path / "unused", **settings))
    assert arm is not None
    common = arm.schedule.neutral_rounds
    assert common >= 2
    assert sorted(set(asked["personalized"])) == [("personalized", r) for r in range(1, 5)]
    assert sorted(set(asked["global,personalized"])) == [
        *(("global", r) for r in range(1, 5)),
        *(("personalized", r) for r in range(common + 1, 5)),
    ]
    alone, both = (
        {name: data for name, data in tensors_of(tmp_path / arms).items() if "personalized" in name} for arms in asked
    )
    states = {name for name in both if "/state-" in name}
    assert {name: alone[name] for name in both} == both
    assert any("state-000004" in name for name in states)
    mine = [[row for row in rows_of(tmp_path / arms) if row["arm"] == "personalized"] for arms in asked]
    assert sorted(mine[0], key=str) == sorted(mine[1], key=str)


def test_arms_that_decode_with_the_same_tensors_are_decoded_once_with_the_same_result(
    tmp_path: Path, make_run: MakeRun, rows_of: Rows, tensors_of: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[object] = []

    def counted(model: object, task: object, examples: object, **options: object) -> object:
        decoded.append(examples)
        return evaluate(model, task, examples, **options)

    monkeypatch.setattr("clients.app.evaluate", counted)
    times, found = {}, {}
    settings = {"gate": "none", "evaluate_every": 0, "new_people": 0, "arms": "global,personalized,neutral,zero-shot"}
    for most in (0, 1024):
        monkeypatch.setattr("clients.app.known", KnownEvaluations(most))
        decoded.clear()
        run_server(SerialGrid(client_app, 2), make_run(tmp_path / str(most), **settings), 1)
        times[most] = len(decoded)
        found[most] = rows_of(tmp_path / str(most)), tensors_of(tmp_path / str(most))
    assert found[0] == found[1024]
    devices = tmp_path / "1024" / "devices"
    adapters = {
        arm: {p.parents[1].name: p.read_bytes() for p in (devices / arm).rglob("adapter_model.safetensors")}
        for arm in ("global", "personalized")
    }
    unchanged = sum(adapters["personalized"][name] == data for name, data in adapters["global"].items())
    people = len(adapters["global"])
    assert times == {0: 4 * people, 1024: 3 * people - unchanged}


def test_the_parts_of_a_run_are_told_before_the_first_and_a_round_of_two_arms_counts_once(
    tmp_path: Path, make_run: MakeRun
) -> None:
    config = make_run(tmp_path / "run", arms="global,personalized", rounds=4, private_share=0.25)
    arm = trained_arm("personalized", config)
    assert arm is not None
    own = 4 - arm.schedule.neutral_rounds
    told: list[tuple[str, int, int]] = []
    grid = CountingGrid()
    run_server(grid, config, 1, lambda *what: told.append(what))
    planned = [("global", 0, 4), ("personalized", 0, own), ("test: global", 0, 1), ("test: personalized", 0, 1)]
    assert told[:4] == planned
    last = {what: (done, total) for what, done, total in told}
    assert last == {what: (total, total) for what, _, total in planned}
    assert sum(total for what, _, total in planned[:2]) == len(set(grid.trained))
    again: list[tuple[str, int, int]] = []
    run_server(SerialGrid(client_app), config, 1, lambda *what: again.append(what))
    assert again[:2] == [("global", 4, 4), ("personalized", own, own)]
    assert read_status(tmp_path / "run").state is RunState.FINISHED


def test_arms_that_share_other_tensors_have_nothing_in_common(tmp_path: Path, make_run: MakeRun) -> None:
    grid = CountingGrid()
    run_server(grid, make_run(tmp_path, arms="global,personalized", split="fedsa"), 1)
    assert ("personalized", 1) in grid.trained


@pytest.mark.parametrize(
    ("arm", "values", "trained"),
    [
        ("personalized", {}, {1: 1, 2: 1, 3: 3}),
        ("global+finetune", {"arms": "global,global+finetune"}, {1: 3}),
        ("local", {"arms": "local"}, {1: 3, 2: 3, 3: 3}),
    ],
)
def test_every_device_trains_what_is_its_own_in_the_last_phase_whether_it_was_sampled_or_not(
    tmp_path: Path, make_run: MakeRun, rows_of: Rows, arm: str, values: dict[str, Any], trained: dict[int, int]
) -> None:
    config = make_run(tmp_path / "run", sample=1.0 / 3, evaluate_every=0, **values)
    folder = run_server(SerialGrid(client_app), config, 1)
    assert Counter(row["round"] for row in rows_of(folder) if row["steps"] and row["arm"] == arm) == trained
    assert len(list((folder / "devices").glob(f"*/*/state-{max(trained):06}*"))) == 3
