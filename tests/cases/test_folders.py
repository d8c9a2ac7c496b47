"""Folders and tables as people have them, through ``idiolect import``."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from sim.cli.app import app

Rows = list[dict[str, Any]]
Imported = tuple[dict[str, Any], Rows]


def case(row: str, answer: str) -> pytest.MarkDecorator:
    """A cell of what ``idiolect import`` makes of a folder."""
    return pytest.mark.case("folders", row, "import", answer)


def wav(path: Path, seed: int = 0) -> Path:
    """Half a second of noise that no other seed makes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-3000, 3000, 8000).astype(np.int16)
    soundfile.write(path, noise, 16_000, format="WAV")
    return path


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture
def take(tmp_path: Path) -> Callable[..., Imported]:
    """Import by the command to a new folder: the summary, and the lines of the manifest."""

    def run(form: str, source: Path, *arguments: str) -> Imported:
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        done = CliRunner().invoke(
            app, ["import", form, str(source), "--out", str(out), "--json", *arguments], catch_exceptions=True
        )
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        lines = (out / "manifest.jsonl").read_text(encoding="utf-8").split("\n")
        return json.loads(done.stdout), [json.loads(line) for line in lines if line]

    return run


def aihub(folder: Path, person: str) -> None:
    write(folder / f"{person}.json", json.dumps({"form": f"안녕 {person}", "speaker_id": person}))
    wav(folder / f"{person}.wav")


def kspon(folder: Path, person: str) -> None:
    write(folder / "KsponSpeech_0001" / f"{person}.txt", f"안녕 {person}")
    wav(folder / "KsponSpeech_0001" / f"{person}.wav")


def seame(folder: Path, person: str) -> None:
    name = f"01NC0{ord(person) % 10}FBX_0101"
    write(folder / "interview/transcript/phaseII" / f"{name}.txt", f"{name}\t0\t500\tCS\thello {person}\n")
    wav(folder / "interview/audio" / f"{name}.wav")


def kaldi(folder: Path, person: str) -> None:
    for name, value in (("wav.scp", f"{person}.wav"), ("text", f"hello {person}"), ("utt2spk", person)):
        with (folder / name).open("a") as file:
            file.write(f"{person} {value}\n")
    wav(folder / f"{person}.wav")


def common_voice(folder: Path, person: str) -> None:
    header = "" if (folder / "validated.tsv").exists() else "client_id\tpath\tsentence\n"
    with (folder / "validated.tsv").open("a") as file:
        file.write(f"{header}{person}\t{person}.wav\thello {person}\n")
    wav(folder / "clips" / f"{person}.wav")


def huggingface(folder: Path, person: str) -> None:
    write(folder / person / "metadata.csv", f"file_name,text,speaker\n{person}.wav,hello {person},{person}\n")
    wav(folder / person / f"{person}.wav")


CORPORA = [aihub, kspon, seame, kaldi, common_voice, huggingface]
PARTS = {"common_voice": ("--part", "validated")}


@pytest.mark.parametrize("make", CORPORA)
@case("`._*`, `.DS_Store`, `__MACOSX`, `@eaDir`, `.ipynb_checkpoints`, `Thumbs.db`, `~$*`", "passed over")
def test_what_systems_leave_in_a_folder_is_no_part_of_a_corpus(make: Any, tmp_path: Path, take: Any) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for person in "ab":
        make(folder, person)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        places = (path.parent, folder / "__MACOSX" / path.parent.relative_to(folder))
        places += tuple(path.parent / name for name in ("@eaDir", ".ipynb_checkpoints"))
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
            for name in (f"._{path.name}", ".DS_Store", "Thumbs.db", f"~${path.name}"):
                (place / name).write_bytes(b"\x00\x05\x16\x07\xb0\xff")
            if place != path.parent:
                (place / path.name).write_bytes(b"\x00\x05\x16\x07\xb0\xff")
    name = make.__name__.replace("_", "-")
    summary, rows = take(name, folder, *PARTS.get(make.__name__, ()))
    assert len(rows) == 2
    assert summary["left_out"] == {}
    archive = tmp_path / "corpus.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder))
    _, rows = take(name, archive, *PARTS.get(make.__name__, ()))
    assert len(rows) == 2
    assert not [path for path in tmp_path.glob("out1/source/**/*") if path.name.startswith((".", "_", "@", "~"))]
