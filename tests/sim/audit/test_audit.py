"""The audit: what travels is recorded and attacked, a stopped audit resumes, and it says what it measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from flwr.app import RecordDict
from rich.console import Console
from typer.testing import CliRunner

from clients.app import app as client_app
from fl.adapters.files import load_adapter
from fl.core.errors import ConfigError, IdiolectError, RunError
from fl.data.manifest import Utterance, write_manifest
from fl.data.synthetic.population import POPULATION_NAME
from fl.privacy.audit.attackers import AuditError
from fl.privacy.audit.views import ServerView
from fl.settings.config import RunConfig, flat, load_config, make_config
from fl.speech.audio import save_audio
from fl.tasks.task import DeviceExamples, Example
from sim.audit import split as audit_split
from sim.audit.command import FULL, SMOKE, audit
from sim.audit.people import agreements, attributes, utterances, voices
from sim.audit.record import (
    ARM,
    RecordingGrid,
    federated_rounds,
    load_round,
    record,
    recorded_files,
    split_config,
)
from sim.audit.report import END, START, conditions_text, tables
from sim.audit.run import check_audit, run_audit, with_sizes
from sim.audit.split import ADAPTER_ROW, BASE_ROW, SplitAudit
from sim.cli.late import COMMANDS
from sim.section import markdown_tables, print_tables
from strategies.checkpoint import load_checkpoint

PEOPLE = tuple(f"person-{place}" for place in range(5))
PROTECTIONS = ("plain", "local:0.01", "secure-sum", "noisy-sum:1")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five speakers with six recordings of noise each; the first two say more English."""
    folder = tmp_path_factory.mktemp("audited")
    rng = np.random.default_rng(0)
    korean, english = (
        ["나는", "커피를", "마셨어", "있어", "오늘", "내일"],
        ["meeting", "deadline", "bug", "test", "fix", "plan"],
    )
    texts = {most: list(permutations(most, 3)) for most in (tuple(korean), tuple(english))}
    utterances = []
    for number in range(30):
        path, speaker = folder / f"{number}.wav", number % 5
        save_audio(
            path, (0.1 * rng.standard_normal(int(16_000 * rng.uniform(0.5, 0.7)))).clip(-1, 1).astype(np.float32)
        )
        most = tuple(english if speaker < 2 else korean)
        words = (*texts[most].pop(int(rng.integers(len(texts[most])))), korean[number // 5])
        spans = tuple((word, "en" if word.isascii() else "ko") for word in words)
        utterances.append(Utterance(str(number), path, " ".join(words), PEOPLE[speaker], spans=spans))
    write_manifest(folder / "manifest.jsonl", utterances)
    return folder / "manifest.jsonl"


@pytest.fixture(scope="module")
def config(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    values = {
        "base": "random:whisper-nano", "manifest": str(manifest), "language": "ko", "rank": 2, "gate": "self", "sites": "decoder.self",
        "new_people": 0, "rounds": 3, "local_steps": 1, "batch_size": 2, "test_share": 0.3, "validation_share": 0.0,
        "output": str(tmp_path_factory.mktemp("audit") / "audit"),
    }  # fmt: skip
    return make_config(values)


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IDIOLECT_HOME", str(tmp_path_factory.getbasetemp() / "tiny-home"))
        patch.setattr("fl.privacy.audit.attackers.SAMPLES", 50)  # of each bootstrap: intervals have their own test
        yield


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def document(config: RunConfig, told: list[str]) -> dict[str, Any]:
    splits = ("all-shared", "gates")
    return run_audit(config, splits, PROTECTIONS, lambda what, done, total: told.append(f"{what} {done}/{total}"))


def rows(document: dict[str, Any], split: str) -> dict[str, Any]:
    return {row["protection"]: row for row in document["rows"] if row["split"] == split}


def test_every_split_is_attacked_under_every_protection(document: dict[str, Any], told: list[str]):
    assert list(rows(document, "")) == [BASE_ROW]
    for split in ("all-shared", "gates"):
        found = rows(document, split)
        assert list(found) == [*PROTECTIONS, ADAPTER_ROW]
        assert [name for name, row in found.items() if "linkage" in row] == ["plain", "local:0.01", "secure-sum"]
        for row in found.values():
            assert 0 <= row["membership"]["calibrated"]["auc"]["rate"]["value"] <= 1
        assert set(found["plain"]["attributes"]) == {"dominance"}
    assert told[0] == "train: all-shared 0/3"
    assert told[-1] == f"attack: gates {len(PROTECTIONS) + 1}/{len(PROTECTIONS) + 1}"
    shared = {found["split"]: found for found in document["splits"]}
    assert shared["all-shared"]["numbers"] > shared["gates"]["numbers"]
    assert shared["gates"]["noise_to_update"] == pytest.approx(shared["gates"]["numbers"] ** 0.5)


def test_the_base_that_saw_nobody_and_a_reference_that_is_itself_tell_nothing(document: dict[str, Any]):
    found = rows(document, "")[BASE_ROW]["membership"]["calibrated"]["auc"]
    assert found["rate"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert found["p"] == 1.0


def test_conditions_name_people_seeds_sizes_versions_and_the_machine(document: dict[str, Any], config: RunConfig):
    found = document["conditions"]
    assert found["people"] == 5
    assert found["members"] == found["non_members"] == 5 * 2
    assert found["rounds"] == 2
    assert (found["base"], found["seed"]) == ("random:whisper-nano", config.seed)
    assert found["machine"]["cores"] >= 1
    assert {"idiolect-fl", "torch", "flwr"} <= set(found["versions"])
    assert found["attributes"] == {"dominance": 2}
    assert set(found["attributes_left_out"]) == {"voice", "spelling"}


def test_what_is_recorded_is_the_difference_that_makes_the_next_round(config: RunConfig, document: dict[str, Any]):
    folder = Path(config.output) / "gates"
    one, two = (load_round(path) for path in recorded_files(folder / "updates", 2))
    assert set(one.updates) == set(PEOPLE)
    for name, value in two.old.items():  # all devices have as many examples, so the mean is a plain one
        mean = one.old[name] + np.mean([update[name] for update in one.updates.values()], axis=0)
        np.testing.assert_allclose(value, mean, atol=1e-5)
    assert not any("lora_gate" in name for name in two.old)
    fingerprint = load_adapter(folder / "devices" / ARM / PEOPLE[0] / "adapter")[1].base_fingerprint
    checkpoint = load_checkpoint(folder / "checkpoints", ARM, fingerprint)
    assert checkpoint is not None
    assert set(checkpoint.arrays) == set(two.old)


def test_an_arm_without_gates_has_no_private_phase_and_federates_in_every_round(config: RunConfig, tmp_path: Path):
    without = make_config({"method": "lora", "split": "fedsa", "arms": ARM}, config)
    assert federated_rounds(without.changed({"rounds": 12})) == 12
    assert federated_rounds(config.changed({"rounds": 12})) == 10
    files = record(split_config(without, "fedsa", tmp_path / "run"))
    assert sorted(files) == sorted((tmp_path / "run" / "updates").iterdir())
    assert len(files) == 3


def test_with_everything_shared_the_gates_travel_and_move(config: RunConfig, document: dict[str, Any]):
    recorded = load_round(Path(config.output) / "all-shared" / "updates" / "round-000002.safetensors")
    gates = [name for name in recorded.old if "lora_gate" in name]
    assert gates
    assert any(np.abs(recorded.updates[PEOPLE[0]][name]).max() > 0 for name in gates)


def test_an_audit_that_is_done_is_read_again_and_not_made_again(
    config: RunConfig, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    def never(*_: Any) -> Any:
        raise AssertionError("attacked again")

    monkeypatch.setattr(audit_split.SplitAudit, "_protected", never)
    monkeypatch.setattr(audit_split.SplitAudit, "_adapters", never)
    path = Path(config.output) / "rows.jsonl"
    path.write_text(path.read_text() + '{"split": "ga')  # as a crash leaves it
    before = (Path(config.output) / "gates" / "updates" / "round-000001.safetensors").read_bytes()
    again = run_audit(config, ("gates",), PROTECTIONS)
    assert again["rows"] == [row for row in document["rows"] if row["split"] != "all-shared"]
    assert (Path(config.output) / "gates" / "updates" / "round-000001.safetensors").read_bytes() == before


def test_a_row_that_is_missing_is_made_to_the_same_numbers(config: RunConfig, document: dict[str, Any]):
    path = Path(config.output) / "rows.jsonl"
    kept = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    lost = [row for row in kept if (row["split"], row["protection"]) != ("gates", "local:0.01")]
    assert len(lost) == len(kept) - 1
    path.write_text("".join(json.dumps(row) + "\n" for row in lost))
    assert run_audit(config, ("gates",), PROTECTIONS)["rows"] == [
        row for row in document["rows"] if row["split"] != "all-shared"
    ]


def test_a_folder_of_other_settings_is_refused(config: RunConfig, document: dict[str, Any]):
    other = config.changed({"local-steps": 2})
    with pytest.raises(RunError, match=r"other settings \(train.local-steps was 1, is 2\)"):
        run_audit(other, ("gates",), PROTECTIONS)


def test_a_recording_with_a_hole_or_damage_is_refused(config: RunConfig, document: dict[str, Any], tmp_path: Path):
    updates = Path(config.output) / "gates" / "updates"
    with pytest.raises(AuditError, match="lacks the updates of round 3, which the run has behind it"):
        recorded_files(updates, 3)
    data = (updates / "round-000001.safetensors").read_bytes()
    for broken in (b"", data[:100], data[:-7]):
        (tmp_path / "round-000001.safetensors").write_bytes(broken)
        with pytest.raises(AuditError, match="are damaged"):
            load_round(tmp_path / "round-000001.safetensors")


def test_a_reply_without_plain_tensors_cannot_be_recorded(config: RunConfig, tmp_path: Path):
    edge = split_config(config, "gates", tmp_path / "run").changed({"aggregation": "edge"})
    with pytest.raises(AuditError, match="no device sent its update as it is"):
        record(edge)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": ("all-private",)}, "shares nothing"),
        ({"splits": ()}, "at least one split"),
        ({"protections": ("blur",)}, "'blur' is unknown"),
        ({"splits": ("gates", "layers:a,b")}, "has a comma"),
        ({"settings": {"dp": "local"}}, "leave out dp"),
        ({"settings": {"aggregation": "edge"}}, "aggregation = 'edge'"),
        ({"settings": {"rounds": 2}}, "give at least 3"),
        ({"settings": {"manifest": "", "devices": 3}}, "an audit of 3 people cannot be measured"),
    ],
)
def test_what_cannot_be_audited_is_refused_before_anything_is_trained(config: RunConfig, changes: Any, message: str):
    settings = make_config(changes.get("settings", {}), config)
    with pytest.raises(AuditError, match=message):
        check_audit(settings, changes.get("splits", ("gates",)), changes.get("protections", ("plain",)))


def test_splits_that_do_not_exist_or_have_nothing_private_are_refused(config: RunConfig):
    with pytest.raises(ConfigError, match="split = 'halves' is unknown"):
        check_audit(config, ("halves",), ("plain",))
    with pytest.raises(ConfigError, match="leaves nothing private"):
        check_audit(make_config({"gate": "none", "arms": "global"}, config), ("gates",), ("plain",))


def test_too_few_people_of_a_manifest_are_refused_before_anything_is_trained(config: RunConfig, tmp_path: Path):
    few = config.changed({"output": str(tmp_path / "few"), "new-people": 2})
    meters = [split_config(few, "gates", tmp_path)]
    assert meters[0].data.new_people == 0  # nobody is kept out of an audit
    lines = Path(config.data.manifest).read_text(encoding="utf-8").splitlines()
    page = Path(config.data.manifest).with_name("three.jsonl")
    page.write_text("\n".join(line for line in lines if json.loads(line)["speaker"] in PEOPLE[:3]), encoding="utf-8")
    with pytest.raises(AuditError, match="an audit of 3 people cannot be measured"):
        run_audit(make_config({"manifest": str(page)}, few), ("gates",), ("plain",))
    assert not (tmp_path / "few" / "gates").exists()


# ------------------------------------------------------------------------------------------------------------------ losses


def test_losses_are_those_of_the_model_that_the_server_can_form(config: RunConfig, document: dict[str, Any]):
    meter = SplitAudit(config, "gates", lambda *_: None)
    task, chosen = meter.worker.task, meter.chosen
    examples = [example for _, _, example in chosen]
    reference = meter.losses({}, examples)
    with meter.worker.adapted.disable_adapter():
        total, labels = task.losses(meter.worker.adapted, examples)
    np.testing.assert_allclose(reference, (total / labels).detach().numpy(), rtol=1e-4)
    recorded = load_round(recorded_files(Path(config.output) / "gates" / "updates", 2)[-1])
    own = meter.under_view(recorded, ServerView(recorded.updates), chosen)
    place = next(i for i, (person, _, _) in enumerate(chosen) if person == PEOPLE[3])
    tensors = {name: recorded.old[name] + recorded.updates[PEOPLE[3]][name] for name in recorded.old}
    assert own[place] == pytest.approx(meter.losses(tensors, [examples[place]])[0], rel=1e-5)
    adapter, _ = load_adapter(meter.worker.store.folder(ARM, PEOPLE[3]) / "adapter")
    whole = meter.under_adapters(chosen)
    values = {name: tensor.numpy() for name, tensor in adapter.items()}
    assert whole[place] == pytest.approx(meter.losses(values, [examples[place]])[0], rel=1e-5)
    np.testing.assert_allclose(meter.losses({}, examples), reference)  # nothing of an adapter stays behind


def test_nobody_with_held_out_utterances_is_refused():
    device = DeviceExamples("a", (example("나는"),), (), ())
    with pytest.raises(AuditError, match="give a test-share above 0"):
        utterances(["a"], lambda _: device, 1)


def test_as_many_utterances_that_were_trained_on_as_others_are_drawn():
    inside, outside = (tuple(example(f"{kind}{n}") for n in range(size)) for kind, size in (("in", 20), ("out", 5)))
    device = DeviceExamples("a", inside, outside[:2], outside[2:])
    chosen = utterances(["a"], lambda _: device, 1)
    assert [one for _, member, one in chosen if not member] == list(outside)
    members = [inside.index(one) for _, member, one in chosen if member]
    assert len(set(members)) == 5
    assert members == sorted(members)


# ------------------------------------------------------------------------------------------------------------------ people


def example(text: str, spans: str = "", loanwords: tuple[tuple[str, str], ...] = ()) -> Example:
    details = {
        "spans": [[word, code] for word, code in zip(text.split(), spans.split(), strict=False)],
        "loanwords": loanwords,
    }
    return Example(text, None, text, 1, details)


def people(*train: tuple[Example, ...]) -> list[DeviceExamples]:
    return [DeviceExamples(f"person-{place}", examples, (), ()) for place, examples in enumerate(train)]


def test_dominance_and_spelling_are_counted_in_what_people_train_on():
    pair = (("커피", "coffee"),)
    found, left_out = attributes(
        people(
            (example("나는 커피 ok", "ko ko en", pair), example("bug fix 했어", "en en ko")),
            (example("coffee ok ok", "en en en", pair),),
            (example("나는 커피를 오늘 마셔", "ko ko ko ko", pair),),
            (example("나는 coffee 오늘 있어 ok 나는 나는", "ko en ko ko en ko ko", pair),),
        ),
        None,
    )
    assert found["dominance"] == {"person-0": True, "person-1": True, "person-2": False, "person-3": False}
    assert found["spelling"] == {"person-0": False, "person-1": True, "person-2": False, "person-3": True}
    assert left_out == {"voice": "not known of everybody"}
    assert agreements(found) == {"dominance=spelling": 0.5}


def test_attributes_that_are_not_known_or_have_one_class_are_named_and_left_out():
    found, left_out = attributes(people(*[(example("나는", "ko"),)] * 5), None)
    assert found == {}
    assert "0 of 5 people" in left_out["dominance"]
    assert left_out["spelling"] == "not known of everybody"


def test_voices_are_those_of_the_synthetic_population(tmp_path: Path):
    variants = {"a": "m1", "b": "f2", "c": "Annie", "d": "Gene", "e": "steph", "f": "Mike"}
    population = {"people": [{"name": name, "voice": {"variant": variant}} for name, variant in variants.items()]}
    (tmp_path / POPULATION_NAME).write_text(json.dumps(population))
    expected = {"a": False, "b": True, "c": True, "d": False, "e": True, "f": False}
    assert voices(tmp_path / "manifest.jsonl", list(variants)) == expected
    assert voices(tmp_path / "manifest.jsonl", ["a", "unknown"]) is None
    assert voices(tmp_path / "elsewhere" / "manifest.jsonl", ["a"]) is None
    mixture = {"people": [{"name": "a", "voice": {"styles": [0.5, 0.5, 0, 0, 0]}}]}
    (tmp_path / POPULATION_NAME).write_text(json.dumps(mixture))
    assert voices(tmp_path / "manifest.jsonl", ["a"]) is None
    (tmp_path / POPULATION_NAME).write_text("{}")
    with pytest.raises(AuditError, match="is not a population file"):
        voices(tmp_path / "manifest.jsonl", ["a"])


# --------------------------------------------------------------------------------------------------------- report, command


def test_tables_say_every_figure_with_its_interval_and_what_shuffling_reaches(document: dict[str, Any]):
    console = Console(width=220, file=StringIO())
    print_tables(tables(document), conditions_text(document), console)
    text, page = console.file.getvalue(), markdown_tables(tables(document), conditions_text(document))  # type: ignore[attr-defined]
    found = rows(document, "gates")["plain"]["linkage"]["cosine"]
    rate = found["rate"]
    figure = (
        f"{100 * rate['value']:.1f} ({100 * rate['low']:.0f}-{100 * rate['high']:.0f}); {100 * found['reached']:.0f}"
    )
    for part in (
        figure,
        "whole adapter",
        "frozen base",
        "noisy-sum:1",
        "random:whisper-nano",
        "5 people",
        "seed 1",
        "torch",
    ):
        assert part in text
        assert part in page
    assert [len({len(row) for row in (lines.heads, *lines.rows)}) for lines in tables(document)] == [1, 1, 1, 1]


def test_only_what_shuffling_does_not_reach_is_bold(document: dict[str, Any]):
    strong = {"rate": {"value": 0.1, "low": 0.0, "high": 0.2}, "baseline": 0.5, "reached": 0.4, "p": 0.01}
    weak = {**strong, "p": 0.2}
    row = {"split": "gates", "protection": "plain", "linkage": {"cosine": strong, "layers": weak, "fused": weak}}
    page = markdown_tables(tables({**document, "rows": [row]}), "")
    assert "| gates | plain | **10.0 (0-20); 40** | 10.0 (0-20); 40 | 10.0 (0-20); 40 |" in page


@pytest.fixture
def command(config: RunConfig) -> Callable[..., Any]:
    app = typer.Typer()
    app.command()(audit)
    words = [
        word
        for key, value in flat(config).items()
        for word in ("--set", f"{key}={value}".lower() if isinstance(value, bool) else f"{key}={value}")
    ]

    def run(*options: str) -> Any:
        return CliRunner().invoke(app, [*words, *options])

    return run


def test_the_command_prints_json_and_writes_its_section(
    command: Callable[..., Any], document: dict[str, Any], tmp_path: Path
):
    page = tmp_path / "audit.md"
    page.write_text(f"before\n{START}{END}\nafter\n", encoding="utf-8")
    done = command("--splits", "gates,gates,", "--protections", ",".join(PROTECTIONS), "--json", "--write", str(page))
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"] == [row for row in document["rows"] if row["split"] != "all-shared"]
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{START}")
    assert "| gates | secure-sum |" in text


def test_a_page_without_comments_is_refused_before_anything_is_trained(command: Callable[..., Any], tmp_path: Path):
    done = command("--write", str(tmp_path / "none.md"))
    assert isinstance(done.exception, IdiolectError)
    assert "needs the comments" in str(done.exception)


def test_smoke_is_smaller_but_leaves_what_was_chosen_by_hand():
    full = make_config(FULL)
    small = with_sizes(full, SMOKE, full)
    assert (small.data.devices, small.federation.rounds, small.output) == (
        SMOKE["devices"],
        SMOKE["rounds"],
        SMOKE["output"],
    )
    chosen = with_sizes(make_config({"devices": 7, "rank": 2}, full), SMOKE, full)
    assert (chosen.data.devices, chosen.adapter.rank, chosen.federation.rounds) == (7, 2, SMOKE["rounds"])


def test_the_documentation_has_the_comments_and_the_command_is_listed():
    text = (Path(__file__).parents[3] / "docs" / "audit.md").read_text(encoding="utf-8")
    assert text.index(START) < text.index(END)
    assert COMMANDS["audit"].place == "sim.audit.command:audit"


def test_the_configuration_of_an_audit_lies_in_its_folder(config: RunConfig, document: dict[str, Any]):
    assert load_config(Path(config.output) / "config.toml") == config.changed({"precision": "float32"})  # of auto
    assert (
        json.loads((Path(config.output) / "audit.json").read_text(encoding="utf-8"))["conditions"]["seed"]
        == config.seed
    )


def test_only_training_that_shares_is_recorded(tmp_path: Path):
    grid = RecordingGrid(client_app, tmp_path / "updates")
    reply = grid.send_and_receive([grid.create_message(RecordDict(), "query", 1, "")])
    assert len(list(reply)) == 1
    assert not (tmp_path / "updates").exists()
