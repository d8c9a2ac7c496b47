"""``idiolect import`` as a person and as a script use it."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fl.core.errors import ConfigError, CorpusError
from fl.data.importers.table import IMPORTERS
from fl.data.manifest import read_manifest
from fl.data.partition import split_population
from fl.speech.audio import SAMPLE_RATE, save_audio
from sim.cli.app import app

NANO = "random:whisper-nano"


def invoke(*arguments):
    return CliRunner().invoke(app, ["import", *(str(a) for a in arguments)])


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Two people with six sentences each, in folders with brackets in their names as AI Hub has them."""
    folder = tmp_path / "[라벨]people"
    folder.mkdir()
    lines = ["audio,text,speaker"]
    for person, speaker in enumerate(("ann", "bob")):
        for number in range(6):
            rng = np.random.default_rng(person * 10 + number)
            save_audio(
                folder / f"{speaker}{number}.wav", (0.1 * rng.standard_normal(SAMPLE_RATE // 2)).astype(np.float32)
            )
            lines.append(f"{speaker}{number}.wav,이번 {speaker} bug는 {number},{speaker}")
    lines.append("ann0.wav,...,ann")
    (folder / "list.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder / "list.csv"


def test_the_list_names_every_importer_with_licence_and_where_to_get_it():
    table = invoke("--list")
    assert table.exit_code == 0, table.output
    rows = {row["name"]: row for row in json.loads(invoke("--list", "--json").stdout)}
    assert (
        set(rows) == set(IMPORTERS) >= {"aihub", "hike", "ascend", "seame", "zeroth", "common-voice", "kaldi", "table"}
    )
    assert all(name in table.output and all(row.values()) for name, row in rows.items())


def test_an_import_prints_what_it_did_and_its_manifest_can_be_divided(people, tmp_path):
    done = invoke("table", people, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "12, 0.00 hours" in done.output
    assert "2 speakers; 6 to 6 utterances each" in done.output
    assert "ko+en 12" in done.output
    assert f"1: no words in the text, first in {people}:14" in done.output.replace("\n", "").replace("  ", "")
    assert f"idiolect run --manifest {tmp_path}/out/manifest.jsonl" in done.output
    population = split_population(read_manifest(tmp_path / "out" / "manifest.jsonl"), seed=1)
    assert [device.device_id for device in population.devices] == ["ann", "bob"]
    assert all(device.train and device.test for device in population.devices)


def test_nobody_else_can_read_what_was_imported(people, tmp_path):
    assert invoke("table", people, "--out", tmp_path / "out" / "speech", "--copy").exit_code == 0
    made = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert len(made) > 13
    assert [path for path in made if path.stat().st_mode & 0o077] == []


def test_a_script_gets_json_and_without_out_nothing_is_written(people):
    before = sorted(people.parent.rglob("*"))
    summary = json.loads(invoke("table", people, "--check-base", NANO, "--json").stdout)
    assert (summary["utterances"], summary["devices_are"], summary["manifest"]) == (12, "speakers", "")
    assert summary["left_out"] == {"no words in the text": 1}
    assert sorted(people.parent.rglob("*")) == before


def test_pseudo_devices_are_called_so(people):
    text = people.read_text(encoding="utf-8").replace("speaker", "topic", 1)
    people.write_text(text, encoding="utf-8")
    assert "2 pseudo-devices by topic: nobody's own speech" in invoke("table", people).output


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((), ConfigError, "give FORMAT and SOURCE"),
        (("table",), ConfigError, "give FORMAT and SOURCE"),
        (("table", "x.csv", "--field", "words=text"), ConfigError, "FIELD is one of id, audio, text"),
        (("table", "none.csv"), CorpusError, "no such file or folder"),
        (("nothing", "none.csv"), ConfigError, "unknown importer 'nothing'"),
    ],
)
def test_bad_arguments_are_typed_errors(arguments, kind, message):
    done = invoke(*arguments)
    assert isinstance(done.exception, kind)
    assert message in str(done.exception)
