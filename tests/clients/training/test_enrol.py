"""Enrolment: folds decide the steps, all people at once get what each gets alone, and what does not help is not kept."""

import math
from dataclasses import replace

import pytest
import torch

from clients.training.enrol import PEOPLE, _folds, chosen_steps, enrol
from clients.training.enrol_method import EnrolMethod
from clients.training.prior import Prior, eigenvoices, learned_prior
from clients.training.private_part import FEW, PULL, Adapter, Enrolment, Start
from clients.training.single import train_locally
from fl.adapters.directions import read_directions, stored_directions
from fl.adapters.split import Split
from fl.adapters.stacked import Slot, StackedModel
from fl.adapters.state import adapter_state, load_state
from fl.algorithms.plan import LocalPlan
from fl.core.errors import AdapterError, ConfigError, SplitError
from fl.core.rng import derive_seed

BUDGET, SEED, NOTHING = 2**30, 5, Prior()
B = EnrolMethod("B", rate=1e-2, grid=(0, 2, 4, 8), steps=4, folds=3)


def start_of(task, method=B) -> Start:
    return Start.of(Adapter(Slot(2, 2.0, task.gate), task.start), method, seed=SEED)


def enrolled(task, people, method=B, prior=NOTHING) -> dict[str, Enrolment]:
    host = StackedModel(task.new_model(), task.targets)
    start = replace(start_of(task, method), prior=prior)
    return enrol(host, task, start, people, seed=SEED, budget=BUDGET)


def moved(task, one: Enrolment) -> dict[str, float]:
    return {name: float((tensor - task.start[name]).abs().max()) for name, tensor in one.private.items()}


@pytest.mark.parametrize(("gate", "part"), [("none", "B"), ("none", "A,B"), ("self", "gate"), ("self", "gate_bias")])
def test_a_person_gets_the_mean_of_what_the_single_device_trainer_gives_each_fold_in_the_chosen_steps(
    regression, gate, part
):
    task = regression(gate=gate)
    method = EnrolMethod(part, rate=1e-2, grid=(0, 2, 4, 8), steps=4, folds=3)
    people = {f"p{i}": task.examples(5 + i, seed=i) for i in range(2)} | {"one": task.examples(1, seed=9)}
    found = enrolled(task, people, method)
    assert any(one.steps for one in found.values())
    private = start_of(task, method).split.private
    split = Split(part, (), private, tuple(n for n in task.start if n not in private))
    for name, one in found.items():
        plan = LocalPlan(0, 2, method.rate, method.rate, private_steps=one.steps)
        alone = []
        for fold, away in _folds(len(people[name]), 3, SEED, name):
            load_state(task.model, task.start)
            kept = [example for i, example in enumerate(people[name]) if i not in away]
            seed = derive_seed(SEED, name, "enrol", fold)
            train_locally(task.model, task.parameters, split, task, kept, plan, seed=seed)
            alone.append(adapter_state(task.model))
        assert len(alone) == min(3, len(people[name]))
        assert set(one.private) == set(private)
        for tensor in private:
            mean = torch.stack([state[tensor] for state in alone]).mean(0)
            torch.testing.assert_close(one.private[tensor], mean, rtol=1e-4, atol=1e-6)


def test_a_person_gets_the_same_alone_and_beside_others(regression):
    task = regression(gate="none")
    people = {f"p{i}": task.examples(4, seed=i) for i in range(PEOPLE + 2)}  # more than one cohort
    together, alone = enrolled(task, people), enrolled(task, {"p3": people["p3"]})["p3"]
    assert list(together) == list(people)
    assert together["p3"].steps == alone.steps
    assert together["p3"].curve == pytest.approx(alone.curve)


def test_what_makes_left_out_sentences_worse_is_not_kept(regression):
    task = regression(gate="none")
    wild = EnrolMethod("B", rate=3.0, grid=(0, 2, 4), steps=2)
    one = enrolled(task, {"p": task.examples(6)}, wild)["p"]
    assert one.curve[2] > one.curve[0]
    assert one.steps == 0
    assert set(moved(task, one).values()) == {0.0}


def test_the_curve_begins_with_the_loss_of_the_shared_adapter_on_every_sentence_once(regression):
    task = regression(gate="none")
    examples = task.examples(7)
    one = enrolled(task, {"p": examples})["p"]
    assert one.curve[0] == pytest.approx(float(task.loss(task.model, examples).detach()), rel=1e-5)
    assert one.steps == min(one.curve, key=one.curve.__getitem__)


def test_a_left_out_sentence_is_not_trained_on(regression):
    # With as many folds as sentences each is left out once; a curve over sentences seen in training would fall much lower.
    task = regression(gate="none")
    memorizing = EnrolMethod("A,B", rate=3e-2, grid=(0, 200), steps=200, folds=2)
    examples = task.examples(2)  # each fold learns one by heart
    one = enrolled(task, {"p": examples}, memorizing)["p"]
    seen = enrolled(
        task, {"p": [*examples, *examples]}, EnrolMethod("A,B", rate=3e-2, grid=(0, 200), steps=200, folds=4)
    )["p"]
    assert seen.curve[200] < 0.5 * one.curve[200]


def test_what_is_kept_is_the_mean_of_what_each_fold_predicts_its_left_out_examples_with(regression):
    task = regression(gate="none")
    host = StackedModel(task.new_model(), task.targets)
    people = {"p": task.examples(7)}
    one = enrol(host, task, start_of(task), people, seed=SEED, budget=BUDGET, with_unseen=True)["p"]
    assert one.steps
    assert [away for away, _ in one.unseen] == [away for _, away in _folds(7, 3, SEED, "p")]
    for name, tensor in one.private.items():
        each = torch.stack([private[name] for _, private in one.unseen])
        assert not torch.equal(each[0], each[1])
        torch.testing.assert_close(tensor, each.mean(0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("sentences", "sizes"), [(1, [0]), (2, [1, 1]), (18, [6, 6, 6]), (90, [30, 30]), (150, [50, 50])]
)
def test_folds_leave_no_sentence_out_twice_and_end_when_enough_are_left_out(sentences, sizes):
    folds = [away for _, away in _folds(sentences, 3, 1, "p")]
    assert [len(one) for one in folds] == sizes
    assert len(frozenset().union(*folds)) == sum(sizes)
    assert not frozenset.intersection(*folds)  # so that each trains somewhere


@pytest.mark.parametrize(
    ("curve", "left_out", "steps"),
    [
        ({0: 1.0, 3: 0.94, 6: 0.97}, 5, 3),
        ({0: 1.0, 3: 0.96, 6: 0.97}, 5, 0),  # 4.5 % may be chance with five
        ({0: 1.0, 3: 0.96, 6: 0.97}, 20, 3),
        ({0: 1.0, 3: 0.9, 6: 0.9}, 20, 3),  # the fewest
        ({0: 1.0, 3: math.inf}, 20, 0),
        ({0: math.inf, 3: 0.5}, 20, 3),
    ],
)
def test_what_hardly_lowers_the_left_out_loss_is_not_kept(curve, left_out, steps):
    assert chosen_steps(curve, left_out) == steps


def test_one_sentence_leaves_nothing_out_and_takes_the_steps_of_the_method(regression):
    task = regression(gate="none")
    one = enrolled(task, {"p": task.examples(1)})["p"]
    assert (one.steps, one.curve) == (4, {})


def test_a_fresh_gate_and_a_lora_beside_start_as_the_shared_adapter_and_alone_train(regression):
    task = regression(gate="none")
    examples = task.examples(4)
    neutral = enrolled(task, {"p": examples})["p"].curve[0]
    for method in (
        EnrolMethod("gate", rate=1e-1, gate="self", grid=(0, 8), steps=8),
        EnrolMethod("A,B", rate=1e-2, beside=1, grid=(0, 8), steps=8),
    ):
        one = enrolled(task, {"p": examples[:1]}, method)["p"]
        assert enrolled(task, {"p": examples}, method)["p"].curve[0] == pytest.approx(neutral)
        start = start_of(task, method)
        assert any(float((one.private[n] - start.state[n]).abs().max()) > 0 for n in start.split.private)
        four = enrolled(task, {"p": examples}, method)["p"]
        for private in (one.private, four.private):
            for name, ones in start.frozen.items():
                kept = ones > 0
                torch.testing.assert_close(private[name][kept], start.state[name][kept], rtol=0, atol=0)
    assert start.numbers == sum(6 + 5 if "first" in n else 5 + 3 for n in start.split.private if n.endswith("_A"))


def test_a_strong_prior_gives_its_mean_and_none_gives_the_start(regression):
    task = regression(gate="none")
    others = [{n: task.start[n] + 0.1 * k for n in start_of(task).split.private} for k in (1, 3)]
    prior = learned_prior(task.start, others)
    strong = EnrolMethod("B", rate=1e-3, shrinkage=1e9, grid=(0, 8), steps=8)
    person = {"p": task.examples(1)}
    for given, distance in ((prior, 0.2), (NOTHING, 0.0)):
        one = enrolled(task, person, strong, given)["p"]
        assert list(moved(task, one).values()) == pytest.approx([distance, distance], abs=1e-5)


def test_without_a_decoder_the_default_part_is_b_of_all_modules(regression):
    task = regression(gate="none")
    default = start_of(task, EnrolMethod("B@decoder", rate=1e-2))
    assert default.split == start_of(task).split
    named = {
        f"model.{stack}.first.gated_lora_{kind}": torch.ones(2, 2) for stack in ("encoder", "decoder") for kind in "AB"
    }
    whisper = Start.of(Adapter(Slot(2, 2.0, "none"), named), EnrolMethod("B@decoder", rate=1e-2), seed=SEED)
    assert whisper.split.private == ("model.decoder.first.gated_lora_B",)


def test_a_method_that_cannot_be_is_refused(regression):
    with pytest.raises(ConfigError, match="grid"):
        EnrolMethod("B", rate=1.0, grid=(0, 4), steps=5)
    with pytest.raises(ConfigError, match="names 'C'"):
        EnrolMethod("C", rate=1.0)
    with pytest.raises(SplitError, match="matches no tensor"):
        start_of(regression(gate="none"), EnrolMethod("B@nowhere", rate=1.0))
    with pytest.raises(ConfigError, match="no other can lie"):
        start_of(regression(gate="self"), EnrolMethod("B", rate=1.0, beside=1))


def test_what_nothing_but_eigenvoices_may_move_stays_in_what_others_differ_by(regression):
    task = regression(gate="none")
    others = enrolled(task, {f"o{i}": task.examples(6, seed=i) for i in range(4)})
    start = start_of(task)
    names = start.split.private
    prior = eigenvoices(task.start, [one.private for one in others.values()], names, 2)

    def flat(state):
        return torch.cat([state[name].flatten() for name in names])

    basis = torch.cat([prior.directions[name] for name in names], dim=1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(2), atol=1e-5, rtol=0)
    away = torch.stack([flat(one.private) - flat(task.start) for one in others.values()])
    best = torch.linalg.svd(away).S
    kept = (away @ basis.T).square().sum()
    assert float(kept) == pytest.approx(float(best[:2].square().sum()), rel=1e-4)

    people = {"p": task.examples(6, seed=8)}
    only = enrolled(task, people, replace(B, shrinkage=1e9), prior)["p"]
    moved_by = flat(only.private) - flat(task.start)
    assert only.steps
    assert float(moved_by.norm()) > 1e-3
    torch.testing.assert_close(basis.T @ (basis @ moved_by), moved_by, atol=1e-5, rtol=1e-4)
    free, plain = enrolled(task, people, B, prior)["p"], enrolled(task, people)["p"]
    assert torch.equal(flat(free.private), flat(plain.private))


def test_an_adapter_with_directions_draws_what_they_are_of_and_nothing_else(regression):
    task = regression(gate="none")
    rows = {name: torch.eye(2, task.start[name].numel()) for name in start_of(task).split.private}
    adapter = Adapter(Slot(2, 2.0, "none"), task.start, rows)
    drawn = Start.of(adapter, B, seed=SEED)
    assert (drawn.prior.directions, drawn.method) == (rows, replace(B, shrinkage=PULL / B.rate, few=FEW))
    assert Start.of(adapter, replace(B, part="A,B"), seed=SEED).method.shrinkage == 0
    odd = next(iter(rows))
    for wrong in ({**rows, odd: rows[odd][:, :-1]}, {**rows, odd: rows[odd][:1]}):
        with pytest.raises(AdapterError, match="remove the directions"):
            Start.of(replace(adapter, directions=wrong), B, seed=SEED)


def test_directions_that_were_rounded_keep_what_lies_along_them(regression):
    """They are made orthonormal again: what lies along them is drawn to itself, however often."""
    task = regression(gate="none")
    names = start_of(task).split.private
    others = enrolled(task, {f"o{i}": task.examples(6, seed=i) for i in range(4)})
    prior = eigenvoices(task.start, [one.private for one in others.values()], names, 2)
    rounded = read_directions(stored_directions({name: rows.numpy() for name, rows in prior.directions.items()}))
    longer = {name: 3 * rows for name, rows in rounded.items()}
    people, strong = {"p": task.examples(6, seed=8)}, replace(B, shrinkage=1e9)
    found = [enrolled(task, people, strong, Prior(directions=rows))["p"] for rows in (prior.directions, longer)]
    assert found[0].steps == found[1].steps > 0
    for name in names:
        moves = [one.private[name] - task.start[name] for one in found]
        torch.testing.assert_close(*moves, rtol=0.05, atol=0.02 * float(moves[0].abs().max()))


def test_the_pull_weighs_less_beside_more_sentences_and_is_each_persons_own(regression):
    """With ``few`` of 2 a person with 8 sentences, in a cohort with others, is pulled a quarter as much, in every fold too."""
    task = regression(gate="none")
    people = {"two": task.examples(2, seed=1), "eight": task.examples(8, seed=2)}
    fading = enrolled(task, people, replace(B, shrinkage=20.0, few=2))
    for name, shrinkage in (("two", 20.0), ("eight", 5.0)):
        alone = enrolled(task, {name: people[name]}, replace(B, shrinkage=shrinkage))[name]
        assert (fading[name].steps, fading[name].curve) == (alone.steps, pytest.approx(alone.curve))
        other = enrolled(task, {name: people[name]}, replace(B, shrinkage=60.0))[name]
        assert fading[name].curve != pytest.approx(other.curve)
