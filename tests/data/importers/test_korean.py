"""AI Hub: dual transcripts in either order, raw PCM, labels and audio in two trees; KsponSpeech in CP949."""

import numpy as np
import pytest

from fl.core.errors import CorpusError
from fl.data.importers.duals import reversed_votes, spoken_text
from fl.data.importers.records import Options, UnusableError
from fl.speech.audio import load_audio

from .conftest import samples, wav_bytes, write_json, write_text, write_wav

SPELLING_FIRST = "이번 (bug)/(버그)는 (70%)/(칠십 퍼센트) 고쳤어"
PRONUNCIATION_FIRST = "이번 (버그)/(bug)는 (칠십 퍼센트)/(70%) 고쳤어"


def pcm(path, seconds=0.5, odd=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((samples(seconds) * 32768).astype("<i2").tobytes() + (b"\x07" if odd else b""))
    return path


@pytest.mark.parametrize(
    ("text", "order"), [(SPELLING_FIRST, "spelling-first"), (PRONUNCIATION_FIRST, "pronunciation-first")]
)
def test_either_order_gives_the_same_texts_and_loanwords(text, order):
    assert spoken_text(text, "a.json:1", Options(order=order)) == (
        "이번 bug는 70% 고쳤어",
        (("버그", "bug"),),  # a number is no loanword
    )
    heard, _ = spoken_text(text, "a.json:1", Options(order=order, transcript="pronunciation"))
    assert heard == "이번 버그는 칠십 퍼센트 고쳤어"


def test_the_order_is_asked_for_and_not_guessed():
    with pytest.raises(CorpusError, match=r"a\.json:3: dual transcript '\(bug\)/\(버그\)'.*--order spelling-first or"):
        spoken_text(SPELLING_FIRST, "a.json:3", Options())
    assert spoken_text("no dual (here)", "a.json:3", Options()) == ("no dual (here)", ())


@pytest.mark.parametrize("text", ["(3개)?(세 개)", "(3개) / (세 개)", "((3)/(세)개)/(세 개)", "(3개)/((세 개))"])
def test_of_a_dual_with_typing_errors_and_of_one_in_another_either_half_is_taken(text):
    assert spoken_text(f"{text} 줘", "a.json:1", Options(order="spelling-first")) == ("3개 줘", ())
    heard = Options(order="spelling-first", transcript="pronunciation")
    assert spoken_text(f"{text} 줘", "a.json:1", heard) == ("세 개 줘", ())


def test_an_order_that_is_probably_the_wrong_one_is_noticed():
    assert reversed_votes(SPELLING_FIRST, "pronunciation-first") == 2
    assert reversed_votes(SPELLING_FIRST, "spelling-first") == -2
    assert reversed_votes(PRONUNCIATION_FIRST, "pronunciation-first") == -2


@pytest.mark.parametrize("text", ["이번 (bug)/(버그는", "이번 bug)/(버그)는", "이번 (bug)/버그)는"])
def test_a_dual_that_is_not_closed_is_refused(text):
    with pytest.raises(UnusableError, match=r"a\.json:1: a dual transcript is not closed near"):
        spoken_text(text, "a.json:1", Options(order="spelling-first"))


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("b/ 아/ 모+ 몬 소리야 확률이라니 n/", "아 모 몬 소리야 확률이라니"),
        ("그* 뭐 {laughing} 좋아 @웃음", "그 뭐 좋아"),
        ("((아마)) 맞아", "아마 맞아"),
        ("1/2 정도 and/or", "1/2 정도 and/or"),
    ],
)
def test_marks_are_removed_and_words_stay(text, clean):
    assert spoken_text(text, "a.json:1", Options()) == (clean, ())
    assert spoken_text(text, "a.json:1", Options(events="keep")) == (text, ())


@pytest.fixture
def conversation(tmp_path):
    """One label file with several utterances of two people, audio (raw PCM) in the other tree, as AI Hub packs them."""
    root = tmp_path / "[코드스위칭]"
    label = {
        "id": "D0001",
        "metadata": {"topic": "쇼핑"},
        "speaker": [{"id": "S1", "age": "20"}, {"id": "S2", "age": "30"}],
        "utterance": [
            {"id": "D0001.1", "form": SPELLING_FIRST, "speaker_id": "S1", "start": 0.0, "end": 0.5},
            {"id": "D0001.2", "form": "응 (meeting)/(미팅) 있어", "speaker_id": "S2", "start": "0.5", "end": "1.1"},
            {"id": "D0001.3", "form": "&name1& 왔어", "speaker_id": "S2", "start": 1.1, "end": 1.6},
            {"id": "D0001.4", "form": "n/", "speaker_id": "S1", "start": 1.6, "end": 2.0},
        ],
    }
    write_json(root / "라벨링데이터" / "D0001.json", label)
    pcm(root / "원천데이터" / "D0001.pcm", seconds=2.0)
    return root


def test_a_conversation_becomes_utterances_of_its_speakers(conversation, take):
    summary, spoken = take("aihub", conversation, order="spelling-first")
    assert [(u.id, u.speaker, u.session, u.text) for u in spoken] == [
        ("D0001.1", "S1", "D0001", "이번 bug는 70% 고쳤어"),
        ("D0001.2", "S2", "D0001", "응 meeting 있어"),
    ]
    assert spoken[1].loanwords == (("미팅", "meeting"),)
    # raw PCM has no header, so it is written out, cut to the utterance
    np.testing.assert_allclose(load_audio(spoken[1].audio), samples(2.0)[8_000:17_600], atol=1 / 32768)
    assert summary.left_out == {"a masked name": 1, "no words in the text": 1}
    assert summary.loanwords == 2
    assert summary.notes == []


def test_lines_of_utterances_inside_json_are_named(conversation, take):
    path = conversation / "라벨링데이터" / "D0001.json"
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "meeting" in text)
    path.write_text(path.read_text().replace('"speaker_id": "S2"', '"speaker_id": "S9"', 1))
    with pytest.raises(CorpusError, match=rf"D0001\.json:{line}: speaker 'S9' is not among those .*\(S1, S2\)"):
        take("aihub", conversation, order="spelling-first")


def test_the_wrong_order_is_remarked_upon(conversation, take):
    summary, _ = take("aihub", conversation, order="pronunciation-first")
    assert "is --order pronunciation-first right?" in summary.notes[0]
    assert summary.loanwords == 0


def test_speakers_that_are_numbered_in_each_file_stay_apart(tmp_path, take):
    for name in ("c1", "c2"):
        write_json(tmp_path / "kecs" / f"{name}.json", {"speaker_id": "1", "form": f"안녕 {name}"})
        write_wav(tmp_path / "kecs" / f"{name}.wav")
    _, spoken = take("aihub", tmp_path / "kecs", local_speakers=True)
    assert [(u.id, u.speaker) for u in spoken] == [("c1", "c1/1"), ("c2", "c2/1")]
    assert spoken[0].audio == tmp_path / "kecs" / "c1.wav"


def test_fields_of_other_sets_are_named_by_the_user(tmp_path, take):
    label = {"dataset": {"dialogs": [{"who": {"tag": "K7"}, "orgtext": "집에 가자", "wavfile": "a.wav"}]}}
    write_json(tmp_path / "kecs" / "labels" / "x.json", label)
    write_wav(tmp_path / "kecs" / "a.wav")
    with pytest.raises(CorpusError, match=r"x\.json:1: no text under form, .*--field text=NAME"):
        take("aihub", tmp_path / "kecs")
    fields = {"text": "orgtext", "speaker": "tag", "audio": "wavfile", "utterances": "dataset.dialogs"}
    _, (utterance,) = take("aihub", tmp_path / "kecs", fields=fields)
    assert (utterance.id, utterance.speaker, utterance.text) == ("x-1", "K7", "집에 가자")


def test_labels_without_speakers_become_pseudo_devices_and_say_so(tmp_path, take):
    for name, topic in (("a", "여행"), ("b", "음식")):
        write_json(tmp_path / "set" / f"{name}.json", {"transcription": f"안녕 {name}", "topic": topic})
        write_wav(tmp_path / "set" / f"{name}.wav")
    summary, spoken = take("aihub", tmp_path / "set")
    assert [u.speaker for u in spoken] == ["topic:여행", "topic:음식"]
    assert summary.devices_are == "pseudo-devices by topic"


def test_one_utterance_without_a_speaker_among_others_is_an_unknown_speaker(tmp_path, take):
    write_json(tmp_path / "set" / "a.json", {"text": "안녕 하나", "speaker_id": "S1"})
    write_json(tmp_path / "set" / "b.json", {"text": "안녕 둘"})
    for name in "ab":
        write_wav(tmp_path / "set" / f"{name}.wav")
    with pytest.raises(CorpusError, match=r"b\.json:2: utterance 'b' has no speaker, others have"):
        take("aihub", tmp_path / "set")


def test_two_audio_files_of_one_name_are_not_chosen_between(tmp_path, take):
    write_json(tmp_path / "set" / "a.json", {"text": "안녕", "speaker_id": "S1"})
    for folder in ("x", "y"):
        write_wav(tmp_path / "set" / folder / "a.wav")
    with pytest.raises(CorpusError, match=r"a\.json:2: 2 audio files are called 'a'"):
        take("aihub", tmp_path / "set")


def test_a_pcm_with_an_odd_byte_and_one_with_a_header_are_read(tmp_path, take):
    folder = tmp_path / "Kspon" / "KsponSpeech_0001"
    pcm(folder / "KsponSpeech_000001.pcm", odd=True)
    (folder / "KsponSpeech_000002.pcm").write_bytes(wav_bytes())
    for number, text in ((1, "b/ 아/ 몬 소리야 (70%)/(칠십 퍼센트)"), (2, "그래서 뭐+ 뭐라고")):
        write_text(folder / f"KsponSpeech_00000{number}.txt", text, "cp949")
    with pytest.raises(CorpusError, match=r"000001\.txt:1: not UTF-8; it looks like cp949: give --encoding cp949"):
        take("kspon", tmp_path / "Kspon", order="spelling-first")
    summary, spoken = take("kspon", tmp_path / "Kspon", order="spelling-first", encoding="cp949")
    assert [u.text for u in spoken] == ["아 몬 소리야 70%", "그래서 뭐 뭐라고"]
    for utterance in spoken:
        np.testing.assert_allclose(load_audio(utterance.audio), samples(), atol=1 / 32768)
    assert summary.devices_are == "pseudo-devices by session"
    assert {u.speaker for u in spoken} == {"session:KsponSpeech_0001"}


def test_lists_of_kspon_name_the_split(tmp_path, take):
    root = tmp_path / "Kspon"
    for number, name in ((1, "train"), (2, "eval_clean")):
        pcm(root / "data" / f"KsponSpeech_00000{number}.pcm")
        write_text(root / f"{name}.trn", f"KsponSpeech_01/KsponSpeech_00000{number}.pcm :: 문장 {number}\n")
    _, spoken = take("kspon", root)
    assert {u.id: u.split for u in spoken} == {"KsponSpeech_000001": "train", "KsponSpeech_000002": "test"}
