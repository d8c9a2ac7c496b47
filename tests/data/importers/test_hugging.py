"""HiKE, ASCEND, zeroth_korean and any dataset of the Hub: Parquet with audio inside, Arrow, folders of audio."""

import hashlib
import json

import numpy as np
import pytest
import soundfile

from fl.core.errors import CorpusError
from fl.data.importers.tables import ArrowTable
from fl.speech.audio import load_audio

from .conftest import RATE, samples, wav_bytes, write_parquet, write_text, write_wav


def hike_row(number, category="travel", **changes):
    return {
        "audio": {"bytes": wav_bytes(seed=number), "path": f"{number}.wav"},
        "text": f"이번 Bug는 session {number}에 문제가 있었어.",
        "text_normalized": f"이번 bug는 session {number}에 문제가 있었어",
        "text_pier_labeled": f"이번 <tag bug> <tag 는> <tag session> {number}에 문제가 있었어",
        "cs_level": "word",
        "cs_levels_all": "['word']",
        "category": category,
        "loanwords": json.dumps([{"Korean": "버그", "English": "bug"}], ensure_ascii=False),
        "sample_id": f"s{number}",
        **changes,
    }


def test_hike_has_pseudo_devices_by_category_and_loanwords_from_a_json_string(tmp_path, take):
    rows = [hike_row(1), hike_row(2, "business", cs_level="phrase"), hike_row(3, "business")]
    table = write_parquet(tmp_path / "HiKE/data/test-00000-of-00001.parquet", rows)
    summary, spoken = take("hike", tmp_path / "HiKE")
    assert [(u.id, u.speaker, u.level, u.split) for u in spoken] == [
        ("s1", "topic:travel", "word", None),
        ("s2", "topic:business", "phrase", None),
        ("s3", "topic:business", "word", None),
    ]
    assert spoken[0].text == "이번 Bug는 session 1에 문제가 있었어."
    assert spoken[0].loanwords == (("버그", "bug"),)
    assert spoken[0].lang == "ko"
    assert summary.devices_are == "pseudo-devices by topic"
    assert "the official one leaves 2 of 2 devices without training" in summary.splits_are
    assert summary.languages == {"ko+en": 3}
    assert summary.tables == {
        "data/test-00000-of-00001.parquet": hashlib.sha256(table.read_bytes()).hexdigest()
    }  # which revision it was


def test_audio_inside_a_table_is_written_as_flac_row_by_row(tmp_path, take):
    # eight rows in row groups of three: every utterance gets its own audio
    write_parquet(tmp_path / "HiKE/data/test.parquet", [hike_row(n) for n in range(8)])
    summary, spoken = take("hike", tmp_path / "HiKE")
    for number, utterance in enumerate(spoken):
        assert utterance.audio.suffix == ".flac"
        assert utterance.audio.is_relative_to(tmp_path / "out" / "audio")
        np.testing.assert_allclose(load_audio(utterance.audio), samples(seed=number), atol=1 / 32768)
    assert summary.hours == pytest.approx(8 * 0.5 / 3600, abs=1e-4)


def test_broken_loanwords_are_named_by_row(tmp_path, take):
    write_parquet(tmp_path / "HiKE/test.parquet", [hike_row(1), hike_row(2, loanwords="버그=bug")])
    with pytest.raises(CorpusError, match=r"test\.parquet:2: 'loanwords' is not a JSON list"):
        take("hike", tmp_path / "HiKE")


def ascend_row(number, speaker, **changes):
    return {
        "id": f"{number:05d}",
        "path": f"waves/{number}.wav",
        "audio": {"bytes": wav_bytes(seed=number), "path": f"{number}.wav"},
        "transcription": f"我们 meeting 第{number}次",
        "duration": 0.5,
        "language": "mixed",
        "original_speaker_id": speaker,
        "session_id": 3,
        "topic": "technology",
        **changes,
    }


def test_ascend_speakers_are_whole_numbers_and_an_unheard_word_leaves_the_utterance_out(tmp_path, take):
    rows = [ascend_row(1, 17), ascend_row(2, 4, language="zh"), ascend_row(3, 4, transcription="然后 [UNK] 就是")]
    write_parquet(tmp_path / "ASCEND/main/train-00000-of-00001.parquet", rows)
    summary, spoken = take("ascend", tmp_path / "ASCEND")
    assert [(u.id, u.speaker, u.session, u.lang) for u in spoken] == [
        ("00001", "ascend-17", "3", "zh"),  # mixed: the language of most words
        ("00002", "ascend-4", "3", "zh"),
    ]
    assert summary.left_out == {"unintelligible speech": 1}
    assert summary.examples["unintelligible speech"].endswith("train-00000-of-00001.parquet:3")
    assert summary.devices_are == "speakers"


def test_labels_kept_as_numbers_are_read_by_the_names_in_the_schema(tmp_path, take):
    names = {"language": {"_type": "ClassLabel", "names": ["zh", "en", "mixed"]}}
    rows = [ascend_row(1, 1, language=1, transcription="let us meet"), ascend_row(2, 1, language=0)]
    write_parquet(tmp_path / "ASCEND/main/train.parquet", rows, names)
    _, spoken = take("ascend", tmp_path / "ASCEND")
    assert [u.lang for u in spoken] == ["en", "zh"]


def zeroth_row(number, speaker, text):
    return {
        "id": f"{speaker}_{number}",
        "speaker_id": speaker,
        "chapter_id": 7,
        "path": f"{number}.flac",
        "audio": {"bytes": wav_bytes(seed=number), "path": None},
        "text": text,
    }


@pytest.fixture
def zeroth(tmp_path):
    # speaker 1 and 2 train, 9 tests; a sentence of the test is read in training as well, with another point
    train = [zeroth_row(1, 1, "인사를 했다."), zeroth_row(2, 1, "비가 온다"), zeroth_row(3, 2, "비가 온다")]
    write_parquet(tmp_path / "zeroth/data/train-00000-of-00001.parquet", train)
    write_parquet(tmp_path / "zeroth/data/test-00000-of-00001.parquet", [zeroth_row(4, 9, "인사를 했다")])
    return tmp_path / "zeroth"


def test_zeroth_is_divided_by_device_since_its_test_has_other_people(zeroth, take):
    summary, spoken = take("zeroth", zeroth)
    assert {(u.speaker, u.session, u.lang, u.split) for u in spoken} == {
        (f"zeroth-{speaker}", "7", "ko", None) for speaker in (1, 2, 9)
    }
    assert summary.shared_texts == 2
    assert "leaves 3 of 3 devices without training or test" in summary.splits_are


def test_a_sentence_in_train_and_test_is_refused(zeroth, take):
    with pytest.raises(
        CorpusError, match=r"1 of 4 utterances.*\n.*train-0.*parquet:1 \(train\) and .*test-0.*:1 \(test\)"
    ):
        take("zeroth", zeroth, plan={"splits": "official"})


def test_a_leaking_sentence_can_be_dropped_from_training(zeroth, take):
    summary, spoken = take("zeroth", zeroth, plan={"splits": "official", "drop_leaking": True})
    assert [(u.id, u.split) for u in spoken] == [("9_4", "test"), ("1_2", "train"), ("2_3", "train")]
    assert summary.left_out == {"the text is in test too": 1}
    assert summary.splits_are == "the official one; 3 of 3 devices have nothing to train on or no test"


def test_only_the_parts_that_are_asked_for_are_read(zeroth, take):
    _, spoken = take("zeroth", zeroth, parts=("test",))
    assert [u.speaker for u in spoken] == ["zeroth-9"]


def test_an_official_split_stays_where_every_device_has_both(tmp_path, take):
    rows = [{"id": f"{s}{n}", "speaker": s, "text": f"{s} says {n}", "split": split, "audio": f"{n}.wav"}
            for s in "ab" for n, split in enumerate(("train", "dev", "test"))]  # fmt: skip
    for n in range(3):
        write_wav(tmp_path / "set" / f"{n}.wav")
    write_text(tmp_path / "set/metadata.jsonl", "\n".join(json.dumps(row) for row in rows))
    summary, spoken = take("huggingface", tmp_path / "set")
    assert [u.split for u in spoken] == ["train", "validation", "test"] * 2
    assert summary.splits_are == "the official one"


def test_a_folder_of_audio_takes_its_split_from_the_folders_name(tmp_path, take):
    for split, text in (("train", "hello there"), ("test", "good bye")):
        write_wav(tmp_path / "set" / split / "one.wav")
        lines = f'file_name,transcription,client_id,id\none.wav,"{text}, friend",ann,{split}-1\n'
        write_text(tmp_path / "set" / split / "metadata.csv", lines)
    summary, spoken = take("huggingface", tmp_path / "set")
    assert {(u.id, u.text, u.speaker, u.split) for u in spoken} == {
        ("train-1", "hello there, friend", "ann", "train"),
        ("test-1", "good bye, friend", "ann", "test"),
    }
    assert {u.audio for u in spoken} == {tmp_path / "set" / s / "one.wav" for s in ("train", "test")}  # in place
    assert summary.splits_are == "the official one"


def test_what_save_to_disk_wrote_is_read(tmp_path, take):
    pa = pytest.importorskip("pyarrow")
    rows = [ascend_row(n, 1) for n in range(3)]
    table = pa.Table.from_pylist(rows)
    path = tmp_path / "disk/train/data-00000-of-00001.arrow"
    path.parent.mkdir(parents=True)
    with pa.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    _, spoken = take("huggingface", tmp_path / "disk")
    assert [u.speaker for u in spoken] == ["1"] * 3
    for number, utterance in enumerate(spoken):
        np.testing.assert_allclose(load_audio(utterance.audio), samples(seed=number), atol=1 / 32768)


def test_another_rate_and_two_channels_become_16_khz_mono(tmp_path, take):
    import io

    buffer = io.BytesIO()
    both = np.stack([samples(rate=8000), samples(rate=8000)], axis=1)
    soundfile.write(buffer, both, 8000, format="FLAC")
    write_parquet(tmp_path / "HiKE/test.parquet", [hike_row(1, audio={"bytes": buffer.getvalue(), "path": "a.flac"})])
    _, (utterance,) = take("hike", tmp_path / "HiKE")
    found = soundfile.info(str(utterance.audio))
    assert (found.samplerate, found.channels, found.frames) == (RATE, 1, RATE // 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer.*git lfs pull"),
        (b"PAR1 this was cut", "is not a parquet file.*fetch it again"),
    ],
)
def test_a_table_that_is_none_says_what_it_is(tmp_path, take, content, message):
    pytest.importorskip("pyarrow")
    (tmp_path / "HiKE").mkdir()
    (tmp_path / "HiKE/test.parquet").write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        take("hike", tmp_path / "HiKE")


def test_audio_bytes_that_are_no_audio_are_named_by_row(tmp_path, take):
    write_parquet(tmp_path / "HiKE/test.parquet", [hike_row(1), hike_row(2, audio={"bytes": b"none", "path": "x"})])
    with pytest.raises(CorpusError, match=r"test\.parquet:2: .*row 2: cannot be read"):
        take("hike", tmp_path / "HiKE")


def test_another_column_can_be_named_and_a_wrong_name_lists_those_there_are(tmp_path, take):
    write_parquet(tmp_path / "HiKE/test.parquet", [hike_row(1)])
    with pytest.raises(
        CorpusError, match=r"--field text=words: no such column; there are audio, text, text_normalized"
    ):
        take("hike", tmp_path / "HiKE", fields={"text": "words"})
    _, (utterance,) = take("hike", tmp_path / "HiKE", fields={"text": "text_normalized"})
    assert utterance.text == "이번 bug는 session 1에 문제가 있었어"


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorpusError, match=r"pip install 'idiolect-fl\[import\]'"):
        ArrowTable(tmp_path / "a.parquet")
