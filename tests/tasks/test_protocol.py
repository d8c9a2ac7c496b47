"""What clients and strategies rely on in every task, whatever it is about."""

import pytest
import torch
from peft import get_peft_model

from clients.training.single import LocalPlan, train_locally
from fl.adapters.config import GatedLoraConfig
from fl.adapters.split import make_split
from fl.adapters.stacked import Slot, StackedAdapters, StackedModel
from fl.adapters.state import adapter_parameters, adapter_state
from fl.core.errors import ConfigError
from fl.metrics import Counts
from fl.settings.config import make_config
from fl.tasks.table import TASKS, load_task
from fl.tasks.task import Task


def examples_of(task, count=5):
    return list(task.device(task.device_ids()[0]).train[:count])


def adapted(task, gate="self", rank=4):
    config = GatedLoraConfig(r=rank, lora_alpha=2.0 * rank, gate=gate, target_modules=task.targets, init_seed=1)
    return get_peft_model(task.new_model(), config, adapter_name="gated-test").eval()


def moved(model, scale=0.2):
    """The adapter away from its start, where it does nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(adapter_parameters(model, "gated-test").items()):
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def test_new_people_come_last_and_only_test(tiny, name):
    task = tiny(name)
    ids = task.device_ids()
    assert [task.is_new(d) for d in ids] == [False] * 4 + [True]
    for device_id in ids[:-1]:
        device = task.device(device_id)
        assert device.train
        assert device.validation
        assert device.test
    new = task.device(ids[-1])
    assert (new.new_person, new.train, new.validation) == (True, (), ())
    assert new.test
    with pytest.raises(ConfigError, match="unknown device 'nobody'"):
        task.device("nobody")


def test_the_table_says_what_a_task_can_do(tiny, name):
    task, kind = tiny(name), TASKS[name]
    assert (kind.learns, kind.augments) == (task.learns, type(task).varied is not Task.varied)
    assert kind.base_of(make_config({"task": name})) == kind.default_base
    assert kind.base_of(make_config({"task": name, "base": "other"})) == "other"


def test_the_seed_decides_the_data(tiny_config, name):
    same, again, other = (load_task(tiny_config(name, **{"data.seed": seed})) for seed in (5, 5, 6))
    device_id = same.device_ids()[1]
    assert [(e.key, e.target) for e in same.device(device_id).train] == [
        (e.key, e.target) for e in again.device(device_id).train
    ]
    assert [e.details for e in same.device(device_id).test] != [e.details for e in other.device(device_id).test]
    assert same.fingerprint == again.fingerprint == other.fingerprint


def test_the_loss_is_the_sum_over_rows_over_the_number_of_labels(tiny, name):
    task = tiny(name)
    model = moved(adapted(task))
    batch = examples_of(task)
    sums, labels = task.losses(model, batch)
    assert sums.shape == labels.shape == (len(batch),)
    torch.testing.assert_close(task.loss(model, batch), sums.sum() / labels.sum())
    trained = list(adapter_parameters(model, "gated-test").values())
    torch.testing.assert_close(
        torch.autograd.grad(task.loss(model, batch), trained), torch.autograd.grad(sums.sum() / labels.sum(), trained)
    )
    assert task.loss(model, batch).item() == task.loss(model, batch).item()


def test_a_row_does_not_depend_on_its_neighbours(tiny, name):
    task = tiny(name)
    model = moved(adapted(task))
    batch = examples_of(task)
    with torch.no_grad():
        together, labels = task.losses(model, batch)
        alone = [task.losses(model, [e]) for e in batch]
        turned, _ = task.losses(model, batch[::-1])
    torch.testing.assert_close(together, torch.cat([s for s, _ in alone]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together, turned.flip(0), rtol=1e-5, atol=1e-5)
    assert labels.tolist() == [int(n) for _, n in alone]
    predicted = task.predict(model, batch, adapted=True, beams=1)
    assert predicted == [task.predict(model, [e], adapted=True, beams=1)[0] for e in batch]


@pytest.mark.parametrize("gate", ["none", "self"])
def test_stacked_adapters_give_each_row_the_loss_and_gradient_of_its_own(tiny, name, gate):
    task = tiny(name)
    models = [moved(adapted(task, gate), scale) for scale in (0.1, 0.3)]
    states = [adapter_state(model, "gated-test") for model in models]
    stack = StackedAdapters.from_states([Slot(4, 2.0, gate)] * 2, states)
    batch, index = examples_of(task, 4), [0, 1, 1, 0]
    factors = {n: t.requires_grad_(True) for n, t in stack.factors.items()}
    with StackedModel(task.new_model(), task.targets).rows(stack, index) as host:
        sums, _ = task.losses(host, batch)
    with torch.no_grad():
        wanted = torch.cat([task.losses(models[slot], [e])[0] for slot, e in zip(index, batch, strict=True)])
    torch.testing.assert_close(sums.detach(), wanted, rtol=1e-4, atol=1e-4)
    (sums[0] + sums[3]).backward()
    assert all(not t.grad[1].any() for t in factors.values())
    assert all(t.grad[0].any() for t in factors.values())


def test_a_further_model_has_its_own_modules_on_the_same_frozen_tensors(tiny, name):
    task = tiny(name)
    one, other = task.new_model(), task.new_model()
    assert not {id(m) for m in one.modules()} & {id(m) for m in other.modules()}
    assert [p.data_ptr() for p in one.parameters()] == [p.data_ptr() for p in other.parameters()]
    assert not any(p.requires_grad for p in one.parameters())
    assert not one.training


def test_a_few_steps_on_its_own_examples_teach_a_device(tiny, name):
    task = tiny(name)
    device = task.device(task.device_ids()[1])
    model = adapted(task)
    split = make_split("gates", adapter_state(model, "gated-test"))
    before = float(task.loss(model, device.train).detach())
    plan = LocalPlan(steps=40, batch_size=8, learning_rate=1e-2, private_learning_rate=1e-2)
    train_locally(model, adapter_parameters(model, "gated-test"), split, task, device.train, plan, seed=1)
    after = float(task.loss(model, device.train).detach())
    assert after < 0.85 * before

    def errors(adapted):
        found = task.predict(model, device.train, adapted=adapted, beams=1)
        main = TASKS[name].main
        counts = [task.score(e, p)[main] for e, p in zip(device.train, found, strict=True)]
        return sum(counts, Counts()).errors

    with model.disable_adapter():
        base = errors(False)
    assert errors(True) < base


def test_the_head_is_trained_and_shared(tiny, name):
    task = tiny(name)
    split = make_split("gates", adapter_state(adapted(task), "gated-test"))
    heads = {n.rsplit(".", 1)[-1] for n in split.shared if ".head." in n}
    assert heads == {"gated_lora_A", "gated_lora_B"}


def test_a_rank_above_the_number_of_classes_fits_the_head(tiny, name):
    task = tiny(name, rank=12)
    sums, _ = task.losses(moved(adapted(task, rank=12)), examples_of(task, 2))
    assert torch.isfinite(sums).all()


def test_a_right_prediction_has_no_errors_and_the_report_counts_as_the_task_does(tiny, name):
    task = tiny(name)
    kind = TASKS[name]
    (example,) = task.device(task.device_ids()[0]).test[:1]
    right = task.score(example, example.target)
    assert right.keys() == kind.measures.keys()
    assert right[kind.main].errors == 0
    assert right[kind.main].reference > 0
    predicted = task.predict(task.new_model(), [example], adapted=False, beams=1)[0]
    assert kind.score(example.target, predicted).metrics == task.score(example, predicted)


def test_activations_need_no_more_than_estimated(tiny, name):
    task = tiny(name)
    model = adapted(task)
    frozen = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor):
        if tensor.data_ptr() not in frozen:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    (example,) = examples_of(task, 1)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        task.loss(model, [example])
    assert 0 < sum(kept.values()) <= task.training_bytes(example)


def test_sites_that_an_encoder_lacks_are_refused(tiny_config, name):
    with pytest.raises(ConfigError, match="this base is an encoder"):
        load_task(tiny_config(name, sites="decoder.self"))
    both = load_task(tiny_config(name, sites="encoder.self,ffn"))
    few = set(adapter_state(adapted(load_task(tiny_config(name, sites="encoder.self"))), "gated-test"))
    assert few < set(adapter_state(adapted(both), "gated-test"))


def test_a_manifest_of_speech_is_refused(tiny_config, name):
    with pytest.raises(ConfigError, match=r"speech\.jsonl.* holds speech"):
        load_task(tiny_config(name, manifest="/data/speech.jsonl"))


def test_shares_that_leave_nothing_to_train_on_are_refused(tiny_config, name):
    with pytest.raises(ConfigError, match="leave nothing to train on"):
        load_task(tiny_config(name, validation_share=0.5, test_share=0.5))


def test_an_unknown_task_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown task 'poetry'.*language-id, digits"):
        TASKS.find("poetry")
