"""Speech recognition with a CTC base: the same task, another recognizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn

from fl.adapters.config import GatedLoraConfig
from fl.core.errors import ManifestError
from fl.data.manifest import read_manifest, write_manifest
from fl.settings.config import RunConfig, make_config
from fl.tasks.speech.task import SpeechTask
from fl.tasks.table import load_task
from sim.backends.run import run_simulation


@pytest.fixture(scope="module", autouse=True)
def cache(own_home: Path) -> Path:
    """A cache folder of the tests' own."""
    return own_home


@pytest.fixture(scope="module")
def manifest(noise_manifest: Callable[..., Path]) -> Path:
    """Two speakers with six recordings each."""
    return noise_manifest(["ann", "bob"], 6)


def settings(manifest: Path, **changes: Any) -> RunConfig:
    values = {"base": "random:wav2vec2-nano", "tokens": "jamo", "manifest": str(manifest), "new_people": 0, "rank": 2}
    return make_config({**values, **changes})


@pytest.fixture(scope="module")
def task(manifest: Path) -> SpeechTask:
    found = load_task(settings(manifest))
    assert isinstance(found, SpeechTask)
    return found


def adapted(task: SpeechTask) -> nn.Module:
    config = GatedLoraConfig(r=2, gate="self", target_modules=task.targets, init_seed=1)
    model = get_peft_model(task.new_model(), config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("B.default"):
            nn.init.normal_(parameter, std=0.2)
    return model


def test_the_tokens_are_part_of_the_base(task: SpeechTask) -> None:
    assert task.base_name == "random:wav2vec2-nano+jamo"
    assert task.fingerprint.startswith("wav2vec2:32x2:")
    assert task.language == ""


def test_sizes_are_frames_of_10_ms_whatever_the_base(task: SpeechTask) -> None:
    example = task.device("ann").train[0]
    assert 0.5 <= example.size / 100 - example.details["seconds_audio"] < 0.53  # the margin of a trimmed window


def test_losses_add_up_row_by_row_to_the_loss(task: SpeechTask) -> None:
    model, examples = adapted(task), task.device("ann").train[:3]
    with torch.no_grad():
        sums, labels = task.losses(model, examples)
        mean = task.loss(model, examples)
        alone = [task.losses(model, [e])[0] for e in examples]
    assert labels.tolist() == [len(task.base.target_ids(e.target)) for e in examples]
    torch.testing.assert_close(sums.sum() / labels.sum(), mean)
    torch.testing.assert_close(sums, torch.cat(alone), rtol=1e-5, atol=1e-3)


def test_the_convolutions_are_computed_once_unless_they_are_trained(
    task: SpeechTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, examples = adapted(task), task.device("bob").train[:2]
    with torch.no_grad():
        before = task.loss(model, examples)
        monkeypatch.setattr(task.base, "prefix_states", lambda *_: pytest.fail("computed again"))
        torch.testing.assert_close(task.loss(model, examples), before)
        own = task.new_model()
        own.load_state_dict({n: nn.Parameter(2 * p.detach()) for n, p in own.named_parameters()}, assign=True)
        changed = task.loss(own, examples)  # weights of its own: nothing that was kept is right
        shared = task.loss(task.new_model(), examples)
    assert not torch.isclose(changed, shared)


def test_predictions_are_text_and_beams_work(task: SpeechTask) -> None:
    examples = task.device("ann").train[:2]
    for adapted_, beams in ((False, 1), (True, 1), (True, 3)):
        texts = task.predict(adapted(task), examples, adapted=adapted_, beams=beams)
        assert len(texts) == 2
        assert all(isinstance(text, str) for text in texts)
    assert task.score(examples[0], examples[0].target)["wer"].errors == 0


def test_text_that_the_vocabulary_lacks_is_left_out_and_a_base_that_lacks_most_is_refused(
    manifest: Path, tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match=r"12 of 12 utterances cannot be used(?s:.)*'오' \(U\+C624\) 1x"):
        SpeechTask(settings(manifest, tokens="latin"))
    utterances = [
        u.__class__(**{**u.__dict__, "text": "咖啡 coffee", "spans": ()}) if u.id == "0-3" else u
        for u in read_manifest(manifest)
    ]
    write_manifest(tmp_path / "manifest.jsonl", utterances)
    (row,) = SpeechTask(settings(tmp_path / "manifest.jsonl")).left_out
    assert (row.device, row.example, row.where) == ("ann", "0-3", f"{tmp_path / 'manifest.jsonl'}:4")
    assert "'咖' (U+5496) 1x, '啡' (U+5561) 1x" in row.reason


def test_a_run_federates_a_ctc_base(manifest: Path, tmp_path: Path) -> None:
    config = settings(
        manifest,
        rounds=2,
        local_steps=1,
        arms="personalized,neutral",
        cohort=2,
        evaluate_every=0,
        output=str(tmp_path / "run"),
    )
    folder = run_simulation(config, serial=True)
    rows = [line for line in (folder / "results.jsonl").read_text().splitlines() if '"wer"' in line]
    assert all(any(f'"{arm}"' in row for row in rows) for arm in ("personalized", "neutral"))
    assert list((folder / "devices").rglob("adapter_model.safetensors"))
