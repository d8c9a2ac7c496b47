"""Folders and tables as people have them, through ``idiolect import``."""

import json
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from fl.core.errors import CorpusError
from fl.data.manifest import read_manifest
from fl.data.partition import split_population
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
        key = unicodedata.normalize("NFD", person) if name == "text" else person
        with (folder / name).open("a") as file:
            file.write(f"{key} {value}\n")
    wav(folder / f"{person}.wav")


def common_voice(folder: Path, person: str) -> None:
    header = "" if (folder / "validated.tsv").exists() else "client_id\tpath\tsentence\n"
    with (folder / "validated.tsv").open("a") as file:
        file.write(f"{header}{person}\t{person}.wav\thello {person}\n")
    wav(folder / "clips" / f"{person}.wav")


def huggingface(folder: Path, person: str) -> None:
    write(folder / person / "metadata.csv", f"file_name,text,speaker\n{person}.wav,hello {person},{person}\n")
    wav(folder / person / f"{person}.wav")


class MacMember(zipfile.ZipInfo):
    """A member whose name is UTF-8 and is not marked as such, as macOS writes it."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802 (zipfile's)
        return self.filename.encode(), self.flag_bits & ~0x800


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
    if make is not kaldi:  # once: what an archive holds is passed over for all alike
        return
    archive = tmp_path / "corpus.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder))
    _, rows = take(name, archive, *PARTS.get(make.__name__, ()))
    assert len(rows) == 2
    assert not [path for path in tmp_path.glob("out1/source/**/*") if path.name.startswith((".", "_", "@", "~"))]


def namesakes(form: str, folder: Path) -> None:
    """minji/001 and junho/001, as ``form`` has them."""
    for number, person in enumerate(("minji", "junho")):
        wav(folder / person / "001.wav", number)
        text = f"hello {person}"
        if form == "table":
            lines = "".join(f"{name}/001.wav,hello {name},{name},1\n" for name in ("minji", "junho"))
            write(folder / "list.csv", f"audio,text,speaker,id\n{lines}")
        elif form == "huggingface":
            write(folder / person / "metadata.csv", f"file_name,text,speaker\n001.wav,{text},{person}\n")
        elif form == "aihub":
            write(folder / "labels" / person / "001.json", json.dumps({"form": text, "speaker_id": person}))
        elif form == "kaldi":
            (folder / "data" / person).mkdir(parents=True)
            for name, value in (("wav.scp", f"{person}/001.wav"), ("text", text), ("utt2spk", person)):
                write(folder / "data" / person / name, f"001 {value}\n")
        elif form == "kspon":
            write(folder / person / "001.txt", text)
    if form == "kaldi":
        for number, person in enumerate(("minji", "junho")):
            wav(folder / person / "001.wav", number)


FOLDERS = ["table", "huggingface", "aihub", "kaldi", "kspon"]
NAMESAKES = "`minji/001.wav` and `junho/001.wav`"


@pytest.mark.parametrize("form", FOLDERS)
@case(NAMESAKES, "ids are the paths; both are taken")
def test_two_files_of_one_name_in_two_folders_are_two_utterances(form: str, tmp_path: Path, take: Any) -> None:
    folder = tmp_path / "corpus"
    namesakes(form, folder)
    summary, rows = take(form, folder / "list.csv" if form == "table" else folder)
    assert {(row["id"], row["text"]) for row in rows} == {(f"{p}/001", f"hello {p}") for p in ("minji", "junho")}
    for number, row in enumerate(sorted(rows, key=lambda row: row["id"], reverse=True)):
        heard = (tmp_path / "out0" / row["audio"]).read_bytes()
        assert heard == wav(tmp_path / "again.wav", number).read_bytes()
    assert "all are called by their audio, like" in summary["notes"][-1]


@case("the audio of one of two files of one name is missing", "refused by name, never another's audio")
def test_a_label_is_not_given_the_audio_of_its_namesake(tmp_path: Path, take: Any) -> None:
    for form, message in (("aihub", "no audio file is called '001'"), ("kspon", "has another text")):
        namesakes(form, tmp_path / form)
        (tmp_path / form / "junho" / "001.wav").unlink()
        with pytest.raises(CorpusError, match=message):
            take(form, tmp_path / form)


@case("speakers that are numbered anew in label files of one name", "a device for each")
def test_local_speakers_of_two_files_of_one_name_stay_apart(tmp_path: Path, take: Any) -> None:
    for room in "ab":
        label = {
            "utterances": [{"form": f"{room} says {n}", "speaker_id": "1", "start": n, "end": n + 1} for n in (0, 1)]
        }
        write(tmp_path / "set" / room / "001.json", json.dumps(label))
        soundfile.write(tmp_path / "set" / room / "001.wav", np.random.default_rng(0).normal(0, 0.1, 32_000), 16_000)
    summary, rows = take("aihub", tmp_path / "set", "--local-speakers")
    assert set(summary["devices"]) == {"a/001/1", "b/001/1"}
    assert {row["session"] for row in rows} == {"a/001", "b/001"}


def parquet(path: Path, rows: Rows) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


@case("Parquet whose rows are all called `audio.wav`", "ids are table and row")
@case("a column `id` that starts anew in each split", "ids are table and row, said in a line")
@pytest.mark.parametrize("column", [False, True])
def test_rows_that_are_all_called_the_same_are_all_taken(column: bool, tmp_path: Path, take: Any) -> None:
    for split in ("train", "test"):
        rows = []
        for number, person in enumerate(("ann", "bob")):
            sound = wav(tmp_path / "again.wav", number).read_bytes()
            row = {"text": f"{person} says {split}", "speaker": person, "audio": {"bytes": sound, "path": "audio.wav"}}
            rows.append(row | ({"id": number} if column else {}))
        parquet(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet", rows)
    summary, rows = take("huggingface", tmp_path / "set")
    expected = {f"data/{split}-00000-of-00001-{n}" for split in ("train", "test") for n in (1, 2)}
    assert {row["id"] for row in rows} == expected
    assert summary["notes"] == [
        f"4 utterances share an id, like {'0' if column else 'audio'!r}: all are called by their audio, like "
        "'data/test-00000-of-00001-1'"
    ]
    assert {(row["speaker"], row.get("split")) for row in rows} == {
        (p, s) for p in ("ann", "bob") for s in ("train", "test")
    }


@case("ids that differ in case alone, or `a.wav` beside `a.flac`", "told apart, also as names of files")
def test_ids_are_apart_on_a_disk_that_knows_no_case(tmp_path: Path, take: Any) -> None:
    for number, name in enumerate(("A/x.wav", "a/x.wav", "b.wav", "b.flac")):
        wav(tmp_path / "set" / name, number)
    lines = "".join(
        f"{name},hello {name[0]} {n},ann\n" for n, name in enumerate(("A/x.wav", "a/x.wav", "b.wav", "b.flac"))
    )
    _, rows = take("table", write(tmp_path / "set" / "list.csv", f"audio,text,speaker\n{lines}"), "--copy")
    assert len({row["audio"].lower() for row in rows}) == 4


@case("one recording in two rows with two texts", "refused; `--drop-bad` leaves both out")
def test_of_two_texts_of_one_recording_none_is_believed(tmp_path: Path, take: Any) -> None:
    wav(tmp_path / "a.wav")
    wav(tmp_path / "b.wav")
    lines = "a.wav,hello,ann\nb.wav,so it is,ann\na.wav,good bye,ann\n"
    path = write(tmp_path / "list.csv", f"audio,text,speaker\n{lines}")
    with pytest.raises(CorpusError, match=r"list\.csv:4: id 'a' was already used in .*:2 for the same audio"):
        take("table", path)
    summary, rows = take("table", path, "--drop-bad")
    assert [row["text"] for row in rows] == ["so it is"]
    assert summary["left_out"] == {"id twice": 2}


NFC, NFD = (unicodedata.normalize(form, "김민지") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("listed", "real"), [(NFC, NFD), (NFD, NFC)])
@pytest.mark.parametrize("make", [make for make in CORPORA if make is not seame])
@case("file names in NFD beside a list in NFC (macOS), or the reverse", "found")
def test_files_are_found_by_the_names_that_people_read(
    make: Any, listed: str, real: str, tmp_path: Path, take: Any
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    make(folder, listed)
    for path in [path for path in folder.rglob("*.wav") if listed in path.name]:
        path.rename(path.with_name(path.name.replace(listed, real)))
    name = make.__name__.replace("_", "-")
    _, (row,) = take(name, folder, *PARTS.get(make.__name__, ()))
    assert (row["id"], unicodedata.normalize("NFC", row["audio"]).count(NFC)) == (NFC, 1 + (make is huggingface))
    assert row.get("speaker", "").split("topic:")[-1] in (NFC, "session:KsponSpeech_0001")
    if make is not kaldi:
        return
    archive = tmp_path / "corpus.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in filter(Path.is_file, folder.rglob("*")):
            file.writestr(MacMember(str(path.relative_to(folder))), path.read_bytes())
    _, (row,) = take(name, archive, *PARTS.get(make.__name__, ()))
    assert row["id"] == NFC


SPELLED = (NFC, NFD, f"{NFC} ", f"\u200b{NFC}", f"{NFC}\ufeff")


@case("a speaker in NFC, in NFD, with a space, a zero-width character or a byte order mark at an end", "one device")
def test_speakers_that_look_the_same_are_one_device(tmp_path: Path, take: Any) -> None:
    for number in range(len(SPELLED)):
        wav(tmp_path / "set" / f"{number}.wav", number)
    lines = "".join(f"{n}.wav,hello {n},{name}\n" for n, name in enumerate(SPELLED))
    summary, rows = take("table", write(tmp_path / "set" / "list.csv", f"audio,text,speaker\n{lines}"))
    assert {row["speaker"] for row in rows} == set(summary["devices"]) == {NFC}


@pytest.mark.case(
    "manifests", "speakers in NFC and NFD, and audio whose name is in the other form", "import", "one device; found"
)
@pytest.mark.case(
    "manifests", "speakers in NFC and NFD, and audio whose name is in the other form", "run", "one device; found"
)
def test_a_manifest_is_read_by_the_names_that_people_read(tmp_path: Path, take: Any) -> None:
    lines = []
    for number, name in enumerate(SPELLED):
        wav(tmp_path / "set" / NFD / f"{NFC}{number}.wav", number)
        audio = f"{NFC}/{NFD}{number}.wav"
        lines.append(json.dumps({"audio": audio, "text": f"hello {number}", "speaker": name, "id": f"{name}{number}"}))
    path = write(tmp_path / "set" / "manifest.jsonl", "\n".join(lines))
    summary, _ = take("manifest", path)
    assert set(summary["devices"]) == {NFC}
    population = split_population(read_manifest(path), seed=1)
    assert [device.device_id for device in population.devices] == [NFC]
    assert all(spoken.audio.is_file() for spoken in read_manifest(path))


@case("speakers that differ in case or width alone (`Ann`, `ann`, `Ａｎｎ`)", "devices of their own, with a remark")
def test_names_that_are_seen_to_differ_stay_apart_with_a_remark(tmp_path: Path, take: Any) -> None:
    names = ("Ann", "ann", "Ａｎｎ", "bob")
    for number in range(len(names)):
        wav(tmp_path / f"{number}.wav", number)
    lines = "".join(f"{n}.wav,hello {n},{name}\n" for n, name in enumerate(names))
    summary, _ = take("table", write(tmp_path / "list.csv", f"audio,text,speaker\n{lines}"))
    assert len(summary["devices"]) == 4
    assert summary["notes"] == [
        "different devices, though their names differ in case or width alone: 'Ann' and 'ann' and 'Ａｎｎ'"
    ]


def table(folder: Path, text: str, name: str = "list.csv", encoding: str = "utf-8") -> Path:
    """A table beside a.wav to d.wav."""
    for number, clip in enumerate("abcd"):
        wav(folder / f"{clip}.wav", number)
    return write(folder / name, text, encoding)


STRAY = 'audio\ttext\tspeaker\na.wav\t"안녕\tminji\nb.wav\t그는 "말했다\tminji\nc.wav\t그래"\tminji\nd.wav\t네\tminji\n'
SAID = ['"안녕', '그는 "말했다', '그래"', "네"]


@case("a TSV with stray quotation marks", "a row a line; marks stay in the text")
def test_a_quotation_mark_in_a_tsv_joins_no_rows(tmp_path: Path, take: Any) -> None:
    for name in ("list.tsv", "list.csv"):
        _, rows = take("table", table(tmp_path / name[-3:], STRAY, name))
        assert [(row["id"], row["text"]) for row in rows] == list(zip("abcd", SAID, strict=True))
    lists = STRAY.replace("audio\ttext\tspeaker", "path\tsentence\tclient_id")
    table(tmp_path / "cv" / "clips", lists, "../validated.tsv")
    _, rows = take("common-voice", tmp_path / "cv", "--part", "validated")
    assert [row["text"].strip('"') for row in rows] == [text.strip('"') for text in SAID]


@case("a TSV whose cells are quoted as in a CSV (pandas)", "unquoted where marks are doubled; else `--quoted`")
def test_a_quoted_tsv_is_read_as_it_was_meant(tmp_path: Path, take: Any) -> None:
    text = 'audio\ttext\tspeaker\na.wav\t"he said ""hi"""\tann\nb.wav\t"hello, you"\tann\n'
    path = table(tmp_path, text, "list.tsv")
    assert [row["text"] for row in take("table", path)[1]] == ['he said "hi"', '"hello, you"']
    assert [row["text"] for row in take("table", path, "--quoted")[1]] == ['he said "hi"', "hello, you"]


SPOILED = [
    ("a CSV with a quotation mark that is not closed", 'a.wav,"안녕,minji\nb.wav,그래,minji\nc.wav,네,minji\n', {2}),
    ("a cell of a CSV over two lines", 'a.wav,"half\na",minji\nb.wav,그래,minji\nc.wav,네,minji\n', {2, 3}),
    ("a row with too few or too many cells", "a.wav,안녕\nd.wav,a,b,c\nb.wav,그래,minji\nc.wav,네,minji,,\n", {2, 3}),
    ("a text with the name of an audio file in it", "a.wav,안녕 minji b.wav 그래,minji\nb.wav,그래,minji\nc.wav,네,minji\n", {2}),
    ("a tab in a text", 'a.wav,"안녕\tb",minji\nb.wav,그래,minji\nc.wav,네,minji\n', {2}),
    ("`nan`, `None`, `#NAME?` as a text", "a.wav,nan,minji\nb.wav,그래,minji\nd.wav,#NAME?,minji\nc.wav,네,minji\n", {2, 4}),
    ("`nan` as a speaker", "a.wav,hi,nan\nb.wav,그래,minji\nc.wav,네,minji\n", {2}),
    ("a speaker that Excel rounded, `1.23E+11`", "a.wav,hi,1.23457E+11\nb.wav,그래,minji\nc.wav,네,minji\n", {2}),
    ("a carriage return inside a line", "a.wav,hi\r there,minji\nb.wav,그래,minji\nc.wav,네,minji\n", {2}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "bad"),
    [pytest.param(rows, bad, marks=case(row, "refused by line; `--drop-bad` counts it")) for row, rows, bad in SPOILED],
)
def test_what_is_suspect_is_named_by_line_and_left_out_alone(
    rows: str, bad: set[int], tmp_path: Path, take: Any
) -> None:
    path = table(tmp_path, f"audio,text,speaker\n{rows}")
    with pytest.raises(CorpusError, match=rf"{len(bad)} utterances cannot be used") as refusal:
        take("table", path)
    assert all(f"list.csv:{line}: " in str(refusal.value) for line in bad)
    summary, taken = take("table", path, "--drop-bad")
    assert [(row["id"], row["text"]) for row in taken] == [("b", "그래"), ("c", "네")]
    assert sum(summary["left_out"].values()) == len(bad)


def test_no_half_of_a_text_is_taken_wherever_the_text_stands(tmp_path: Path, take: Any) -> None:
    path = table(tmp_path, 'text,audio,speaker\n"half\nother half",a.wav,ann\nwhole,b.wav,ann\n')
    assert [row["text"] for row in take("table", path, "--drop-bad")[1]] == ["whole"]


@case("a line of `metadata.jsonl` that is no JSON object", "refused by line; `--drop-bad` counts it")
def test_a_broken_line_of_json_is_one_utterance(tmp_path: Path, take: Any) -> None:
    line = '{"file_name": "%s.wav", "text": "hello %s", "speaker": "ann"}\n'
    text = line % ("a", "a") + '{"file_name": "b.wav", "te\n[1]\n' + line % ("c", "c")
    path = table(tmp_path / "set", text, "metadata.jsonl")
    with pytest.raises(
        CorpusError, match=r"metadata\.jsonl:2: not JSON(.|\n)*metadata\.jsonl:3: a line is one JSON object"
    ):
        take("huggingface", path.parent)
    summary, rows = take("huggingface", path.parent, "--drop-bad")
    assert ([row["id"] for row in rows], summary["left_out"]) == (["a", "c"], {"broken line": 2})


PLAIN = "audio,text,speaker\na.wav,안녕,1\nb.wav,네,1\n"
FORMS = [
    ("a CSV with semicolons", PLAIN.replace(",", ";"), "utf-8"),
    ("a CSV with semicolons", f'"sep=;"\r\n{PLAIN.replace(",", ";")}', "utf-8-sig"),
    ("a CSV with tabs", PLAIN.replace(",", "\t"), "utf-8"),
    ("UTF-16 with a byte order mark (Excel's Unicode text)", PLAIN.replace(",", "\t").replace("\n", "\r\n"), "utf-16"),
    ("lines that end in a carriage return (Excel for the Mac)", PLAIN.replace("\n", "\r"), "utf-8"),
    ("a header with capitals, spaces, a byte order mark", PLAIN.replace("audio,text,speaker", "Audio, TEXT ,Speaker ID"), "utf-8-sig"),
    ("delimiters at the ends of lines", PLAIN.replace("\n", ",,\n"), "utf-8"),
    ("speakers `1` and `1.0`", PLAIN.replace("네,1", "네,1.0"), "utf-8"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "encoding"), [pytest.param(text, code, marks=case(row, "read")) for row, text, code in FORMS]
)
def test_tables_are_read_as_programs_write_them(text: str, encoding: str, tmp_path: Path, take: Any) -> None:
    summary, rows = take("table", table(tmp_path, text, encoding=encoding))
    assert [(row["id"], row["text"], row["speaker"]) for row in rows] == [("a", "안녕", "1"), ("b", "네", "1")]
    assert (summary["left_out"], summary["notes"]) == ({}, [])


@case("a CSV in CP949 (Excel in Korea)", "refused: names `--encoding cp949`, which reads it")
def test_the_encoding_is_named_and_then_read(tmp_path: Path, take: Any) -> None:
    path = table(tmp_path, PLAIN, encoding="cp949")
    with pytest.raises(CorpusError, match=r"list\.csv:2: not UTF-8; it looks like cp949: give --encoding cp949"):
        take("table", path)
    assert [row["text"] for row in take("table", path, "--encoding", "cp949")[1]] == ["안녕", "네"]


def arrow(path: Path, rows: Rows) -> Path:
    pa = pytest.importorskip("pyarrow")
    table = pa.Table.from_pylist(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table)
    return path


def hollow(*paths: str | None) -> Rows:
    """Rows whose audio is a path without bytes."""
    return [
        {"text": f"hello {n}", "speaker": "ann", "audio": {"bytes": None, "path": path}} for n, path in enumerate(paths)
    ]


BYTELESS = case("Parquet or Arrow with `{bytes: null, path}`", "read from the path")
ABSOLUTE = case("absolute paths of another machine", "found by their name below")
BARE = case("names without a folder", "found by their name below")
EITHER = case("absolute paths that two files below could be", "refused: names both")
OUTSIDE = case("a path in a table that leads out of the folder", "refused: `--audio` names the folder")
NOTHING = case("Parquet with neither bytes nor a path", "refused by row; `--drop-bad` counts it")


@pytest.mark.parametrize(
    ("make", "listed", "real"),
    [
        pytest.param(parquet, "clips/{}.wav", "data/clips/{}.wav", marks=BYTELESS),
        pytest.param(arrow, "clips/{}.wav", "clips/{}.wav", marks=BYTELESS),
        pytest.param(parquet, "/root/.cache/x/clips/{}.wav", "a/clips/{}.wav", marks=ABSOLUTE),
        pytest.param(arrow, "C:\\Users\\x\\clips\\{}.wav", "clips/{}.wav", marks=ABSOLUTE),
        pytest.param(parquet, "{}.wav", "a/{}.wav", marks=BARE),
    ],
)  # fmt: skip
def test_audio_that_a_table_only_names_is_read_from_its_file(
    make: Any, listed: str, real: str, tmp_path: Path, take: Any
) -> None:
    rows = hollow(*(listed.format(clip) for clip in "ab"), None)
    sound = wav(tmp_path / "again.wav", 2).read_bytes()
    rows[2]["audio"] = {"bytes": sound, "path": "c.wav"}
    for number, clip in enumerate("ab"):
        wav(tmp_path / "set" / real.format(clip), number)
        wav(tmp_path / "set" / "z" / "other" / f"{clip}{clip}.wav", 9)
    make(tmp_path / "set" / "data" / f"train.{make.__name__}", rows)
    _, taken = take("huggingface", tmp_path / "set")
    assert [row["id"] for row in taken] == ["a", "b", "c"]
    for number, row in enumerate(taken):
        heard, _ = soundfile.read(tmp_path / "out0" / row["audio"], dtype="int16")
        assert np.array_equal(heard, soundfile.read(wav(tmp_path / "again.wav", number), dtype="int16")[0])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        pytest.param("/elsewhere/a.wav", "2 audio files are called 'a'", marks=EITHER),
        pytest.param("../private/diary.wav", "leads out of", marks=OUTSIDE),
        pytest.param("/tmp/private/diary.wav", "leads out of", marks=OUTSIDE),
        pytest.param(None, "column 'audio' is empty", marks=NOTHING),
    ],
)  # fmt: skip
def test_audio_that_a_table_names_is_never_guessed_and_never_read_elsewhere(
    path: str | None, message: str, tmp_path: Path, take: Any
) -> None:
    wav(tmp_path / "private" / "diary.wav")
    for number, name in enumerate(("x/a.wav", "y/a.wav", "b.wav")):
        wav(tmp_path / "set" / name, number)
    parquet(tmp_path / "set" / "train.parquet", hollow("b.wav", path))
    with pytest.raises(CorpusError, match=rf"train\.parquet:2: .*{message}"):
        take("huggingface", tmp_path / "set")
    summary, rows = take("huggingface", tmp_path / "set", "--drop-bad")
    assert ([row["id"] for row in rows], sum(summary["left_out"].values())) == (["b"], 1)
