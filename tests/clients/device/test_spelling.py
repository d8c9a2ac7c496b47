"""A device learns how its person spells, keeps that to itself, and writes so whatever a server answers."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.stub_server import TEXT, WORDS, Reply
from clients.device.cli import main
from clients.device.spelling import LearnedSpelling
from fl.speech.spelling import SPELLING_NAME, SpellingTable

PAIRS = [("미팅", "meeting"), ("버그", "bug"), ("커피", "coffee"), ("아이스크림", "ice cream")]
KNOWN = [(f"{korean}를 {korean}에", [(korean, latin)]) for korean, latin in PAIRS]
OWN = TEXT.replace("meeting", "미팅")


@pytest.fixture
def device(tmp_path, server, make_adapter, capsys):
    """A function that runs ``idiolect device`` on one folder with an adapter: exit code, standard output, standard error."""
    (tmp_path / "mine").write_bytes(make_adapter())

    def run(*words):
        code = main([*map(str, words), "--folder", str(tmp_path / "device")])
        return (code, *capsys.readouterr())

    run("init", "--server", server.url)
    run("adapter", "set", tmp_path / "mine")
    return run


@pytest.fixture
def lexicon(tmp_path) -> Path:
    path = tmp_path / "lexicon.jsonl"
    lines = [{"text": text, "loanwords": pairs} for text, pairs in KNOWN]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    return path


def write_sentences(folder: Path, *texts: str) -> Path:
    folder.mkdir(exist_ok=True)
    for i, text in enumerate(texts):
        noise = np.random.default_rng(i).standard_normal(16_000)
        soundfile.write(folder / f"{i}.wav", 0.1 * noise, 16_000)
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    return folder


def unseen(**heard: str) -> Reply:
    """An enrolment that changed nothing, with what was heard of ``said``."""
    sentences = [
        {"name": str(i), "said": said, "before": text, "after": text, "errors": [0, 0]}
        for i, (said, text) in enumerate(heard.items())
    ]
    return Reply(body=json.dumps({"kept": False, "unseen": sentences}).encode())


def test_a_device_writes_as_its_person_does_and_no_request_says_so(device, server, lexicon, wav, tmp_path):
    assert device("transcribe", wav) == (0, f"{TEXT}\n", "")
    code, out, _ = device("enrol", write_sentences(tmp_path / "own", "오늘 미팅"), "--lexicon", lexicon)
    assert (code, "spellings of 4 loanwords" in out) == (0, True)
    for kind in ("json", "text", "srt", "vtt"):
        assert device("transcribe", wav, "--format", kind)[1] == f"{OWN}\n"
    document = json.loads(device("transcribe", wav, "--json", "--format", "verbose_json")[1])
    assert (document["text"], document["heard"]) == (OWN, TEXT)  # which times and spans belong to
    assert device("transcribe", wav, "--base-only")[1] == f"{TEXT}\n"
    device("queue", wav)
    assert device("flush")[1].endswith(f"{OWN}\n")
    assert OWN in device("queue")[1]
    sent = b"".join(b"".join(part) for request in server.requests for part in request.form.values())
    assert "미팅".encode() in sent  # the text that was recorded for the enrolment
    assert not any(word.encode() in sent for word in ("버그", "bug", "loanwords", "커피"))


def test_a_stream_shows_no_word_that_is_respelled_later(device, lexicon, wav, tmp_path):
    device("enrol", write_sentences(tmp_path / "own", "오늘 미팅"), "--lexicon", lexicon)
    assert device("transcribe", wav, "--stream")[1] == f"{OWN}\n"
    *parts, last = map(json.loads, device("transcribe", wav, "--stream", "--json")[1].splitlines())
    texts = [part["partial"] for part in parts]
    assert all(OWN.startswith(text) for text in texts)
    assert texts[-1] == OWN.removesuffix(f" {WORDS[-1]}")
    assert last["text"] == OWN


def test_a_table_that_spoils_sentences_left_out_is_not_kept(device, server, lexicon, wav, tmp_path):
    own = write_sentences(tmp_path / "own", "오늘 meeting", "bug 있어", "커피 줘")
    heard = {"오늘 meeting": "오늘 meeting", "bug 있어": "bug 있어", "커피 줘": "커피 줘"}
    server.script.append(unseen(**heard))
    code, out, _ = device("enrol", own, "--lexicon", lexicon)
    assert "2.wav: 커피 줘" in out
    assert "as you spell: coffee 줘" in out  # as the others have it
    assert "in sentences left out they set 0 words right and 1 wrong; not kept" in out
    assert device("transcribe", wav)[1] == f"{TEXT}\n"
    server.script.append(unseen(**heard))
    code, out, _ = device("enrol", own, "--lexicon", lexicon, "--keep", "--json")
    assert (code, json.loads(out)["spelling"]) == (0, {"loanwords": 3, "right": 0, "wrong": 1, "kept": True})


def test_texts_without_a_loanword_leave_the_table_that_is_there(device, lexicon, wav, tmp_path):
    device("enrol", write_sentences(tmp_path / "own", "오늘 미팅"), "--lexicon", lexicon)
    code, out, _ = device("enrol", write_sentences(tmp_path / "more", "나"), "--lexicon", lexicon, "--keep")
    assert (code, "spellings of 0 loanwords" in out, "nothing to store" in out) == (0, True, True)
    assert device("transcribe", wav)[1] == f"{OWN}\n"


def test_a_table_is_checked_with_sentences_that_it_was_not_made_of():
    said = ["미팅를 해", "버그를 봐", "아이스크림를 줘", "meeting에 가"]
    found = LearnedSpelling.of(said, {0: "meeting를 해", 3: "meeting에 가", 7: "bug"}, KNOWN)
    assert found.respelled == {0: "미팅를 해", 3: "미팅에 가"}  # as the two others write
    assert (found.right, found.wrong, found.helps) == (1, 1, True)
    words = LearnedSpelling.of(["meeting를", "bug를", "ice cream를"], {2: "아이스크림를"}, KNOWN)
    assert (words.respelled, words.right, words.wrong) == ({2: "ice cream를"}, 1, 0)


def test_a_damaged_table_or_lexicon_is_named_with_what_to_do_and_nothing_is_sent(device, server, wav, tmp_path):
    (tmp_path / "device" / SPELLING_NAME).write_text('{"schema": 2}')
    code, _, err = device("transcribe", wav)
    assert (code, "spelling.json is no spelling table: enrol again, or delete the file" in err) == (1, True)
    assert device("transcribe", wav, "--base-only")[1] == f"{TEXT}\n"
    before = len(server.requests)
    lexicon = tmp_path / "empty.jsonl"
    lexicon.write_text('{"text": "나"}')
    code, _, err = device("enrol", write_sentences(tmp_path / "own", "나"), "--lexicon", lexicon)
    assert (code, "has no loanwords: give a manifest" in err) == (1, True)
    assert device("enrol", tmp_path / "own", "--lexicon", tmp_path / "gone")[0] == 1
    assert len(server.requests) == before


def test_an_adapter_folder_brings_its_table_and_one_without_leaves_it(device, make_adapter, wav, tmp_path, monkeypatch):
    packed = make_adapter()
    monkeypatch.setattr("fl.packed.folder.pack_folder", lambda *_: packed)
    folder = tmp_path / "adapter"
    folder.mkdir()
    SpellingTable.of_texts(["오늘 미팅를"], KNOWN).write(folder)
    assert "spellings of 4 loanwords" in device("adapter", "set", folder)[1]
    assert device("transcribe", wav)[1] == f"{OWN}\n"
    (folder / SPELLING_NAME).unlink()
    device("adapter", "set", folder)
    assert json.loads(device("adapter", "show", "--json")[1])["spellings"] == 4


def test_the_table_of_an_encrypted_device_is_encrypted(
    server, lexicon, monkeypatch, tmp_path, make_adapter, wav, capsys
):
    monkeypatch.setenv("IDIOLECT_PASSPHRASE", "a passphrase")
    monkeypatch.setenv("IDIOLECT_DEVICE", str(tmp_path / "sealed"))
    (tmp_path / "mine").write_bytes(make_adapter())
    main(["init", "--server", server.url, "--encrypt", "passphrase"])
    main(["adapter", "set", str(tmp_path / "mine")])
    main(["enrol", str(write_sentences(tmp_path / "own", "오늘 미팅")), "--lexicon", str(lexicon)])
    table = tmp_path / "sealed" / SPELLING_NAME
    assert "미팅".encode() not in table.read_bytes()
    capsys.readouterr()
    assert (main(["transcribe", str(wav)]), capsys.readouterr().out) == (0, f"{OWN}\n")
    table.write_bytes(SpellingTable.of_texts(["오늘 미팅"], KNOWN).to_json())
    assert main(["transcribe", str(wav)]) == 1  # somebody else put it there
    assert "spelling is not encrypted" in capsys.readouterr().err
