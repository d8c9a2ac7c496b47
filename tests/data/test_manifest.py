import errno
import os
import unicodedata
from pathlib import Path

import pytest

from fl.core.errors import ManifestError
from fl.data.manifest import Utterance, read_manifest, write_manifest

GOOD = {"audio": "a.wav", "text": "bug는 내일 고칠게", "speaker": "mina"}


def test_a_line_with_three_keys_is_enough(write_lines):
    path = write_lines(GOOD, "", {**GOOD, "audio": "sub/b.wav"})
    first, second = read_manifest(path)
    assert (first.id, second.id) == ("people:1", "people:3")
    assert first.audio == path.parent / "a.wav"
    assert second.audio == path.parent / "sub" / "b.wav"
    assert (first.spans, first.loanwords, first.level, first.start) == ((), (), None, None)


def test_text_spans_and_loanwords_are_composed_at_ingest(write_lines):
    nfd = unicodedata.normalize("NFD", "커피")
    (utterance,) = read_manifest(
        write_lines(
            {**GOOD, "text": f"{nfd}  좋아", "spans": [[nfd, "ko"], ["좋아", "ko"]], "loanwords": [[nfd, "coffee"]]}
        )
    )
    assert utterance.text == "커피 좋아"
    assert utterance.spans == (("커피", "ko"), ("좋아", "ko"))
    assert utterance.loanwords == (("커피", "coffee"),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "not a JSON object"),
        ("[1, 2]", "one JSON object, this is a list"),
        ("[" * 100_000, "not a JSON object"),
        ({**GOOD, "speeker": "x"}, "unknown key 'speeker'; known: id, audio, text, speaker"),
        ({"audio": "a.wav", "text": "hi"}, "'speaker' is missing"),
        ({**GOOD, "speaker": 7.5}, r"'speaker' must be a string, this is 7\.5"),
        ({**GOOD, "speaker": ""}, "'speaker': is empty"),
        ({**GOOD, "text": " "}, "'text': the transcript is empty"),
        ({**GOOD, "start": "0"}, "'start' must be a number of seconds"),
        ({**GOOD, "start": True}, "'start' must be a number of seconds"),
        ({**GOOD, "start": -1}, "'start' must be a number of seconds"),
        ('{"audio": "a.wav", "text": "t", "speaker": "s", "end": NaN}', "'end' must be a number of seconds"),
        ({**GOOD, "start": 2, "end": 2}, r"'start' 2\.0 is not before 'end' 2\.0"),
        ({**GOOD, "end": 0}, r"'start' 0\.0 is not before 'end' 0\.0"),
        ({**GOOD, "level": "letter"}, "'level' must be one of word, phrase, sentence, this is 'letter'"),
        ({**GOOD, "split": "dev"}, "'split' must be one of train, validation, test"),
        ({**GOOD, "spans": [["bug", "en", 1]]}, "'spans' must be a list of pairs"),
        ({**GOOD, "spans": "bug"}, "'spans' must be a list of pairs"),
        ({**GOOD, "spans": [["bug", "en"], ["는", "ko"]]}, "the spans spell 'bug 는' but"),
        ({**GOOD, "loanwords": [["커피", ""]]}, "'loanwords'.*empty"),
        ({**GOOD, "audio": "a\0.wav"}, "'audio': is empty or holds a zero"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(write_lines, line, message):
    path = write_lines(GOOD, "", line)
    with pytest.raises(ManifestError, match=rf"^{path}:3: .*{message}"):
        read_manifest(path)


def test_bytes_that_are_not_utf8_are_named_by_file_and_line(tmp_path):
    (tmp_path / "m.jsonl").write_bytes('{"audio": "a.wav", "text": "한글", "speaker": "s"}'.encode("cp949"))
    with pytest.raises(ManifestError, match=r"m\.jsonl:1: not a JSON object in UTF-8"):
        read_manifest(tmp_path / "m.jsonl")


def test_a_duplicate_id_names_both_lines(write_lines):
    path = write_lines({**GOOD, "id": "x"}, GOOD, {**GOOD, "id": "x"})
    with pytest.raises(ManifestError, match=r":3: id 'x' was already used in line 1"):
        read_manifest(path)


def test_an_endless_line_is_refused_before_it_is_parsed(write_lines):
    path = write_lines({**GOOD, "text": "a" * (1 << 21)})
    with pytest.raises(ManifestError, match=r":1: the line is longer than"):
        read_manifest(path)


def test_no_file_and_no_utterances_say_so(tmp_path, write_lines):
    with pytest.raises(ManifestError, match="no such manifest"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match="holds no utterances"):
        read_manifest(write_lines("", ""))


def test_what_is_written_is_read_back_and_the_folder_can_move(tmp_path):
    folder = tmp_path / "here"
    (folder / "audio").mkdir(parents=True)
    utterance = Utterance(
        id="mina-1",
        audio=folder / "audio" / "1.wav",
        text="coffee는 그만",
        speaker="mina",
        start=0.5,
        end=2.25,
        lang="ko",
        spans=(("coffee", "en"), ("는", "ko"), ("그만", "ko")),
        level="word",
        loanwords=(("커피", "coffee"),),
        session="s1",
        split="test",
    )
    write_manifest(folder / "m.jsonl", [utterance])
    assert read_manifest(folder / "m.jsonl") == [utterance]
    folder.rename(tmp_path / "there")
    (moved,) = read_manifest(tmp_path / "there" / "m.jsonl")
    assert moved.audio == tmp_path / "there" / "audio" / "1.wav"


def test_a_full_disk_leaves_the_old_manifest(tmp_path, monkeypatch, say):
    path = tmp_path / "m.jsonl"
    write_manifest(path, [say("mina", 1)])
    before = path.read_bytes()

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_manifest(path, [say("mina", 2)])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [Path(path)]
