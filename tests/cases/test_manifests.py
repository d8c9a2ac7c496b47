"""What manifests hold that people wrote, or that other programs did: through ``idiolect import`` and ``idiolect run``."""

import json
import logging
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import Result
from typer.testing import CliRunner

from fl.core.errors import AudioError, CorpusError, IdiolectError, ManifestError
from fl.data import checked
from fl.data.manifest import read_manifest
from fl.runs.files import read_rows
from fl.runs.schema import LeftOutRow
from fl.settings.config import make_config
from fl.speech.audio import SAMPLE_RATE, load_audio, save_audio
from fl.tasks.speech.task import SpeechTask
from sim.cli.app import app

NANO = "random:whisper-nano"
PAGE = Path(__file__).parents[2] / "docs" / "corpora.md"
LEFT_OUT, LISTED = "left out, counted", "left out, listed"
DROPPED = "refused by line; `--drop-bad` counts it"
TRAINING = ("--serial", "--rounds", 1, "--local-steps", 1, "--rank", 2, "--new-people", 0)
Row = dict[str, Any]


def case(row: str, answers: Mapping[str, str], *values: Any, table: str = "manifests") -> Any:
    """A parameter set that proves cells of a row."""
    marks = [pytest.mark.case(table, row, column, answer) for column, answer in answers.items()]
    return pytest.param(*values, id=row, marks=marks)


def invoke(*arguments: object) -> Result:
    """A command of ours; its own errors are raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, IdiolectError):
        raise result.exception
    return result


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    drawn: np.ndarray = 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE))
    return drawn.astype(np.float32)


def good_row(folder: Path, speaker: str, number: int) -> Row:
    """A line of a manifest, its recording of 0.6 s beside it."""
    save_audio(folder / f"{speaker}{number}.wav", noise(0.6, number))
    return {"audio": f"{speaker}{number}.wav", "text": f"이번 bug는 {speaker} {number}", "speaker": speaker}


@pytest.fixture
def rows(tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """Four utterances of ann."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return [good_row(tmp_path, "ann", number) for number in range(4)]


# One bad utterance is one bad utterance


def _silent(folder: Path, row: Row) -> None:
    save_audio(folder / "x.wav", np.zeros(SAMPLE_RATE, np.float32))


def _not_finite(folder: Path, row: Row) -> None:
    samples = noise(0.6)
    samples[100] = np.nan
    soundfile.write(folder / "x.wav", samples, SAMPLE_RATE, subtype="FLOAT")


def _lasting(seconds: float) -> Callable[[Path, Row], object]:
    return lambda folder, row: save_audio(folder / "x.wav", noise(seconds))


def _with(**more: Any) -> Callable[[Path, Row], object]:
    def change(folder: Path, row: Row) -> None:
        save_audio(folder / "x.wav", noise(0.6))
        row.update(more)

    return change


BAD: tuple[tuple[str, Callable[[Path, Row], object], str, str, str], ...] = (
    ("a silent recording", _silent, "is silent", LEFT_OUT, "silence"),
    ("samples that are no numbers", _not_finite, "not finite", LEFT_OUT, "samples that are no finite numbers"),
    ("a recording of 0.1 s", _lasting(0.1), "0.10 s is too short", LEFT_OUT, "shorter than 0.2 s"),
    ("a recording of 30.5 s", _lasting(30.5), "30.5 s is too long", LEFT_OUT, "longer than 29 s"),
    ("a recording that is missing", lambda folder, row: None, "no such audio file", DROPPED, "missing audio"),
    (
        "a recording that is a page of HTML",
        lambda folder, row: (folder / "x.wav").write_text("<html>"),
        "cannot be read as audio",
        DROPPED,
        "unreadable audio",
    ),
    (
        "start behind the end of the recording",
        _with(start=5.0),
        "5.0 to None s is empty",
        LEFT_OUT,
        "beyond the end of its recording",
    ),
    (
        "a text of more tokens than the decoder has",
        _with(text="단어 " * 200),
        "tokens is over the",
        f"--check-base: {DROPPED}",
        "a text that the base cannot write",
    ),
    ("an empty text", _with(text=" "), "transcript is empty", LEFT_OUT, "no words in the text"),
    ("a control character in a text", _with(text="a\x07b"), r"control character U\+0007", DROPPED, "damaged text"),
)


@pytest.fixture(scope="module")
def bad_ones(tmp_path_factory: pytest.TempPathFactory, own_home: Path) -> Path:
    """Two people with six good utterances each; one of them has a bad one of each kind too, and a third nothing else."""
    folder = tmp_path_factory.mktemp("people")
    lines = [good_row(folder, name, number) for name in ("minji", "junho") for number in range(6)]
    for number, (_, spoil, *_) in enumerate(BAD):
        row = {"audio": f"bad{number}/x.wav", "text": f"나쁜 {number}", "speaker": "minji"}
        (folder / f"bad{number}").mkdir()
        spoil(folder / f"bad{number}", row)
        lines.append(row)
    lines.append({**lines[-1], "audio": "gone.wav", "speaker": "seoyeon"})
    (folder / "m.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder / "m.jsonl"


@pytest.fixture(scope="module")
def run(bad_ones: Path) -> tuple[Path, str]:
    """The folder of a run on them, and what it said on the terminal."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("idiolect.server").addHandler(handler)
    output = bad_ones.parent / "run"
    result = invoke("run", "--manifest", bad_ones, "--base", NANO, *TRAINING, "--arms", "global", "--output", output)
    logging.getLogger("idiolect.server").removeHandler(handler)
    assert result.exit_code == 0, result.output
    return output, "\n".join([*said, result.output])


@pytest.mark.parametrize(
    ("place", "reason"),
    [case(name, {"run": LISTED}, place, reason) for place, (name, _, reason, *_) in enumerate(BAD)],
)
def test_a_run_leaves_a_bad_utterance_out_and_names_file_line_and_reason(
    run: tuple[Path, str], bad_ones: Path, place: int, reason: str
) -> None:
    row = read_rows(run[0] / "left-out.jsonl", LeftOutRow)[place]
    assert (row.device, row.where) == ("minji", f"{bad_ones}:{13 + place}")
    assert re.search(reason, row.reason)
    assert str(row) in run[1]
    assert f"bad{place}/" in str(row) or row.example.split(":")[1] == str(13 + place)


@pytest.mark.case("manifests", "a person of whom nothing can be used", "run", "takes no part, by name")
def test_the_others_take_part_and_terminal_and_report_say_who_does_not(run: tuple[Path, str]) -> None:
    folder, said = run
    trained = {json.loads(line)["device"] for line in (folder / "results.jsonl").read_text().splitlines()}
    assert trained == {"minji", "junho"}
    assert "11 examples cannot be used and are left out" in said
    assert "and 1 more" in said
    assert "seoyeon takes no part: none of 1 examples can be used" in said
    assert "11 sentences of minji and seoyeon could not be used; nothing is left of seoyeon" in said
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "is silent (peak under -60 dBFS)" in page
    assert (folder / "left-out.jsonl").stat().st_mode & 0o077 == 0


@pytest.mark.case("manifests", "no `lang` and no `spans`", "run", "languages by script, said in one line")
def test_the_languages_of_words_are_told_by_script_where_nothing_names_them(run: tuple[Path, str]) -> None:
    assert re.search(
        r"no utterance names its language; by script the words are ko \d+%, en \d+%: the base is told the first", run[1]
    )


@pytest.mark.case("manifests", "any bad utterance, with `--strict`", "run", "refused, all are named")
def test_strict_stops_a_run_and_names_all(bad_ones: Path) -> None:
    with pytest.raises(ManifestError, match=r"11 of 23 utterances cannot be used; mend them, or run without") as error:
        invoke("run", "--manifest", bad_ones, "--base", NANO, *TRAINING, "--strict", "--output", bad_ones.parent / "s")
    assert all(f"{bad_ones}:{line}: " in str(error.value) for line in range(13, 24))


@pytest.mark.parametrize(
    ("spoil", "answer", "reason"),
    [case(name, {"import": answer}, spoil, answer, reason) for name, spoil, _, answer, reason in BAD],
)
def test_an_import_counts_a_bad_utterance_under_its_reason(
    rows: list[Row], tmp_path: Path, spoil: Callable[[Path, Row], object], answer: str, reason: str
) -> None:
    rows.append({"audio": "x.wav", "text": "나쁜 bug", "speaker": "ann"})
    spoil(tmp_path, rows[-1])
    (tmp_path / "m.jsonl").write_text(lines_of(rows))
    arguments = ("import", "manifest", tmp_path / "m.jsonl", "--check-base", NANO, "--json")
    if DROPPED in answer:
        with pytest.raises(CorpusError, match=r"m\.jsonl:5: (?s:.*)--drop-bad leaves them out"):
            invoke(*arguments)
        arguments = (*arguments, "--drop-bad")
    summary = json.loads(invoke(*arguments).stdout)
    assert (summary["utterances"], summary["left_out"]) == (4, {reason: 1})


@pytest.mark.case("manifests", "more than half cannot be used", "run", "refused: check folder and base")
def test_a_manifest_of_which_most_is_lost_is_the_wrong_one(rows: list[Row], tmp_path: Path) -> None:
    for row in rows[1:]:
        (tmp_path / row["audio"]).unlink()
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ManifestError, match=r"3 of 4 utterances cannot be used; that is more than half"):
        invoke("run", "--manifest", tmp_path / "m.jsonl", "--base", NANO, *TRAINING, "--output", tmp_path / "run")


def notes_of(rows: list[Row], folder: Path, **settings: object) -> list[str]:
    """What a run says of a manifest, but for its languages."""
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [note for note in task_of(folder / "m.jsonl", **settings).notes if "language" not in note]


@pytest.mark.case("manifests", "one recording in two lines with two texts or speakers", "run", "counted in a line")
@pytest.mark.case("manifests", "one recording in two lines with two texts or speakers", "import", DROPPED)
def test_a_recording_with_two_texts_is_no_secret(rows: list[Row], tmp_path: Path) -> None:
    rows += [{**rows[0], "text": "전혀 다른 말"}, {**rows[1], "speaker": "bob"}, {**rows[2]}]
    assert notes_of(rows, tmp_path)[0] == (
        f"2 of 7 recordings: are in an earlier line too, with another text or speaker; first in {tmp_path / 'm.jsonl'}:5"
    )
    with pytest.raises(CorpusError, match=r"m\.jsonl:5: the recording of id 'm:5' \(ann0\.wav\) was already used"):
        invoke("import", "manifest", tmp_path / "m.jsonl")
    done = invoke("import", "manifest", tmp_path / "m.jsonl", "--drop-bad", "--json")
    assert json.loads(done.stdout)["left_out"] == {"recording twice": 5}


@pytest.mark.case(
    "manifests", "people who all read the same script", "run", "what is not trained on is counted in a line"
)
def test_what_dividing_costs_is_counted(rows: list[Row], tmp_path: Path) -> None:
    rows += [{**good_row(tmp_path, "bob", number), "text": row["text"]} for number, row in enumerate(rows)]
    assert not notes_of(rows, tmp_path)
    notes = notes_of(rows, tmp_path, new_people=1)
    assert notes[0].startswith(
        "3 sentences are neither trained on nor scored: their text is in a later set or of a held-out"
    )
    assert notes[1:] == ["1 of 1 devices have nothing to train on: ann"]


@pytest.mark.case("manifests", "`end` more than a second behind the end of the recording", "run", "its end, counted")
def test_an_end_far_behind_that_of_the_recording_is_counted(rows: list[Row], tmp_path: Path) -> None:
    rows[0] |= {"end": 0.7}
    assert not notes_of(rows, tmp_path)
    rows[1] |= {"start": 0.1, "end": 600}
    assert notes_of(rows, tmp_path)[0].startswith("1 of 4 recordings: should end more than 1 s behind their recording")


@pytest.mark.case("manifests", "a person of one utterance", "run", "trains, is not tested: by name")
def test_who_cannot_be_tested_is_named(rows: list[Row], tmp_path: Path) -> None:
    assert notes_of([*rows, good_row(tmp_path, "bob", 9)], tmp_path) == [
        "1 of 2 devices have nothing to be tested on: bob"
    ]


@pytest.mark.case("manifests", "letters that a CTC base lacks", "run", LISTED)
@pytest.mark.case("manifests", "letters that a CTC base lacks", "import", f"--check-base: {DROPPED}")
def test_letters_that_a_vocabulary_lacks(rows: list[Row], tmp_path: Path) -> None:
    rows[2]["text"] = "咖啡 bug"
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (row,) = task_of(tmp_path / "m.jsonl", base="random:wav2vec2-nano", tokens="syllables").left_out
    assert (row.where, "'咖' (U+5496) 1x" in row.reason) == (f"{tmp_path / 'm.jsonl'}:3", True)
    with pytest.raises(CorpusError, match=r"m\.jsonl:3: .*'咖' \(U\+5496\) 1x"):
        invoke("import", "manifest", tmp_path / "m.jsonl", "--check-base", "random:wav2vec2-nano+syllables")


# The form of the file


def task_of(manifest: Path, **settings: object) -> SpeechTask:
    """What a run reads."""
    return SpeechTask(make_config({"base": NANO, "manifest": str(manifest), "new_people": 0, **settings}))


def utterances_of(manifest: Path) -> dict[str, str]:
    """Speaker by id, as a run reads them."""
    population = task_of(manifest).population
    assert not population.left_out
    return {u.id: u.speaker for d in population.devices for u in (*d.train, *d.validation, *d.test)}


def lines_of(rows: list[Row], end: str = "\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


def changed(rows: list[Row], **more: Any) -> str:
    return lines_of([rows[0], {**rows[1], **more}, *rows[2:]])


@pytest.mark.parametrize(
    "write",
    [
        case("a byte order mark", {"import": "4 of 4", "run": "4 of 4"}, lambda rows: "\ufeff" + lines_of(rows)),
        case("line ends of Windows", {"import": "4 of 4", "run": "4 of 4"}, lambda rows: lines_of(rows, "\r\n")),
        case("blank lines", {"import": "4 of 4", "run": "4 of 4"}, lambda rows: lines_of(rows, "\n \n\n")),
        case("no line end at the end", {"import": "4 of 4", "run": "4 of 4"}, lambda rows: lines_of(rows).rstrip()),
        case(
            "a path with `\\`", {"import": "4 of 4", "run": "4 of 4"}, lambda rows: changed(rows, audio=".\\ann1.wav")
        ),
        case("a path with `~`", {"import": "4 of 4", "run": "4 of 4"}, lambda rows: changed(rows, audio="~/ann1.wav")),
        case(
            "`end` behind the end of the recording",
            {"import": "4 of 4", "run": "4 of 4"},
            lambda rows: changed(rows, end=9),
        ),
        case(
            "`null` for what may be missing",
            {"import": "4 of 4", "run": "4 of 4"},
            lambda rows: changed(rows, lang=None, id=""),
        ),
    ],
)
def test_a_manifest_is_read_as_it_is_meant(rows: list[Row], tmp_path: Path, write: Callable[[list[Row]], str]) -> None:
    (tmp_path / "m.jsonl").write_bytes(write(rows).encode())
    assert len(utterances_of(tmp_path / "m.jsonl")) == 4
    assert json.loads(invoke("import", "manifest", tmp_path / "m.jsonl", "--json").stdout)["utterances"] == 4


@pytest.mark.case("manifests", "a folder in NFD (macOS) that is typed in NFC", "run", "4 of 4")
def test_names_that_are_typed_are_found(rows: list[Row], tmp_path: Path) -> None:
    real, typed = (tmp_path / unicodedata.normalize(form, "음성") for form in ("NFD", "NFC"))
    real.mkdir()
    (real / "m.jsonl").write_text("\n".join(json.dumps({**row, "audio": f"../{row['audio']}"}) for row in rows))
    assert len(utterances_of(typed / "m.jsonl")) == 4
    save_audio(real / "a.wav", noise(0.6))
    assert invoke("transcribe", typed / "a.wav", "--base", NANO).exit_code == 0
    with pytest.raises(AudioError, match="is a folder; give a recording"):
        invoke("transcribe", typed, "--base", NANO)


@pytest.mark.case("manifests", "numbers as ids and speakers", "run", '1 is "1"')
@pytest.mark.case("manifests", "numbers as ids and speakers", "import", '1 is "1"')
def test_numbers_are_names(rows: list[Row], tmp_path: Path) -> None:
    numbered = [{**row, "id": number, "speaker": 1} for number, row in enumerate(rows)]
    (tmp_path / "m.jsonl").write_text(lines_of(numbered))
    assert utterances_of(tmp_path / "m.jsonl") == {str(number): "1" for number in range(4)}
    assert list(json.loads(invoke("import", "manifest", tmp_path / "m.jsonl", "--json").stdout)["devices"]) == ["1"]


BY_LINE = {"import": DROPPED, "run": "refused by line"}


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        case(
            "a comma behind a line",
            BY_LINE,
            lambda rows: lines_of(rows).replace("}\n", "},\n", 2).replace("},", "}", 1),
            r":2: not a JSON object.*one object a line",
        ),
        case(
            "a list of lists",
            BY_LINE,
            lambda rows: lines_of(rows[:1]) + "[1, 2]\n" + lines_of(rows[1:]),
            ":2: a line is one JSON object, this is a list",
        ),
        case(
            "half a line",
            BY_LINE,
            lambda rows: lines_of(rows[:1]) + '{"audio": \n' + lines_of(rows[1:]),
            ":2: not a JSON object",
        ),
        case(
            "an undecodable byte",
            BY_LINE,
            lambda rows: lines_of(rows).encode().replace("bug는 ann 1".encode(), b"bug\xb4 ann 1"),
            ":2: ",
        ),
        case(
            "`NaN` for a number",
            BY_LINE,
            lambda rows: changed(rows, start=float("nan")),
            ":2: 'start' must be a number of seconds",
        ),
        case(
            "`start` behind `end`",
            BY_LINE,
            lambda rows: changed(rows, start=0.4, end=0.2),
            r":2: 'start' 0\.4 is not before 'end' 0\.2",
        ),
        case("no speaker", BY_LINE, lambda rows: changed(rows, speaker=None), ":2: 'speaker' is missing"),
        case("`null` for the text", BY_LINE, lambda rows: changed(rows, text=None), ":2: 'text' is missing"),
        case("an unknown key", BY_LINE, lambda rows: changed(rows, speeker="ann"), ":2: unknown key 'speeker'"),
        case(
            "spans that do not spell the text",
            BY_LINE,
            lambda rows: changed(rows, spans=[["bug", "en"]]),
            ":2: 'spans': the spans spell",
        ),
    ],
)
def test_a_line_that_is_none_is_named_and_an_import_can_leave_it_out(
    rows: list[Row], tmp_path: Path, write: Callable[[list[Row]], str | bytes], reason: str
) -> None:
    text = write(rows)
    (tmp_path / "m.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ManifestError, match=rf"m\.jsonl{reason}"):
        invoke("run", "--manifest", tmp_path / "m.jsonl", "--base", NANO, "--output", tmp_path / "run", "--serial")
    with pytest.raises(CorpusError, match=rf"m\.jsonl{reason}"):
        invoke("import", "manifest", tmp_path / "m.jsonl")
    found = json.loads(invoke("import", "manifest", tmp_path / "m.jsonl", "--drop-bad", "--json").stdout)
    lines = text.count("\n" if isinstance(text, str) else b"\n")  # type: ignore[arg-type]
    assert (found["utterances"], sum(found["left_out"].values())) == (lines - 1, 1)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        case(
            "one list around all lines",
            {"run": "refused: one object a line", "import": "refused: one object a line"},
            lambda rows: json.dumps(rows),
            "one object a line",
        ),
        case("an empty file", {"run": "refused", "import": "refused"}, lambda rows: "", "holds no"),
        case(
            "CP949",
            {"run": "refused by line", "import": "refused: --encoding cp949"},
            lambda rows: lines_of(rows).encode("cp949"),
            "UTF-8",
        ),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(
    rows: list[Row], tmp_path: Path, write: Callable[[list[Row]], str | bytes], said: str
) -> None:
    text = write(rows)
    (tmp_path / "m.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ManifestError, match=said):
        invoke("run", "--manifest", tmp_path / "m.jsonl", "--base", NANO, "--output", tmp_path / "run", "--serial")
    with pytest.raises(CorpusError, match=said):
        invoke("import", "manifest", tmp_path / "m.jsonl")
    if said == "UTF-8":
        summary = invoke("import", "manifest", tmp_path / "m.jsonl", "--encoding", "cp949", "--json").stdout
        assert json.loads(summary)["utterances"] == 4


@pytest.mark.parametrize(
    ("write", "said"),
    [
        case(
            "UTF-16 with a byte order mark",
            {"run": "refused: save it as UTF-8", "import": "read"},
            lambda rows: lines_of(rows).encode("utf-16"),
            "this is UTF-16: save the file as UTF-8",
        ),
        case(
            "the same id twice",
            {"run": "refused by line", "import": "read, each with an id of its own"},
            lambda rows: lines_of([{**row, "id": "a" if n < 2 else str(n)} for n, row in enumerate(rows)]),
            r":2: id 'a' was already used in .*1",
        ),
    ],
)
def test_an_import_mends_what_a_run_refuses(
    rows: list[Row], tmp_path: Path, write: Callable[[list[Row]], str | bytes], said: str
) -> None:
    text = write(rows)
    (tmp_path / "m.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ManifestError, match=said):
        invoke("run", "--manifest", tmp_path / "m.jsonl", "--base", NANO, "--output", tmp_path / "run", "--serial")
    assert json.loads(invoke("import", "manifest", tmp_path / "m.jsonl", "--json").stdout)["utterances"] == 4


def test_the_line_of_the_documentation_is_one(rows: list[Row], tmp_path: Path) -> None:
    line = next(row.strip() for row in PAGE.read_text(encoding="utf-8").splitlines() if '{"audio": "a/001.wav"' in row)
    (tmp_path / "a").mkdir()
    save_audio(tmp_path / "a" / "001.wav", noise(0.6))
    (tmp_path / "m.jsonl").write_text(line, encoding="utf-8")
    assert task_of(tmp_path / "m.jsonl").language == "ko"


@pytest.mark.case("manifests", "texts without a letter, and no `lang`", "run", "refused: name it with --language")
def test_texts_that_tell_no_language_need_a_name(rows: list[Row], tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(lines_of([{**row, "text": f"12 {n}"} for n, row in enumerate(rows)]))
    arguments = ("run", "--manifest", tmp_path / "m.jsonl", "--base", NANO, "--output", tmp_path / "run", *TRAINING)
    with pytest.raises(IdiolectError, match="name it with --language"):
        invoke(*arguments)
    with pytest.raises(IdiolectError, match="language 'tlh' is unknown: give a code such as 'ko'"):
        invoke(*arguments, "--language", "tlh")


# --drop-bad drops whatever line is bad, of every form


def _table(good: str, bad: str, name: str) -> Callable[[Path], list[object]]:
    def write(folder: Path) -> list[object]:
        mark = "\t" if name.endswith("tsv") else ","
        head = mark.join(("audio", "text", "speaker"))
        body = [mark.join((f"ann{n}.wav", f"{good} {n}", "ann")) for n in range(4)]
        data = "\n".join([head, *body[:2], bad, *body[2:]]) + "\n"
        (folder / name).write_bytes(data.encode("utf-8", "surrogateescape"))
        return ["huggingface", folder] if name.startswith("metadata") else ["table", folder / name]

    return write


def _kaldi(**bad: str) -> Callable[[Path], list[object]]:
    def write(folder: Path) -> list[object]:
        for name, value in {"wav.scp": "ann{}.wav", "text": "hi {}", "utt2spk": "ann"}.items():
            lines = [f"u{n} {value.format(n)}" for n in range(4)]
            (folder / name).write_bytes("\n".join([*lines, bad.get(name.replace(".", "_"), "")]).encode())
        return ["kaldi", folder]

    return write


def _kspon(bad: str) -> Callable[[Path], list[object]]:
    def write(folder: Path) -> list[object]:
        lines = [f"ann{n}.wav :: (bug)/(버그)는 {n}" for n in range(3)]
        (folder / "train.trn").write_text("\n".join([*lines, bad]) + "\n", encoding="utf-8")
        return ["kspon", folder, "--order", "spelling-first"]

    return write


def _aihub(bad: str) -> Callable[[Path], list[object]]:
    def write(folder: Path) -> list[object]:
        for n in range(4):
            (folder / f"ann{n}.json").write_text(json.dumps({"form": f"hi {n}", "speaker_id": "ann"}))
        (folder / "ann9.json").write_text(bad)
        return ["aihub", folder, "--order", "spelling-first"]

    return write


ONE_BAD = {"import": DROPPED}


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        case(
            "CSV: a row without a speaker",
            ONE_BAD,
            _table("hi", "ann9.wav,hi,", "list.csv"),
            ":4: .* has no speaker",
            table="folders",
        ),
        case(
            "TSV: an undecodable byte",
            ONE_BAD,
            _table("고마워요 안녕히", "ann9.wav\t고마\udcb0\tann", "list.tsv"),
            r":4: the line holds U\+FFFD",
            table="folders",
        ),
        case(
            "Kaldi: a key twice",
            ONE_BAD,
            _kaldi(text="u1 again"),
            "text:5: 'u1' was already in .*text:2",
            table="folders",
        ),
        case(
            "Kaldi: the output of a command",
            ONE_BAD,
            _kaldi(wav_scp="u9 flac -dc a.flac |", text="u9 hi", utt2spk="u9 ann"),
            "is the output of a command",
            table="folders",
        ),
        case(
            "Kaldi: a carriage return inside a line",
            ONE_BAD,
            _kaldi(wav_scp="u9 ann0.wav", text="u9 hi\ru10 ho", utt2spk="u9 ann"),
            "text:5: .*two lines may have become one",
            table="folders",
        ),
        case(
            "KsponSpeech: a dual that is not closed",
            ONE_BAD,
            _kspon("ann3.wav :: 이번 (bug)/(버그는"),
            ":4: a dual transcript is not closed",
            table="folders",
        ),
        case(
            "KsponSpeech: a line without `::`",
            ONE_BAD,
            _kspon("ann3.wav 이번"),
            ":4: a line is the path",
            table="folders",
        ),
        case(
            "AI Hub: a file that is no JSON", ONE_BAD, _aihub('{"form": "hi'), "ann9.json:1: not JSON", table="folders"
        ),
    ],
)
def test_drop_bad_drops_a_line_whatever_is_wrong_with_it(
    rows: list[Row], tmp_path: Path, write: Callable[[Path], list[object]], reason: str
) -> None:
    form, source, *more = write(tmp_path)
    with pytest.raises(CorpusError, match=reason):
        invoke("import", form, source, *more)
    found = json.loads(invoke("import", form, source, *more, "--drop-bad", "--json").stdout)
    assert found["utterances"] == (3 if form == "kspon" else 4)
    assert sum(found["left_out"].values()) >= 1


def test_a_recording_is_decoded_once_and_again_where_something_was_wrong_with_it(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ann3.wav").write_text("<html>")
    (tmp_path / "m.jsonl").write_text(lines_of(rows))
    opened: list[str] = []
    monkeypatch.setattr(checked, "load_audio", lambda path, *part: opened.append(path.name) or load_audio(path, *part))
    utterances = read_manifest(tmp_path / "m.jsonl")
    first = checked.listen(tmp_path / "m.jsonl", utterances)
    assert checked.listen(tmp_path / "m.jsonl", utterances) == first
    assert sorted(opened) == [f"ann{n}.wav" for n in range(4)]
    opened.clear()
    save_audio(tmp_path / "ann0.wav", noise(1.2))  # another file, and so another recording
    heard = checked.listen(tmp_path / "m.jsonl", utterances, again=True)
    assert [one.seconds for one in heard[:2]] == [1.2, 0.6]
    assert sorted(opened) == ["ann0.wav", "ann3.wav"]
