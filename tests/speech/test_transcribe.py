"""What a run wrote for a device transcribes a file, whichever method trained it, and under its run's correction."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fl.adapters.config import target_pattern
from fl.adapters.correction import corrected, corrected_fingerprint, save_correction
from fl.adapters.files import AdapterInfo, save_adapter
from fl.adapters.state import tensors_digest
from fl.bases.resolve import load_speech_base
from fl.core.errors import AdapterError, AdapterMismatchError, AudioError, ConfigError
from fl.methods.base import Recipe
from fl.methods.files import MethodInfo, save_method
from fl.methods.lora import peft_config
from fl.methods.recipes import attach
from fl.packed.folder import pack_folder
from fl.speech.audio import load_audio, save_audio
from fl.speech.features import heard_frames
from fl.speech.spelling import SpellingTable
from fl.speech.transcribe import Trained, transcribe_file

WHISPER, CTC = "random:whisper-nano", "random:wav2vec2-nano+jamo"
OTHERS = ("bottleneck", "prefix", "dora", "bitfit")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    noise = np.random.default_rng(3).normal(size=24_000)
    audio = (0.1 * noise * (0.1 + np.abs(np.sin(np.arange(24_000) / 2_000)))).astype(np.float32)
    path = tmp_path_factory.mktemp("recording") / "one.wav"
    save_audio(path, audio)
    return path


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., tuple[Path, str]]:
    """The folder of what a method trained, far from its start, and what it writes when it is decoded in memory."""

    def make(name: str, method: str, recording: Path, **changes: str) -> tuple[Path, str]:
        base = load_speech_base(name)
        sites = ("encoder.self",) if name == CTC else ("encoder.self", "decoder.self", "decoder.cross")
        recipe = Recipe(method, 4, 8.0, "none", target_pattern(sites), 1)
        attached = attach(base.new_model(), recipe)
        generator, size = torch.Generator().manual_seed(5), 5.0 if method == "prefix" else 0.5
        attached.load(
            {n: p.detach() + size * torch.randn(p.shape, generator=generator) for n, p in attached.parameters.items()}
        )
        facts = {
            "base_name": name,
            "base_fingerprint": base.fingerprint,
            "split": "all-private",
            "language": "ko",
            **changes,
        }
        folder = tmp_path / "run" / "devices" / "global" / "ann" / "adapter"
        if method in OTHERS:
            save_method(folder, attached.state(), MethodInfo(recipe=recipe, **facts))
        else:
            save_adapter(folder, attached.state(), AdapterInfo(config=peft_config(recipe), **facts))
        return folder, said(base, attached.model, recording)

    return make


def said(base, model, recording: Path) -> str:
    audio = load_audio(recording)
    batch = base.collate([base.features(audio)], None, "trimmed", "ko")
    with torch.inference_mode():
        return base.generate(model, batch, heard=[heard_frames(len(audio))])[0]


@pytest.mark.parametrize("method", ["lora", *OTHERS])
@pytest.mark.parametrize("name", [WHISPER, CTC])
def test_a_folder_of_any_method_is_decoded(name: str, method: str, recording: Path, trained) -> None:
    folder, expected = trained(name, method, recording)
    assert [piece.text for piece in transcribe_file(recording, "", folder)] == [expected]
    base = load_speech_base(name)
    assert expected != said(base, base.model, recording), "what was trained must change what is heard"


def test_a_spelling_table_beside_the_adapter_respells_what_is_heard(recording: Path, trained) -> None:
    folder, heard = trained(WHISPER, "lora", recording)
    first, *rest = heard.split()
    SpellingTable(((first, "coffee"),), frozenset({""}), frozenset()).write(folder)
    respelled = ["coffee" if word == first else word for word in (first, *rest)]
    assert [piece.text for piece in transcribe_file(recording, "", folder)] == [" ".join(respelled)]


def test_other_methods_are_no_rows_of_a_batch(recording: Path, trained) -> None:
    folder, _ = trained(WHISPER, "prefix", recording)
    with pytest.raises(
        AdapterError, match=r"only low-rank adapters are rows of a batch.*idiolect transcribe --adapter"
    ):
        pack_folder(folder)


def test_a_method_of_another_base_is_refused(recording: Path, trained) -> None:
    folder, _ = trained(WHISPER, "bitfit", recording, base_fingerprint="whisper:other")
    with pytest.raises(AdapterMismatchError, match="load that base instead"):
        transcribe_file(recording, "", folder)


@pytest.mark.parametrize("named", [True, False])
def test_an_adapter_is_decoded_under_its_correction(named: bool, recording: Path, trained) -> None:
    """Found by the adapter's fingerprint in the run, or given as a file."""
    base = load_speech_base(WHISPER)
    layer = "base_model.model.model.encoder.layers.0.self_attn.v_proj"
    corrections = {layer: torch.randn(64, 64, generator=torch.Generator().manual_seed(2))}
    mark = corrected_fingerprint(base.fingerprint, corrections) if named else base.fingerprint
    folder, without = trained(WHISPER, "lora", recording, base_fingerprint=mark)
    if named:
        with pytest.raises(AdapterError, match="--correction FILE"):
            transcribe_file(recording, "", folder)
    path = folder.parents[3] / "corrections" / f"{tensors_digest(corrections)}.safetensors"
    save_correction(path, corrections, base.fingerprint)
    found = transcribe_file(recording, "", folder, correction=None if named else path)
    with corrected(Trained.read(folder).on(base), corrections) as model:
        expected = said(base, model, recording)
    assert [piece.text for piece in found] == [expected] != [without]


@pytest.mark.parametrize("method", ["lora", "bitfit"])
def test_a_precision_is_that_of_a_run(method: str, recording: Path, trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 weights under what was added to them; where the weights themselves were trained, only products are in bf16."""
    folder, _ = trained(WHISPER, method, recording)
    base = load_speech_base(WHISPER)
    seen, generate = [], type(base).generate

    def watched(own, model, *arguments, **options):
        seen.append((torch.is_autocast_enabled("cpu"), own.dtype))
        return generate(own, model, *arguments, **options)

    monkeypatch.setattr(type(base), "generate", watched)
    for precision in ("float32", "bf16"):
        assert transcribe_file(recording, "", folder, precision=precision)
    narrow = (True, torch.float32) if method == "bitfit" else (False, torch.bfloat16)
    assert seen == [(False, torch.float32), narrow]
    with pytest.raises(ConfigError, match="precision = 'fp16' is unknown"):
        transcribe_file(recording, "", folder, precision="fp16")


def test_a_language_may_be_given_in_any_way_or_is_refused(recording: Path) -> None:
    found = [transcribe_file(recording, WHISPER, None, language=name) for name in ("en", "en-US", "English")]
    assert found[0] == found[1] == found[2] != transcribe_file(recording, WHISPER, None, language="ko")
    with pytest.raises(ConfigError, match="language 'klingon' is unknown"):
        transcribe_file(recording, WHISPER, None, language="klingon")


def test_a_correction_without_an_adapter_and_silence_are_refused(tmp_path: Path) -> None:
    save_audio(tmp_path / "noise.wav", np.random.default_rng(0).normal(scale=0.1, size=16_000).astype(np.float32))
    with pytest.raises(AdapterError, match="give the adapter too"):
        transcribe_file(tmp_path / "noise.wav", WHISPER, None, correction=tmp_path / "c")
    save_audio(tmp_path / "silence.wav", np.zeros(16_000 * 40, np.float32))
    with pytest.raises(AudioError, match="silent throughout"):
        transcribe_file(tmp_path / "silence.wav", WHISPER, None)
