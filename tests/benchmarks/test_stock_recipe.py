"""The stock recipe trains what ours trains: same start, same people, same batches."""

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from flwr.app import Error, Message
from peft import get_peft_model, get_peft_model_state_dict

import benchmarks.stock_recipe as stock_recipe
import clients.training.evaluate
import clients.training.single
from benchmarks.stock_recipe import StockProcess, TimedFedAvg, initial_state, make_lora, stock_counts, training_people
from fl.adapters.config import GatedLoraConfig
from fl.adapters.split import make_split
from fl.adapters.state import adapter_parameters, adapter_state
from fl.algorithms.arms import trained_arm
from fl.bases.resolve import load_base
from fl.core.rng import derive_seed
from fl.settings.config import RunConfig
from fl.tasks.speech.task import SpeechTask


@pytest.fixture
def process(two_people: RunConfig) -> StockProcess:
    return StockProcess(two_people)


def test_it_starts_from_our_adapter_under_the_names_of_peft(two_people: RunConfig) -> None:
    base = load_base(two_people.base.name)
    own = get_peft_model_state_dict(get_peft_model(base.new_model(), make_lora(two_people)))
    start = initial_state(base, two_people)
    assert {name: tensor.shape for name, tensor in start.items()} == {n: t.shape for n, t in own.items()}
    adapter = GatedLoraConfig(
        r=2, lora_alpha=16.0, gate="none", target_modules=SpeechTask(two_people).targets, init_seed=1
    )
    ours = adapter_state(get_peft_model(base.new_model(), adapter))
    assert all(torch.equal(a, b) for a, b in zip(start.values(), ours.values(), strict=True))


def test_features_are_padded_to_thirty_seconds_and_labels_name_the_language(process: StockProcess) -> None:
    features, labels = process.examples(0)[0]
    assert features.shape == (process.base.mels, 3000)
    prefix = process.base.prefix_ids("ko")
    assert labels[: len(prefix) - 1].tolist() == prefix[1:]
    text = process.people[0].train[0].text
    assert labels[len(prefix) - 1 :].tolist() == process.base.target_ids(text)


def test_features_are_computed_once_in_a_process(process: StockProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    first = process.examples(0)
    monkeypatch.setattr(stock_recipe, "load_audio", lambda *_: pytest.fail("computed again"))
    assert process.examples(0) is first


def test_it_trains_on_the_batches_of_ours(
    two_people: RunConfig, process: StockProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, list[list[int]]] = {}
    draw = clients.training.single.step_batches

    def recorder(name: str) -> Any:
        def draw_and_keep(*arguments: Any) -> list[list[int]]:
            drawn[name] = draw(*arguments)
            return drawn[name]

        return draw_and_keep

    monkeypatch.setattr(stock_recipe, "step_batches", recorder("stock"))
    monkeypatch.setattr(clients.training.single, "step_batches", recorder("ours"))
    process.train(1, two_people, server_round=2)
    task = SpeechTask(two_people)
    device = task.device(training_people(two_people)[1].device_id)
    adapter = GatedLoraConfig(r=2, lora_alpha=16.0, gate="none", target_modules=task.targets, init_seed=1)
    model = get_peft_model(task.base.new_model(), adapter)
    arm = trained_arm("global", two_people)
    assert arm is not None
    clients.training.single.train_locally(
        model,
        adapter_parameters(model),
        make_split("all-shared", adapter_state(model)),
        task,
        device.train,
        arm.schedule.plan(2),
        seed=derive_seed(two_people.seed, 2, device.device_id, "train"),
    )
    assert len(drawn["stock"]) == two_people.train.local_steps
    assert drawn["stock"] == drawn["ours"]


def test_a_local_phase_changes_the_adapter_and_nothing_else(two_people: RunConfig, process: StockProcess) -> None:
    frozen = {n: p.detach().clone() for n, p in process.model.named_parameters() if not p.requires_grad}
    start = {n: t.clone() for n, t in get_peft_model_state_dict(process.model).items()}
    assert process.train(0, two_people, server_round=1) > 0
    after = get_peft_model_state_dict(process.model)
    assert any(not torch.equal(start[name], after[name]) for name in start)
    assert all(torch.equal(frozen[n], p) for n, p in process.model.named_parameters() if n in frozen)


def test_its_step_is_timed_in_both_precisions_and_trains_in_the_one_that_is_set(
    two_people: RunConfig, process: StockProcess
) -> None:
    seconds = stock_recipe.step_seconds(two_people, cpus=1)
    assert seconds.keys() == {"float32", "bf16"}
    assert min(seconds.values()) > 0
    seen: list[torch.dtype] = []
    process.model.base_model.model.model.encoder.layers[0].fc1.register_forward_hook(
        lambda module, given, out: seen.append(out.dtype)
    )
    for precision in seconds:
        process.train(0, two_people.changed({"base.precision": precision, "local-steps": 1}), server_round=1)
    assert seen == [torch.float32, torch.bfloat16]


def test_every_test_utterance_is_scored_in_the_window_that_was_trained(
    two_people: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: list[int] = []

    def evaluate(model: Any, task: Any, examples: Any) -> Any:
        frames.extend(example.size for example in examples)
        return own(model, task, examples)

    own = clients.training.evaluate.evaluate
    monkeypatch.setattr(stock_recipe, "evaluate", evaluate)
    counts = stock_counts(two_people, initial_state(load_base(two_people.base.name), two_people))
    task = SpeechTask(two_people)
    test = [example for d in task.device_ids() for example in task.device(d).test]
    assert counts["wer"].reference == sum(len(example.target.split()) for example in test) > 0
    assert frames == [3000] * len(test)


def test_a_device_that_fails_stops_the_run_instead_of_making_it_fast() -> None:
    failed = Mock(spec=Message, error=Error(code=2, reason="out of memory"))
    failed.has_error.return_value = True
    with pytest.raises(RuntimeError, match="out of memory"):
        TimedFedAvg(devices=2).aggregate_train(1, [failed])
