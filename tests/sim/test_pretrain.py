"""Pretraining a CTC base: stopped anywhere and started again it ends at the same bytes, and what it writes is a base."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fl.bases.ctc.base import CtcBase
from fl.bases.resolve import load_speech_base
from fl.core.errors import ConfigError, RunError, VocabularyError
from fl.data.manifest import Utterance, read_manifest
from sim.cli.late import LateGroup
from sim.pretrain.command import one_language
from sim.pretrain.loop import PretrainSettings, pretrain_base, rate_factor

SETTINGS = PretrainSettings(
    pair="ko-en",
    tokens="jamo",
    architecture="wav2vec2-nano",
    speakers=1,
    sentences=1,
    steps=6,
    batch_size=4,
    learning_rate=5e-3,
    warmup=2,
    checkpoint_every=2,
    seed=3,
)


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def speech(tiny_manifest: Path) -> list[Utterance]:
    return [
        replace(u, text=u.text.split()[0]) for u in read_manifest(tiny_manifest)
    ]  # noise of 0.6 s has room for a word


@pytest.fixture(scope="module")
def whole(speech: list[Utterance], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A base that was pretrained without a stop, and its losses."""
    losses: list[float] = []
    out = tmp_path_factory.mktemp("pretrain") / "base"
    pretrain_base(out, SETTINGS, speech, lambda step, loss: losses.append(loss))
    return out, losses


def killed_at(step: int) -> Callable[[int, float], None]:
    def progress(done: int, loss: float) -> None:
        if done == step:
            raise KilledError

    return progress


@pytest.mark.parametrize("step", [1, 4, 5])
def test_a_stopped_run_ends_at_the_same_bytes(
    whole: tuple[Path, list[float]], speech: list[Utterance], tmp_path: Path, step: int
) -> None:
    with pytest.raises(KilledError):
        pretrain_base(tmp_path / "base", SETTINGS, speech, killed_at(step))
    assert not (tmp_path / "base").exists()
    losses: list[float] = []
    facts = pretrain_base(tmp_path / "base", SETTINGS, speech, lambda done, loss: losses.append(loss))
    before = (step - 1) // 2 * 2  # a checkpoint after every second step that ended
    assert losses == whole[1][before:]
    assert facts.first_loss == whole[1][0]
    for name in ("model.safetensors", "config.json", "vocab.json"):
        assert (tmp_path / "base" / name).read_bytes() == (whole[0] / name).read_bytes()
    assert not list(tmp_path.glob(".base*"))


def test_what_is_written_is_a_base(whole: tuple[Path, list[float]], speech: list[Utterance], tmp_path: Path) -> None:
    found = load_speech_base(str(whole[0]), cache=tmp_path)
    assert isinstance(found, CtcBase)
    again = pretrain_base(whole[0], SETTINGS, speech, killed_at(1))  # done already: no step is taken
    assert again.fingerprint == found.fingerprint
    assert again.parameters == found.model.num_parameters()  # type: ignore[operator]
    assert found.fingerprint != load_speech_base("random:wav2vec2-nano+jamo").fingerprint
    assert found.vocabulary.form == "jamo"
    assert whole[1][-1] < whole[1][0]


def test_other_settings_are_not_mixed_with_what_is_there(
    whole: tuple[Path, list[float]], speech: list[Utterance], tmp_path: Path
) -> None:
    other = replace(SETTINGS, seed=4)
    with pytest.raises(RunError, match="other settings"):
        pretrain_base(whole[0], other, speech)
    with pytest.raises(KilledError):
        pretrain_base(tmp_path / "base", SETTINGS, speech, killed_at(4))
    with pytest.raises(RunError, match="other settings"):
        pretrain_base(tmp_path / "base", other, speech)
    (tmp_path / "something").mkdir()
    with pytest.raises(RunError, match="not a base"):
        pretrain_base(tmp_path / "something", SETTINGS, speech)


def test_speech_that_cannot_be_learnt_from_is_refused(speech: list[Utterance], tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="the speech to learn from has"):
        pretrain_base(tmp_path / "a", replace(SETTINGS, tokens="latin"), [replace(u, text="오늘") for u in speech])
    with pytest.raises(ConfigError, match="1 different sentences"):
        pretrain_base(tmp_path / "b", SETTINGS, [replace(u, text="오늘") for u in speech])


def test_only_sentences_in_one_language_are_learnt(speech: list[Utterance]) -> None:
    korean = [replace(u, spans=(("오늘", "ko"),), level=None) for u in speech[:3]]
    english = [replace(u, spans=(("bug", "en"),), level=None) for u in speech[3:5]]
    mixed = [replace(u, spans=(("오늘", "ko"), ("bug", "en")), level=None) for u in speech[5:]]
    assert one_language([*mixed, *english, *korean]) == korean
    with pytest.raises(ConfigError, match="one language"):
        one_language(mixed)


def test_the_rate_rises_and_falls() -> None:
    long = replace(SETTINGS, steps=100, warmup=10)
    factors = [rate_factor(step, long) for step in range(100)]
    assert max(factors) == factors[10] == 1.0
    assert factors[0] == pytest.approx(0.1)
    assert factors[99] == pytest.approx(1 - 0.95 * 89 / 90)


def test_the_command_is_listed() -> None:
    assert LateGroup().load("pretrain").name == "pretrain"
