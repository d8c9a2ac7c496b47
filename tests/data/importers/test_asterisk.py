"""Asterisk's prompts: a list for each language, a folder for each voice, and utterances that are joined from two of them."""

import gzip

import numpy as np
import pytest

from fl.core.errors import CorpusError
from fl.speech.audio import load_audio

from .conftest import write_text, write_wav

SOUNDS, DOC = "usr/share/asterisk/sounds", "usr/share/doc/asterisk-core-sounds"
ENGLISH = {"agent-pass": "Your password, please.", "dir/none": "Nobody is there.", "hello": "Hello there."}
SPANISH = {"agent-pass": "Su clave, por favor.", "dir/none": "Nadie está."}


@pytest.fixture
def packages(tmp_path):
    """What dpkg -x leaves of the packages of two voices, one of whom speaks two languages."""
    root, number = tmp_path / "asterisk", 0
    for language, voice, texts in (
        (
            "en",
            "en_US_f_Allison",
            {**ENGLISH, "beep": "[a tone]", "one": "One", "lost": "Not recorded.", "x": "press * now"},
        ),
        ("es", "es_MX_f_Allison", SPANISH),
        ("it", "it_IT_m_Carlo", {"agent-pass": "La password, prego."}),
    ):
        lines = [f"; Core Asterisk Sounds in {language}", "", *(f"{key}: {text}" for key, text in texts.items())]
        write_text(root / f"{DOC}-{language}/core-sounds-{language}.txt", "\n".join(lines))
        for key in texts.keys() - {"lost"}:
            write_wav(root / SOUNDS / voice / f"{key}.wav", seed=(number := number + 1))
    return root


def test_each_prompt_is_in_one_utterance_joined_with_one_of_the_other_language_and_another_meaning(packages, take):
    summary, spoken = take("asterisk", packages, parts=("en", "es"))
    assert [(u.id, u.text, u.speaker) for u in spoken] == [
        ("en/agent-pass+es/dir/none", f"{ENGLISH['agent-pass']} {SPANISH['dir/none']}", "topic:Allison other"),
        ("es/agent-pass+en/dir/none", f"{SPANISH['agent-pass']} {ENGLISH['dir/none']}", "topic:Allison other"),
        ("en/hello", ENGLISH["hello"], "topic:Allison other"),
    ]
    assert spoken[1].spans == ((SPANISH["agent-pass"], "es"), (ENGLISH["dir/none"], "en"))
    assert summary.devices_are == "pseudo-devices by topic"
    assert summary.left_out == {"a tone, a key, a note or a single word": 3, "a text without a recording": 1}


def test_the_sound_is_one_prompt_a_pause_and_the_other(packages, take):
    _, (first, _, alone) = take("asterisk", packages, parts=("en", "es"))
    parts = [
        load_audio(packages / SOUNDS / path)
        for path in ("en_US_f_Allison/agent-pass.wav", "es_MX_f_Allison/dir/none.wav")
    ]
    heard = load_audio(first.audio)
    np.testing.assert_allclose(heard, np.concatenate([parts[0], np.zeros(1600), parts[1]]), atol=1 / 32768)
    assert alone.audio == packages / SOUNDS / "en_US_f_Allison/hello.wav"  # stays where it is


def test_every_voice_is_told_apart_and_a_family_of_many_prompts_is_a_topic(packages, take, monkeypatch):
    monkeypatch.setattr("fl.data.importers.corpora.asterisk.LEAST", 2)
    _, spoken = take("asterisk", packages)
    assert {u.speaker for u in spoken} == {
        "topic:Allison agent", "topic:Allison dir", "topic:Allison other", "topic:Carlo other"
    }  # fmt: skip


def test_an_utterance_that_gets_too_long_by_joining_is_left_out(packages, take):
    write_wav(packages / SOUNDS / "es_MX_f_Allison/dir/none.wav", seconds=28.6)
    summary, _ = take("asterisk", packages, parts=("en", "es"))
    assert summary.left_out["longer than 29 s"] == 1


def test_a_recording_that_is_joined_is_read_from_the_corpus_alone(packages, take, tmp_path):
    second = packages / SOUNDS / "es_MX_f_Allison/dir/none.wav"
    second.unlink()
    second.symlink_to(write_wav(tmp_path / "outside.wav"))
    with pytest.raises(CorpusError, match=r"none\.wav leads out of"):
        take("asterisk", packages, parts=("en", "es"))


def test_lists_that_are_still_packed_are_named(packages, take):
    for path in packages.rglob("core-sounds-*.txt"):
        path.with_suffix(".txt.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    with pytest.raises(CorpusError, match=r"holds no core-sounds-\*\.txt.*gunzip"):
        take("asterisk", packages)
