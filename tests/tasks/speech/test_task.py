"""Speech recognition as a federated task: who has which examples, a loss that teaches, and counts of errors."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model

from fl.adapters.config import GatedLoraConfig
from fl.adapters.state import adapter_parameters, module_of
from fl.algorithms.arms import EVERYONE
from fl.bases.whisper.forward import unwrap
from fl.core.errors import ConfigError
from fl.data.manifest import read_manifest, write_manifest
from fl.metrics import Counts
from fl.runs.schema import PredictionRow
from fl.settings.config import RunConfig, make_config
from fl.speech.audio import save_audio
from fl.tasks.speech.population import population_manifest
from fl.tasks.speech.task import SpeechTask
from fl.tasks.table import TASKS, load_task
from fl.tasks.task import Example, Task
from sim.report.scoring import score

SPEAKERS = ("김민수", "ann", "bob", "이서연")


@pytest.fixture(scope="module", autouse=True)
def cache(own_home: Path) -> Path:
    """A cache folder of the tests' own."""
    return own_home


@pytest.fixture(scope="module")
def manifest(noise_manifest: Callable[..., Path]) -> Path:
    """Four speakers with six recordings each."""
    return noise_manifest(SPEAKERS, 6, lang=None)


@pytest.fixture(scope="module")
def make_task(manifest: Path) -> Callable[..., SpeechTask]:
    def make(**changes: Any) -> SpeechTask:
        return SpeechTask(settings(manifest, **changes))

    return make


def settings(manifest: Path, **changes: Any) -> RunConfig:
    return make_config({"base": "random:whisper-nano", "manifest": str(manifest), "new_people": 1, **changes})


@pytest.fixture(scope="module")
def task(make_task: Callable[..., SpeechTask]) -> SpeechTask:
    return make_task()


def keys(task: SpeechTask) -> dict[str, tuple[tuple[str, ...], ...]]:
    return {
        d: tuple(tuple(e.key for e in task.device(d).split(s)) for s in ("train", "validation", "test"))
        for d in task.device_ids()
    }


def test_speech_is_a_task(manifest: Path) -> None:
    found: Task = load_task(settings(manifest))
    assert found.fingerprint.startswith("whisper:64x2+2:")
    with pytest.raises(ConfigError, match=r"unknown task 'vision'.*speech"):
        TASKS.find("vision")


def test_the_table_says_that_speech_is_augmented_and_read_from_a_manifest(task: SpeechTask) -> None:
    kind = TASKS["speech"]
    assert (kind.learns, kind.augments, kind.takes_manifest) == (
        task.learns,
        type(task).varied is not Task.varied,
        True,
    )
    assert kind.base_of(make_config({})) == make_config({}).base.name


def test_every_speaker_is_a_device_and_new_people_come_last_with_tests_alone(task: SpeechTask) -> None:
    ids = task.device_ids()
    assert sorted(ids) == sorted(SPEAKERS)
    assert [task.is_new(d) for d in ids] == [False, False, False, True]
    new = task.device(ids[-1])
    assert new.new_person
    assert (new.train, new.validation) == ((), ())
    assert len(new.test) == 6
    for device_id in ids[:-1]:
        device = task.device(device_id)
        assert not device.new_person
        assert device.train
        assert device.validation
        assert device.test
        assert {SPEAKERS[int(e.key[0])] for e in (*device.train, *device.test)} == {device_id}


def test_the_division_is_decided_by_the_seed_of_the_data(make_task: Callable[..., SpeechTask]) -> None:
    first = keys(make_task(seed=1, **{"data.seed": 5}))
    assert keys(make_task(seed=2, **{"data.seed": 5})) == first
    assert keys(make_task(seed=1, **{"data.seed": 6})) != first


def test_new_people_are_tested_on_as_many_sentences_as_asked(make_task: Callable[..., SpeechTask]) -> None:
    few, more = (make_task(new_people_tests=n, **{"data.seed": 5}) for n in (2, 4))
    (new,) = [d for d in few.device_ids() if few.is_new(d)]
    drawn = [{e.key for e in t.device(new).test} for t in (few, more)]
    assert [len(d) for d in drawn] == [2, 4]
    assert drawn[0] < drawn[1]


def test_an_unknown_device_lists_the_known_ones(task: SpeechTask) -> None:
    with pytest.raises(ConfigError, match=r"unknown device 'eve'.*ann"):
        task.device("eve")


def test_a_speaker_may_not_be_called_everyone(manifest: Path, tmp_path: Path) -> None:
    utterances = [replace(u, speaker=EVERYONE) if u.speaker == "ann" else u for u in read_manifest(manifest)]
    write_manifest(tmp_path / "manifest.jsonl", utterances)
    with pytest.raises(ConfigError, match=r"'everyone'.*another name"):
        SpeechTask(settings(tmp_path / "manifest.jsonl"))


def test_the_language_is_that_of_most_words_unless_it_is_set(make_task: Callable[..., SpeechTask]) -> None:
    assert make_task().languages == ["ko", "en"]
    assert make_task().language == "ko"
    assert make_task(language="en").language == "en"


def test_a_language_that_the_base_does_not_have_is_refused(make_task: Callable[..., SpeechTask]) -> None:
    with pytest.raises(ConfigError, match="'cy' is unknown to base"):
        make_task(language="cy")


def test_an_example_has_the_features_of_its_window_and_what_a_report_needs(task: SpeechTask) -> None:
    example = task.device("ann").train[0]
    utterance, features = example.inputs
    seconds = example.details["seconds_audio"]
    assert example.target == utterance.text
    assert example.size == features.shape[1]
    assert seconds + 0.5 <= features.shape[1] / 100 < seconds + 0.53  # 0.5 s of silence, rounded up to 20 ms
    assert set(example.details) == {"audio", "start", "spans", "loanwords", "level", "seconds_audio"}
    assert example.details["start"] is None
    assert example.details["spans"] == [list(span) for span in utterance.spans]


def test_an_example_says_where_in_a_longer_file_it_begins(manifest: Path, tmp_path: Path) -> None:
    cut = {"0-0": {"start": 0.2}, "0-1": {"end": 0.5}}
    utterances = [replace(u, **cut.get(u.id, {})) for u in read_manifest(manifest)]
    write_manifest(tmp_path / "cut.jsonl", utterances)
    task = SpeechTask(settings(tmp_path / "cut.jsonl", new_people=0))
    examples = (e for d in task.device_ids() for s in ("train", "validation", "test") for e in task.device(d).split(s))
    starts = {e.key: e.details["start"] for e in examples}
    assert {key: start for key, start in starts.items() if start is not None} == {"0-0": 0.2, "0-1": 0.0}


def test_the_full_window_is_30_seconds(make_task: Callable[..., SpeechTask]) -> None:
    assert {e.size for e in make_task(window="full").device("ann").test} == {3_000}


def test_features_are_the_same_from_a_cold_and_from_a_warm_cache(
    make_task: Callable[..., SpeechTask], cache: Path
) -> None:
    cold = make_task().device("bob").train[0].inputs[1]
    assert list((cache / "features").rglob("*.mel"))
    warm = make_task().device("bob").train[0].inputs[1]
    assert cold.dtype == warm.dtype
    assert (cold == warm).all()


def test_silence_is_left_out_with_the_name_of_the_file(manifest: Path, tmp_path: Path) -> None:
    silent = tmp_path / "silent.wav"
    save_audio(silent, np.zeros(16_000, np.float32))
    utterances = [replace(u, audio=silent) if u.id == "1-3" else u for u in read_manifest(manifest)]
    write_manifest(tmp_path / "manifest.jsonl", utterances)
    broken = SpeechTask(settings(tmp_path / "manifest.jsonl", new_people=0))
    (row,) = broken.left_out
    assert (row.example, row.where) == ("1-3", f"{tmp_path / 'manifest.jsonl'}:10")
    assert re.match(rf"{silent}: is silent", row.reason)
    ann = broken.device("ann")
    assert len((*ann.train, *ann.validation, *ann.test)) == 5


def test_a_few_steps_on_a_few_sentences_lower_their_loss(task: SpeechTask) -> None:
    config = GatedLoraConfig(r=4, lora_alpha=8.0, gate="self", target_modules=task.targets, init_seed=1)
    model = get_peft_model(task.base.new_model(), config)
    examples = task.device("ann").train[:2]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = task.loss(model, examples)
        assert loss.shape == ()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is None for name, p in model.named_parameters() if "gated_lora" not in name)


def test_the_loss_of_a_batch_does_not_depend_on_its_order(task: SpeechTask) -> None:
    examples = task.device("ann").train[:3]
    with torch.no_grad():
        forth, back = (float(task.loss(task.model, batch)) for batch in (examples, examples[::-1]))
    assert forth == pytest.approx(back, rel=1e-5)


def test_the_losses_of_the_rows_add_up_to_the_loss_with_the_same_gradient(task: SpeechTask) -> None:
    config = GatedLoraConfig(r=4, lora_alpha=8.0, gate="self", target_modules=task.targets, init_seed=1)
    model = get_peft_model(task.new_model(), config)
    trained = [p for p in model.parameters() if p.requires_grad]
    examples = task.device("ann").train[:3]
    sums, labels = task.losses(model, examples)
    mean = task.loss(model, examples)
    assert sums.shape == labels.shape == (3,)
    assert labels.tolist() == [len(task.base.target_ids(e.target)) for e in examples]
    torch.testing.assert_close(sums.sum() / labels.sum(), mean)
    torch.testing.assert_close(
        torch.autograd.grad(sums.sum() / labels.sum(), trained), torch.autograd.grad(mean, trained)
    )


def test_the_loss_of_a_row_does_not_depend_on_its_neighbours(task: SpeechTask) -> None:
    examples = task.device("ann").train[:3]
    with torch.no_grad():
        sums, labels = task.losses(task.model, examples)
        alone = [task.losses(task.model, [e]) for e in examples]
        turned, _ = task.losses(task.model, examples[::-1])
    torch.testing.assert_close(sums, torch.cat([s for s, _ in alone]), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(sums, turned.flip(0), rtol=1e-5, atol=1e-4)
    assert labels.tolist() == [int(n) for _, n in alone]


@pytest.mark.parametrize("changes", [{}, {"sites": "decoder.self,decoder.cross"}], ids=["adapted", "frozen"])
def test_encoder_states_are_computed_once_where_only_the_decoder_trains(
    make_task: Callable[..., SpeechTask], changes: dict[str, Any]
) -> None:
    """The same loss and gradients as through the encoder, whether adapters that do not train sit in it or none."""
    task = make_task(**changes)
    config = GatedLoraConfig(r=2, lora_alpha=4.0, target_modules=task.targets, init_seed=1)
    model = get_peft_model(task.new_model(), config)
    generator = torch.Generator().manual_seed(1)
    parameters = adapter_parameters(model)
    for parameter in parameters.values():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    decoder = {n: p for n, p in parameters.items() if "decoder" in n}
    examples = [task.device(d).train[0] for d in ("ann", "bob")]
    known = task.precomputed(model, examples, {module_of(n) for n in decoder})
    slow, said = task.loss(model, examples), task.predict(model, examples, adapted=True, beams=1)
    for layer in unwrap(model).model.encoder.layers:
        layer.register_forward_hook(lambda *_: pytest.fail("the encoder was asked again"))
    fast = task.loss(model, known)
    torch.testing.assert_close(fast, slow)
    assert task.predict(model, known, adapted=True, beams=1) == said
    gradients = (torch.autograd.grad(loss, list(decoder.values()), retain_graph=True) for loss in (fast, slow))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    if len(decoder) < len(parameters):
        assert task.precomputed(model, examples, {module_of(n) for n in parameters}) is examples


def test_a_new_model_has_its_own_modules_on_the_same_tensors(task: SpeechTask) -> None:
    one, other = task.new_model(), task.new_model()
    assert not {id(m) for m in one.modules()} & {id(m) for m in other.modules()}
    assert [p.data_ptr() for p in one.parameters()] == [p.data_ptr() for p in other.parameters()]


def test_the_base_alone_hears_the_full_window_and_an_adapter_its_own(
    task: SpeechTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []

    def generate(model: object, batch: Any, **options: Any) -> list[str]:
        heard.append((tuple(batch.features.shape)[-1], options))
        return ["" for _ in range(batch.features.shape[0])]

    monkeypatch.setattr(task.base, "generate", generate)
    examples = task.device("ann").train[:2]
    task.predict(task.model, examples, adapted=False, beams=1)
    task.predict(task.model, examples, adapted=True, beams=3)
    assert [frames for frames, _ in heard] == [3_000, max(e.size for e in examples)]
    assert [options["beams"] for _, options in heard] == [1, 3]


def test_scores_are_counts_of_every_metric(task: SpeechTask) -> None:
    example = task.device("ann").test[0]
    right, wrong = task.score(example, example.target), task.score(example, "")
    words = len(example.target.split())
    assert right["wer"] == Counts(0, 0, 0, words)
    assert wrong["wer"] == Counts(0, words, 0, words)
    assert {"wer", "cer", "mer", "pier", "mer_folded"} <= right.keys()
    english = sum(language == "en" for _, language in example.inputs[0].spans)
    assert right["pier"].reference == english  # the embedded language is what PIER is about


def test_augmented_examples_are_a_function_of_the_seed_and_their_name(make_task: Callable[..., SpeechTask]) -> None:
    task = make_task(speed_perturbation=0.2, noise_snr=10.0, spec_augment=0.5)
    examples = task.device("ann").train
    drawn, again, other = (task.varied(examples, seed) for seed in (1, 1, 2))
    one = drawn[1]
    assert one.size == task.base.frames(one.inputs[1]) != drawn[0].size
    assert one.details == {**examples[1].details, "varied": True}
    assert (again[1].inputs[1] == one.inputs[1]).all()  # whatever was drawn before it
    assert other[1].size != one.size
    assert make_task().varied(examples, 1) is examples


def test_a_sentence_wholly_in_the_embedded_language_counts_for_pier_as_in_the_report(
    manifest: Path, tmp_path: Path
) -> None:
    english = {"text": "meeting deadline", "spans": (("meeting", "en"), ("deadline", "en")), "split": "test"}
    utterances = [replace(u, **english) if u.id == "0-0" else u for u in read_manifest(manifest)]
    write_manifest(tmp_path / "english.jsonl", utterances)
    task = SpeechTask(settings(tmp_path / "english.jsonl", new_people=0))
    tests = [e for d in task.device_ids() for e in task.device(d).test]
    rows = [_row(e, "meeting" if e.key == "0-0" else e.target) for e in tests]
    (example,) = [e for e in tests if e.key == "0-0"]
    pier = Counts(deletions=1, reference=2)  # one of two words; with a matrix language of its own: 0 / 0
    assert task.score(example, "meeting")["pier"] == pier
    assert [s.counts["pier"] for s in score(rows) if s.row.utterance == "0-0"] == [pier]


def _row(example: Example, hypothesis: str) -> PredictionRow:
    return PredictionRow(
        arm="global",
        device="d",
        new_person=False,
        utterance=example.key,
        audio=None,
        reference=example.target,
        hypothesis=hypothesis,
        spans=example.inputs[0].spans,
        loanwords=(),
        level=None,
        seconds_audio=1.0,
    )


def test_a_manifest_that_is_named_is_used_as_it_is(manifest: Path) -> None:
    assert population_manifest(settings(manifest)) == manifest.resolve()


def test_without_a_manifest_a_population_is_made_for_its_settings(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    asked: list[tuple[Path, dict[str, Any]]] = []

    def synthesize(folder: Path, **options: Any) -> Path:
        asked.append((folder, options))
        return folder / "manifest.jsonl"

    monkeypatch.setattr("fl.tasks.speech.population.synthesize", synthesize)
    for changes in ({}, {"devices": 3}, {"data.seed": 9}, {"pair": "es-en"}, {"new_people": 1}, {"sentences": 5}):
        population_manifest(make_config(changes))
    assert len({folder for folder, _ in asked}) == len(asked)
    assert all(folder.parent == cache / "populations" for folder, _ in asked)
    wanted = {
        "pair": "ko-en",
        "devices": 3,
        "new_people": 2,
        "sentences": make_config({}).data.synthetic.sentences,
        "seed": 1,
    }
    assert {name: asked[1][1][name] for name in wanted} == wanted
