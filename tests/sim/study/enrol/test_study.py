"""The study at its smallest: every method runs, rows are kept and not made again, and its federation is that of a run."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from clients.training.enrol import enrol
from clients.training.private_part import Start
from fl.core.errors import ConfigError
from fl.protocol.wire import from_arrays
from fl.runs.files import read_run
from fl.settings.config import RunConfig, make_config
from fl.speech.text import fold_text
from fl.tasks.speech.task import SpeechTask
from sim.backends.run import run_simulation
from sim.study.enrol.__main__ import app
from sim.study.enrol.contenders import CONTENDERS, FEDERATED, FEDERATED_GRID, NEUTRAL, searched_federated, small
from sim.study.enrol.rows import METRICS, read_rows
from sim.study.enrol.run import EnrolStudy
from strategies.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def manifest(noise_manifest) -> Path:
    """Five speakers with eight recordings each."""
    return noise_manifest([f"화자 {number}" for number in range(5)], 8)


@pytest.fixture
def config(manifest, tmp_path, own_home) -> RunConfig:
    values: dict[str, object] = {
        "base": "random:whisper-nano",
        "manifest": str(manifest),
        "rounds": 2,
        "local-steps": 2,
        "rank": 2,
        "new-people": 2,
        "new-people-tests": 100,
        "test-share": 0.3,
        "evaluate-every": 0,
        "language": "ko",
        "arms": "global",
        "output": str(tmp_path / "run"),
    }
    return make_config(values)


@pytest.fixture
def study(config, tmp_path) -> EnrolStudy:
    return EnrolStudy(config, tmp_path, tmp_path / "enrol.jsonl")


@pytest.mark.parametrize("arm", ["global", "centralized"])
def test_the_shared_part_is_that_of_a_run(config, study, arm):
    folder = run_simulation(config.changed({"arms": arm}), serial=True)
    found = load_checkpoint(folder / "checkpoints", arm, study.task.fingerprint)
    assert found is not None
    expected = from_arrays(found.arrays)
    shared = study.shared if arm == "global" else study._start(CONTENDERS[arm]).state
    assert shared.keys() == expected.keys()
    for name, tensor in shared.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)


def test_every_method_enrols_everybody_once_and_a_second_call_computes_nothing(study, monkeypatch):
    contenders = {name: small(one) for name, one in CONTENDERS.items()}
    study.run(contenders, (0, 1, 3))
    rows = read_rows(study.rows)
    people = {one.name for one in study.people}
    assert len(people) == 2
    asked = {(name, size) for name in contenders for size in (0, 1, 3) if (size == 0) == (name == NEUTRAL)}
    assert {(row.method, row.sentences, row.person) for row in rows} == {(*one, p) for one in asked for p in people}
    assert all(set(row.counts) == set(METRICS) for row in rows)
    alone = {row.person: row.counts for row in rows if row.method == NEUTRAL}
    for row in rows:
        assert bool(row.losses) == (row.sentences > 1 and contenders[row.method].method is not None)
        if row.losses and not row.steps and not contenders[row.method].prompted and not contenders[row.method].episodes:
            assert row.counts == alone[row.person]  # neutral was kept, to the bit
    numbers = {row.method: row.numbers for row in rows if row.sentences}
    assert numbers["B"] > numbers["B of the decoder"] > numbers["spelling table"] == 0
    monkeypatch.setattr(EnrolStudy, "rows_of", lambda *_: pytest.fail("computed again"))
    study.run(contenders, (0, 1, 3))


def test_directions_without_a_prior_are_of_what_another_round_moves(study):
    contender = small(CONTENDERS["B of the decoder, drawn by updates"])
    start = study._start(contender)
    moved = study.training.local(study.shared)
    assert len(moved) == len(study.training.people) == 3
    directions = start.prior.directions

    def flat(state):
        return torch.cat([state[name].flatten() for name in start.split.private]).double()

    away = torch.stack([flat(one) - flat(start.state) for one in moved])
    basis = torch.cat([directions[name] for name in start.split.private], dim=1).double()
    assert len(basis) == torch.linalg.matrix_rank(away) == 3
    basis = torch.linalg.qr(basis.T)[0].T
    assert float((away - away @ basis.T @ basis).norm()) < 0.02 * float(away.norm())  # int8


def test_a_spelling_table_is_laid_on_transcripts_that_are_there(study, monkeypatch):
    contenders = {name: small(CONTENDERS[name]) for name in (NEUTRAL, "B", "spelling table", "B and spelling table")}
    study.run({name: contenders[name] for name in (NEUTRAL, "B")}, (0, 3))
    monkeypatch.setattr(EnrolStudy, "_hear", lambda *_: pytest.fail("computed again"))
    study.run(contenders, (0, 3))
    rows = read_rows(study.rows)
    steps = {name: [row.steps for row in rows if row.method == name] for name in contenders}
    assert steps["B and spelling table"] == steps["B"]
    assert steps["spelling table"] == [0, 0]


def test_encoder_states_that_are_computed_once_change_no_enrolment(study, monkeypatch):
    method = small(CONTENDERS["B of the decoder"]).method
    start = Start.of(study.training.adapter(study.shared), method, seed=1)
    people = {one.name: one.enrolment[:3] for one in study.people}

    def enrolled():
        return enrol(study.host, study.task, start, people, seed=1, budget=study.budget)

    once = enrolled()
    monkeypatch.setattr(SpeechTask, "precomputed", lambda self, model, examples, trained: examples)
    for name, one in enrolled().items():
        assert one.steps == once[name].steps
        assert one.curve == pytest.approx(once[name].curve, rel=1e-4)
        for tensor, value in one.private.items():
            torch.testing.assert_close(once[name].private[tensor], value, rtol=1e-3, atol=1e-6)


def test_other_settings_make_other_rows(study, config):
    contenders = {**CONTENDERS, **FEDERATED}
    assert len({study.digest(one) for one in contenders.values()}) == len(contenders)
    other = EnrolStudy(config.changed({"rounds": 3}), study.root, study.rows)
    assert other.digest(contenders["B"]) != study.digest(contenders["B"])
    elsewhere = EnrolStudy(config.changed({"compute": "cpu", "output": "x"}), study.root, study.rows)
    assert elsewhere.digest(contenders["B"]) == study.digest(contenders["B"])


def test_nobody_is_tested_on_a_sentence_that_is_enrolled_with(study):
    for one in study.people:
        texts = [{fold_text(e.target) for e in part} for part in (one.enrolment, one.test)]
        assert all(texts)
        assert not texts[0] & texts[1]


def test_participants_enrol_with_what_they_trained_on_and_are_tested_on_other_sentences(config, tmp_path):
    study = EnrolStudy(config, tmp_path, tmp_path / "rows.jsonl", participants=True)
    assert {one.name for one in study.people} == {*study.training.people}
    for one in study.people:
        assert list(one.enrolment) == list(study.training.people[one.name])
        assert one.test
        assert not {fold_text(e.target) for e in one.enrolment} & {fold_text(e.target) for e in one.test}


def test_private_parts_that_train_in_every_round_are_those_of_a_run_with_all_sentences(config, tmp_path, monkeypatch):
    study = EnrolStudy(config, tmp_path, tmp_path / "rows.jsonl", participants=True)
    contenders = {NEUTRAL: CONTENDERS[NEUTRAL], **{name: FEDERATED[name] for name in ("FedPer", "Ditto")}}
    study.run(contenders, (0, 1))
    rows = read_rows(study.rows)
    asked = {(NEUTRAL, 0), ("FedPer", 1), ("Ditto", 1)}  # the number that those who enrol would have
    assert {(row.method, row.sentences) for row in rows} == asked
    assert len(rows) == 3 * len(study.people)

    settings = dict(FEDERATED["Ditto"].federated)
    folder = run_simulation(config.changed({"arms": "personalized", **settings}), serial=True)
    said = {(row.device, row.utterance): row for row in read_run(folder).transcripts}
    for person in study.people:
        mine = [said[person.name, example.inputs[0].id] for example in person.test]
        errors = sum(
            study.task.score(e, row.hypothesis)["cer"].errors for e, row in zip(person.test, mine, strict=True)
        )
        (row,) = (row for row in rows if (row.method, row.person) == ("Ditto", person.name))
        assert row.counts["cer"][0] == errors
        assert row.seconds > 0

    of_all = sum(tensor.numel() for tensor in study.shared.values())
    numbers = {row.method: row.numbers for row in rows}
    assert numbers["Ditto"] == of_all > numbers["FedPer"] > 0
    assert {row.bytes for row in rows if row.method == "Ditto"} == {2 * of_all}

    monkeypatch.setattr("sim.backends.run.run_simulation", lambda *_, **__: pytest.fail("run again"))
    again = EnrolStudy(config, tmp_path, tmp_path / "other.jsonl", participants=True)
    again.run({"Ditto": FEDERATED["Ditto"]}, (1,))
    assert [row.counts for row in read_rows(again.rows)] == [row.counts for row in rows if row.method == "Ditto"]


def test_a_search_among_participants_has_every_point_of_the_grids():
    found = searched_federated()
    assert len(found) == 1 + sum(math.prod(map(len, grid.values())) for grid in FEDERATED_GRID.values())
    assert dict(found["Ditto, rate 0.3, pull 10"].federated) == {
        "algorithm": "ditto",
        "ditto.rate": 0.3,
        "ditto.pull": 10.0,
    }
    for name, one in found.items():
        make_config(dict(one.federated))  # settings that there are
        assert bool(one.federated) == (name != NEUTRAL)


def test_without_held_out_speakers_there_is_nothing_to_study(config, tmp_path):
    with pytest.raises(ConfigError, match="--new-people"):
        _ = EnrolStudy(config.changed({"new-people": 0}), tmp_path, tmp_path / "enrol.jsonl").people


@pytest.mark.parametrize(
    "changed",
    [{"dp": "server"}, {"secure-sum": "pairwise"}, {"sample": 0.5}, {"algorithm": "fedex"}, {"method": "dora"}],
)
def test_settings_that_the_shared_training_does_not_carry_out_are_refused(config, tmp_path, changed):
    study = EnrolStudy(config.changed(changed), tmp_path, tmp_path / "enrol.jsonl")
    with pytest.raises(ConfigError, match="by fedavg of all: leave out "):
        _ = study.training


def test_the_command_says_which_numbers_of_sentences_nobody_has(manifest, tmp_path, own_home):
    given = f"--base random:whisper-nano --manifest {manifest} --language ko --new-people 2 --rounds 1 --local-steps 1 --seeds 1"
    arguments = [*given.split(), "--methods", "spelling table", "--json", "--runs", str(tmp_path)]
    CliRunner().invoke(app, [*arguments, "--sizes", "1"], catch_exceptions=False)
    done = CliRunner().invoke(app, [*arguments, "--sizes", "2,500"], catch_exceptions=False)
    assert {row["sentences"] for row in json.loads(done.stdout)} == {2}  # and not those of 1 that are there
    assert "no rows with 500 sentences: nobody has as many" in " ".join(done.stderr.split())


def test_the_command_prints_rows_of_the_methods_that_were_asked_for(manifest, tmp_path, own_home):
    arguments = ["--smoke", "--methods", "B;spelling table", "--manifest", str(manifest), "--language", "ko", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--runs", str(tmp_path)], catch_exceptions=False)
    assert {row["method"] for row in json.loads(done.stdout)} == {"neutral", "B", "spelling table"}
    with pytest.raises(ConfigError, match="method 'C' is unknown"):
        CliRunner().invoke(app, ["--methods", "C"], catch_exceptions=False)
    with pytest.raises(
        ConfigError, match="method 'Ditto' is unknown"
    ):  # nobody who took no part has a part of every round
        CliRunner().invoke(app, ["--methods", "Ditto"], catch_exceptions=False)
    with pytest.raises(ConfigError, match="leave --write out"):
        CliRunner().invoke(app, ["--smoke", "--write", "page.md"], catch_exceptions=False)


def test_the_study_loads_where_neither_flower_nor_ray_is():
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("flwr", "ray"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import sim.study.enrol.__main__, sim.study.enrol.run, sim.study.enrol.plot
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
