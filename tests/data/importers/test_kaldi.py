"""Kaldi directories and SEAME, which comes as one or as the LDC ships it. No command of a corpus is ever run."""

import numpy as np
import pytest

from fl.core.errors import CorpusError
from fl.speech.audio import load_audio

from .conftest import samples, write_text, write_wav


@pytest.fixture
def kaldi(tmp_path):
    """Two recordings with two utterances each, cut by segments, of two speakers."""
    folder = tmp_path / "data" / "train"
    for name in ("rec1", "rec2"):
        write_wav(folder / "wav" / f"{name}.wav", seconds=2.0)
    write_text(folder / "wav.scp", "rec1 wav/rec1.wav\nrec2 wav/rec2.wav\n")
    write_text(folder / "text", "u1 hello there\nu2 bonne nuit\nu3 guten tag\nu4 good bye\n")
    write_text(folder / "segments", "u1 rec1 0.0 0.5\nu2 rec1 0.5 1.25\nu3 rec2 1.0 -1\nu4 rec2 0 9.5\n")
    write_text(folder / "utt2spk", "u1 ann\nu2 ann\nu3 bob\nu4 bob\n")
    return folder


def test_segments_cut_a_recording_in_place(kaldi, take):
    summary, spoken = take("kaldi", kaldi)
    assert [(u.id, u.speaker, u.start, u.end) for u in spoken] == [
        ("u1", "ann", 0.0, 0.5),
        ("u2", "ann", 0.5, 1.25),
        ("u3", "bob", 1.0, None),  # -1: to the end
        ("u4", "bob", 0.0, 2.0),  # past the end: cut there
    ]
    assert spoken[0].audio.samefile(kaldi / "wav" / "rec1.wav")
    assert summary.hours * 3600 == pytest.approx(0.5 + 0.75 + 1.0 + 2.0, abs=0.2)


def test_copied_segments_are_files_of_their_own(kaldi, take):
    _, spoken = take("kaldi", kaldi, plan={"copy": True})
    assert (spoken[1].start, spoken[1].end) == (None, None)
    expected = samples(2.0)[8_000:20_000]
    np.testing.assert_allclose(load_audio(spoken[1].audio), expected, atol=1 / 32768)


def test_a_command_is_not_run_and_its_recording_is_found_by_name(kaldi, tmp_path, take):
    proof = tmp_path / "it-was-run"
    write_text(kaldi / "wav.scp", f"rec1 touch {proof}; cat wav/rec1.wav |\nrec2 wav/rec2.wav\n")
    with pytest.raises(
        CorpusError, match=r"wav\.scp:1: .*output of a command.*are not run.*--audio DIR \(rec1\.flac\)"
    ):
        take("kaldi", kaldi)
    assert not proof.exists()
    _, spoken = take("kaldi", kaldi, audio=kaldi / "wav")
    assert not proof.exists()
    assert spoken[0].audio == kaldi / "wav" / "rec1.wav"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("wav.scp", "rec1 wav/rec1.wav", "rec1 /data/raw.ark:17", r"wav\.scp:1: .*Kaldi archive"),
        ("wav.scp", "rec1 wav/rec1.wav", "rec1 ../../../etc/passwd", r"wav\.scp:1: .*leads out of .*--audio DIR"),
        ("wav.scp", "rec1 wav/rec1.wav", "rec1 /etc/passwd", r"wav\.scp:1: .*leads out of"),
        ("wav.scp", "rec1 wav/rec1.wav", "rec1 wav/gone.wav", r"text:1: no such audio file: .*gone\.wav"),
        ("wav.scp", "rec1 wav/rec1.wav", "other wav/rec1.wav", r"text:1: recording 'rec1' has no line in wav\.scp"),
        ("text", "u2 bonne nuit", "u1 bonne nuit", r"text:2: 'u1' was already in .*text:1"),
        ("utt2spk", "u2 ann\n", "", r"text:2: utterance 'u2' has no line in .*utt2spk"),
        ("segments", "u2 rec1 0.5 1.25\n", "", r"text:2: utterance 'u2' has no line in .*segments"),
        ("segments", "0.5 1.25", "1.25 0.5", r"segments:2: start 1\.25 is not before end 0\.5"),
        ("segments", "0.5 1.25", "0.5 end", r"segments:2: a segment is utterance, recording, start and end"),
        ("utt2spk", "u1 ann", "u1", r"utt2spk:1: 'u1' stands alone"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(kaldi, take, file, old, new, message):
    path = kaldi / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(CorpusError, match=message):
        take("kaldi", kaldi)


def test_bad_utterances_can_be_left_out_and_are_counted(kaldi, take):
    write_text(kaldi / "wav.scp", "rec1 wav/gone.wav\nrec2 wav/rec2.wav\n")
    write_text(kaldi / "utt2spk", "u1 ann\nu2 ann\nu4 bob\n")
    summary, spoken = take("kaldi", kaldi, plan={"drop_bad": True})
    assert [u.id for u in spoken] == ["u4"]
    assert summary.left_out == {"unknown speaker": 1, "missing audio": 2}
    assert summary.examples["missing audio"] == f"{kaldi / 'text'}:1"


def test_too_short_too_long_and_beyond_the_end_are_left_out(kaldi, take):
    write_wav(kaldi / "wav" / "rec1.wav", seconds=40.0)
    write_text(kaldi / "segments", "u1 rec1 0 30\nu2 rec1 0.5 0.6\nu3 rec2 2.5 3\nu4 rec2 0 1\n")
    summary, spoken = take("kaldi", kaldi)
    assert [u.id for u in spoken] == ["u4"]
    expected = {"longer than 29 s": 1, "shorter than 0.2 s": 1, "beyond the end of its recording": 1}
    assert summary.left_out == expected


def test_two_channels_are_not_averaged_into_one_speaker(kaldi, take):
    write_text(kaldi / "reco2file_and_channel", "rec1 rec1 A\nrec2 rec2 B\n")
    with pytest.raises(CorpusError, match=r"reco2file_and_channel:2: .*more than one channel"):
        take("kaldi", kaldi)


def test_folders_name_the_splits(tmp_path, take):
    for split in ("train", "dev", "test"):
        folder = tmp_path / "data" / split
        write_wav(folder / "a.wav")
        write_text(folder / "wav.scp", f"{split}-a {split}/a.wav")
        write_text(folder / "text", f"{split}-a we say {split}")
        write_text(folder / "utt2spk", f"{split}-a ann")
    _, spoken = take("kaldi", tmp_path / "data")
    assert {u.id: u.split for u in spoken} == {"train-a": "train", "dev-a": "validation", "test-a": "test"}


@pytest.fixture
def ldc(tmp_path):
    """The tree of LDC2015S04: FLAC (here WAV) beside transcripts with milliseconds and a language."""
    data = tmp_path / "LDC2015S04" / "data"
    for style, name in (("conversation", "01NC01FBX_0101"), ("interview", "NI01MAX_0101")):
        write_wav(data / style / "audio" / f"{name}.wav", seconds=3.0)
        lines = [
            f"{name}\t0\t600\tCS\t<noise> 今天 okay 明天 (ppl) meeting",
            f"{name}\t1000\t1800\tZH\t我 不 知道 [laugh]",
            f"{name}\t1800\t2500\tEN\tthe <unk> thing",
            f"{name}\t2500\t9000\tEN\tsee you",
            f"{name}\t5000\t6000\tEN\tnot recorded",
            f"{name}\t600\t1000\tEN\t<noise>",
        ]
        write_text(data / style / "transcript" / "phaseII" / f"{name}.txt", "\n".join(lines) + "\n")
        write_text(data / style / "transcript" / "phaseI" / f"{name}.txt", f"{name}\t0\t600\told text\n")
    return data.parent


def test_seame_from_the_ldc_takes_speakers_from_names_and_times_in_milliseconds(ldc, take):
    summary, spoken = take("seame", ldc)
    assert {u.speaker for u in spoken} == {"NC01FB", "NI01MA"}
    first = [u for u in spoken if u.speaker == "NC01FB"]
    assert [(u.text, u.start, u.end, u.lang, u.session) for u in first] == [
        ("今天 okay 明天 meeting", 0.0, 0.6, "zh", "01NC01FBX_0101"),  # CS: the language of most words
        ("我 不 知道", 1.0, 1.8, "zh", "01NC01FBX_0101"),
        ("see you", 2.5, 3.0, "en", "01NC01FBX_0101"),  # the recording ends first
    ]
    assert summary.left_out == {
        "unintelligible speech": 2,
        "no words in the text": 2,
        "beyond the end of its recording": 2,
    }


def test_seame_from_a_recipe_keeps_speakers_whatever_utt2spk_says(tmp_path, take):
    folder = tmp_path / "seame" / "devman"
    ids = ("nc01f-01nc01fbx_0101-000000-000060", "nc01f-01nc01fbx_0101-000060-000120")
    write_wav(folder / "01nc01fbx_0101.wav", seconds=2.0)
    write_text(folder / "wav.scp", "01nc01fbx_0101 devman/01nc01fbx_0101.wav")
    write_text(folder / "segments", f"{ids[0]} 01nc01fbx_0101 0 0.6\n{ids[1]} 01nc01fbx_0101 0.6 1.2\n")
    write_text(folder / "text", f"{ids[0]} okay 明 天\n{ids[1]} see you\n")
    write_text(folder / "utt2spk", f"{ids[0]} {ids[0]}\n{ids[1]} {ids[1]}\n")  # a recipe without speakers
    _, spoken = take("seame", tmp_path / "seame", plan={"splits": "official"})
    assert [(u.speaker, u.session, u.split) for u in spoken] == [("NC01FB", "01NC01FBX_0101", "test")] * 2


def test_seame_ids_are_not_read_as_times(tmp_path, take):
    folder = tmp_path / "train"
    write_wav(folder / "01NC01FBX_0101.wav", seconds=2.0)
    lines = ("01NC01FBX_0101-0-6010", "01NC01FBX_0101-6010-7000")
    write_text(folder / "wav.scp", "".join(f"{line} 01NC01FBX_0101.wav\n" for line in lines))
    write_text(folder / "text", "".join(f"{line} okay 明天\n" for line in lines))
    with pytest.raises(CorpusError, match=r"text:1: .*milliseconds or hundredths.*write segments"):
        take("seame", folder)


def test_an_id_without_a_speaker_of_seame_is_refused(tmp_path, take):
    write_wav(tmp_path / "k" / "a.wav")
    write_text(tmp_path / "k" / "wav.scp", "utt1 a.wav")
    write_text(tmp_path / "k" / "text", "utt1 okay")
    with pytest.raises(CorpusError, match=r"text:1: id 'utt1' names no speaker of SEAME"):
        take("seame", tmp_path / "k")
