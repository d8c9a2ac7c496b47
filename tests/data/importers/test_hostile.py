"""A corpus that was made to do harm: tables, audio and links that lead where they should not."""

import os
import struct
import sys

import numpy as np
import pytest
import soundfile

from fl.core.errors import CorpusError
from fl.data.importers.build import ImportPlan, import_corpus
from fl.data.importers.records import Options

from .conftest import wav_bytes, write_parquet, write_text, write_wav

pa = pytest.importorskip("pyarrow")


def rows(count=40):
    sound = wav_bytes()
    return [{"id": f"u{n}", "text": f"word {n} it is", "speaker": "ann", "audio": {"bytes": sound, "path": f"{n}.wav"}}
            for n in range(count)]  # fmt: skip


@pytest.fixture
def arrow(tmp_path):
    """An Arrow file whose offset 20 of ``column`` is ``offset``."""

    def make(values, offset):
        table = pa.Table.from_pylist(rows())
        path = tmp_path / "set" / "train.arrow"
        path.parent.mkdir()
        with pa.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table)
        data = bytearray(path.read_bytes())
        ends = np.cumsum([0, *map(len, values(rows()))]).astype("<i4").tobytes()
        place = data.find(ends) + 4 * 20
        assert place > 80
        data[place : place + 4] = struct.pack("<i", offset)
        path.write_bytes(data)
        return path

    return make


@pytest.mark.parametrize("offset", [2**30, -(2**31) + 5, 100_000])
@pytest.mark.parametrize(
    "values", [lambda rows: [row["text"] for row in rows], lambda rows: [row["audio"]["bytes"] for row in rows]]
)
def test_offsets_that_lead_out_of_an_arrow_table_are_refused(arrow, take, values, offset):
    with pytest.raises(CorpusError, match=r"train\.arrow: is damaged"):
        take("huggingface", arrow(values, offset).parent)


def test_a_table_that_was_cut_off_is_refused(arrow, take):
    path = arrow(lambda rows: [row["text"] for row in rows], 5)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CorpusError, match=r"train\.arrow: is "):
        take("huggingface", path.parent)


def test_text_in_a_table_that_is_no_utf_8_is_refused(tmp_path, take):
    path = write_parquet(tmp_path / "set/train.parquet", [])
    pa.parquet.write_table(pa.Table.from_pylist(rows(3)), path, compression="none", use_dictionary=False)
    data = path.read_bytes()
    assert b"word 1" in data
    path.write_bytes(data.replace(b"word 1", b"wor\xff 1"))
    with pytest.raises(CorpusError, match=r"train\.parquet: is damaged"):
        take("huggingface", path.parent)


def claims(data: bytes, frames: int) -> bytes:
    """A FLAC whose header says that it has so many frames."""
    changed = bytearray(data)
    changed[21] = changed[21] & 0xF0 | frames >> 32
    changed[22:26] = struct.pack(">I", frames & 0xFFFFFFFF)
    return bytes(changed)


def test_audio_that_says_it_is_hours_long_takes_memory_for_what_is_there(tmp_path, take):
    path = tmp_path / "set" / "a.flac"
    path.parent.mkdir()
    soundfile.write(path, np.random.default_rng(0).uniform(-0.3, 0.3, (16_000, 8)), 96_000)
    path.write_bytes(claims(path.read_bytes(), 4 * 3600 * 96_000 - 1))
    write_wav(tmp_path / "set" / "b.wav")
    text = "audio,text,speaker,start,end\na.flac,so long,ann,0,28\nb.wav,good bye,ann,,\n"
    write_text(tmp_path / "set/list.csv", text)
    summary, spoken = take("table", tmp_path / "set/list.csv", plan={"copy": True, "drop_bad": True})
    assert [utterance.text for utterance in spoken] == ["good bye"]
    assert summary.left_out == {"unreadable audio": 1}


@pytest.fixture
def corpus(tmp_path):
    """Three recordings: one in the corpus, one outside, and what ``link`` makes of the third; and a list of all."""
    outside = write_wav(tmp_path / "private" / "diary.wav")
    write_wav(tmp_path / "set" / "b.wav")

    def make(link):
        name = link(tmp_path / "set", outside)
        return write_text(tmp_path / "set/list.csv", f"audio,text,speaker\n{name},my diary,ann\nb.wav,good bye,ann\n")

    return make


def link_file(folder, outside):
    (folder / "a.wav").symlink_to(outside)
    return "a.wav"


def link_folder(folder, outside):
    (folder / "wavs").symlink_to(outside.parent)
    return "wavs/diary.wav"


def link_to_link(folder, outside):
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to(os.path.relpath(outside.parent, folder))
    return "one/diary.wav"


@pytest.mark.parametrize("link", [link_file, link_folder, link_to_link])
@pytest.mark.parametrize("copy", [False, True])
def test_a_link_out_of_a_corpus_is_named_counted_and_not_followed(corpus, take, link, copy):
    source = corpus(link)
    with pytest.raises(CorpusError, match=r"list\.csv:2: .*leads out of .*set; --audio DIR"):
        take("table", source, plan={"copy": copy})
    summary, spoken = take("table", source, plan={"copy": copy, "drop_bad": True})
    assert [utterance.text for utterance in spoken] == ["good bye"]
    assert summary.left_out == {"audio outside the corpus": 1}


def test_a_link_into_a_folder_that_was_named_is_followed(corpus, take, tmp_path):
    _, spoken = take("table", corpus(link_folder), audio=tmp_path / "private")
    assert len(spoken) == 2


@pytest.mark.parametrize("name", ["../private/diary.wav", "..\\private\\diary.wav", "{outside}"])
def test_a_manifest_of_others_names_no_audio_outside_its_folder(tmp_path, take, name):
    outside = write_wav(tmp_path / "private" / "diary.wav")
    line = '{"audio": "%s", "text": "my diary", "speaker": "ann"}\n'
    source = write_text(tmp_path / "set/m.jsonl", line % name.replace("\\", "/").format(outside=outside))
    with pytest.raises(CorpusError, match=r"m\.jsonl:1: .*diary\.wav leads out of"):
        take("manifest", source)
    _, spoken = take("manifest", source, audio=tmp_path / "private")
    assert len(spoken) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and links are made otherwise there")
@pytest.mark.parametrize("make", [lambda path, other: path.symlink_to(other), lambda path, other: os.mkfifo(path)])
def test_labels_that_are_a_link_out_of_the_corpus_or_a_pipe_are_not_opened(tmp_path, make):
    other = write_text(tmp_path / "private" / "list.csv", "file_name,text\na.wav,my diary\n")
    (tmp_path / "set").mkdir()
    make(tmp_path / "set" / "metadata.csv", other)
    with pytest.raises(CorpusError, match=r"metadata\.csv: is a link out of the corpus, or no file"):
        import_corpus("huggingface", tmp_path / "set", Options(), ImportPlan())


def test_a_table_with_more_labels_than_a_corpus_has_is_refused(tmp_path, take, monkeypatch):
    monkeypatch.setattr("fl.data.importers.gather.MAX_UTTERANCES", 5)
    write_parquet(tmp_path / "set/train.parquet", rows(6))
    with pytest.raises(CorpusError, match="more than 5 utterances; import the corpus in parts"):
        take("huggingface", tmp_path / "set")
