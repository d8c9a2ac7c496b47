"""What a device trains beside the shared adapter: by hand on one number, and on a small net."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clients.training.second import Own, train_own
from fl.adapters.blend import MIXING, own
from fl.adapters.state import adapter_state
from fl.algorithms.personal.pfedme import PFedMe
from fl.algorithms.plan import LocalPlan
from fl.algorithms.table import make_algorithm
from fl.core.errors import AdapterError, ConfigError
from fl.settings.config import RunConfig, make_config
from fl.tasks.task import Example

RATE = 0.125
PLAN = LocalPlan(steps=2, batch_size=1, learning_rate=RATE, private_learning_rate=RATE, clipping_norm=1e9)


class Line:
    """A model of one weight a, its loss (a - 3)^2 for every example."""

    weight = 3.0

    def loss(self, model, examples):
        return (model["a"] - self.weight).square().sum()


def mixed(shared, personal):
    return {"a": personal[MIXING] * personal[own("a")] + (1 - personal[MIXING]) * shared["a"]}


class Pair:
    """A second adapter of one number, built by a function of both."""

    gate, ranks, follows = "none", 1, False

    def __init__(self, build):
        self.build = build


ALONE = Pair(lambda shared, personal: {"a": personal[own("a")]})
WEIGHTED = Pair(mixed)


def by_hand(start: float, gradients, pull: float = 0.0, towards: float = 0.0, rate: float = RATE) -> float:
    """AdamW without decay (Loshchilov & Hutter 2019, algorithm 2) from ``start``; ``gradients`` maps value and step to a gradient.

    With the pull: value - rate (direction + pull (value - towards)), which is the papers' step but for the direction.
    """
    value, m, v = start, 0.0, 0.0
    for step in (1, 2):
        g = gradients(value, step)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        value -= rate * pull * (value - towards)
        value -= rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)) ** 0.5 + 1e-8)
    return value


def trained(blend, plan, shared: float, **personal: float):
    model = {"a": torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))}
    own_part = {n if n == MIXING else own(n): torch.tensor([x], dtype=torch.float64) for n, x in personal.items()}
    start = {"a": torch.tensor([shared], dtype=torch.float64)}
    examples = [Example("e", None, "", 1, {})]
    done = train_own(model, model, blend, Line(), Own(start, own_part, examples, plan, seed=1))
    return {name: float(t) for name, t in done.personal.items()}, float(done.shared["a"]), done.result


@pytest.mark.parametrize("norm", [1e9, 0.01])
def test_ditto_steps_on_its_own_loss_and_towards_the_shared_adapter(norm):
    """v <- v - rate (direction + lambda (v - w)), w = 1: neither clipping nor AdamW changes the second term (Li et al. 2021)."""

    def clipped(v, _):
        return 2 * (v - 3) * min(1.0, norm / (abs(2 * (v - 3)) + 1e-6))

    after, moved, result = trained(ALONE, replace(PLAN, shrinkage=0.5, clipping_norm=norm), 1.0, a=2.0)
    assert after[own("a")] == pytest.approx(by_hand(2.0, clipped, pull=0.5, towards=1.0), abs=1e-12)
    assert moved == 1.0
    assert result.steps == 2


def test_a_mixture_trains_its_own_part_through_the_mixture_and_moves_the_weight():
    """a = alpha v + (1 - alpha) w with w = 1: v gets alpha f'(a), alpha goes against (v - w) f'(a)."""
    alpha = [0.4]
    values = []

    def gradient(v, _):
        slope = 2 * (alpha[-1] * v + (1 - alpha[-1]) * 1.0 - 3)
        values.append(slope)
        used = alpha[-1]
        alpha.append(min(1.0, max(0.0, used - 0.0625 * (v - 1.0) * slope)))
        return used * slope

    expected = by_hand(2.0, gradient)
    after, moved, _ = trained(WEIGHTED, replace(PLAN, mixing_learning_rate=0.0625), 1.0, a=2.0, **{MIXING: 0.4})
    assert after[own("a")] == pytest.approx(expected, abs=1e-12)
    assert after[MIXING] == pytest.approx(alpha[-1], abs=1e-12)
    assert alpha[-1] > alpha[0]
    assert moved == 1.0
    fast, _, _ = trained(WEIGHTED, replace(PLAN, mixing_learning_rate=100.0), 1.0, a=2.0, **{MIXING: 0.4})
    assert fast[MIXING] == 1.0  # never beyond the personal model


def test_pfedme_solves_on_each_batch_and_the_shared_adapter_follows():
    """Two steps on each batch, held at w by lambda, then w <- w - eta lambda (w - theta) (Dinh et al. 2020, algorithm 1)."""
    plan = PFedMe(steps=2, pull=6.0, outer_learning_rate=0.05).plan(PLAN)
    after, moved, result = trained(ALONE, plan, 1.0, a=1.0)
    theta = by_hand(1.0, lambda v, _: 2 * (v - 3), pull=6.0, towards=1.0)
    assert after[own("a")] == pytest.approx(theta, abs=1e-12)
    assert moved == pytest.approx(1.0 - 0.05 * 6.0 * (1.0 - theta), abs=1e-12)
    assert result.steps == 2
    with pytest.raises(ConfigError, match=r"outer-learning-rate \* pull .* 0\.5 \* 15"):
        make_config({"algorithm": "pfedme", "algorithm.pfedme.outer-learning-rate": 0.5})
    assert trained(ALONE, replace(plan, steps=3), 1.0, a=1.0)[2].steps == 6


def test_a_step_is_clipped():
    after, _, _ = trained(ALONE, replace(PLAN, clipping_norm=0.01), 1.0, a=2.0)
    assert after[own("a")] == pytest.approx(
        by_hand(2.0, lambda v, _: np.sign(v - 3) * 0.01 / (1 + 1e-6 / abs(2 * (v - 3)))), abs=1e-6
    )


@pytest.mark.parametrize("method", ["mixture", "dual-adapter", "interpolation"])
def test_training_through_the_blend_lowers_the_loss_and_moves_nothing_shared(regression, method):
    task = regression(gate="none", split_name="all-shared")
    blend = make_algorithm(RunConfig(), method).second
    task.model.add_adapter("blend", _config(task, blend))
    task.model.set_adapter("blend")
    task.model.eval()
    parameters = {n: p for n, p in task.model.named_parameters() if n.endswith(".blend")}
    live = {n.removesuffix(".blend"): p for n, p in parameters.items()}
    shared = {n: t[:1] if n.endswith("_A") else t[:, :1] for n, t in task.start.items()}  # rank 1: the blend has 2
    personal = blend.start(shared, 9)
    examples = task.examples(4)
    losses = []
    plan = replace(
        PLAN, steps=30, batch_size=4, learning_rate=0.02, private_learning_rate=0.02, mixing_learning_rate=0.1
    )
    before = {n: t.clone() for n, t in shared.items()}
    for _ in range(2):
        done = train_own(task.model, live, blend, task, Own(shared, personal, examples, plan, seed=3))
        personal = done.personal
        losses.append(done.result.loss)
        assert all(torch.equal(done.shared[n], before[n]) for n in before)
    assert losses[1] < 0.8 * losses[0]
    assert {n for n, t in personal.items() if torch.equal(t, blend.start(shared, 9)[n])} == set()
    assert all(torch.equal(t, task.start[n]) for n, t in adapter_state(task.model).items())


def _config(task, blend):
    from fl.adapters.config import GatedLoraConfig

    return GatedLoraConfig(
        r=blend.ranks, lora_alpha=2.0 * blend.ranks, gate=blend.gate, target_modules=task.targets, init_seed=1
    )


def test_a_device_without_examples_and_one_that_diverges_say_so(regression):
    task = regression(gate="none", split_name="all-shared")
    blend = make_algorithm(RunConfig(), "ditto").second
    personal = blend.start(task.start, 1)
    arguments = (task.model, task.parameters, blend, task)
    with pytest.raises(AdapterError, match="no training examples"):
        train_own(*arguments, Own(task.start, personal, [], PLAN, seed=1))
    task.loss_of = lambda found, wanted: (found - wanted).sum() * torch.inf
    with pytest.raises(AdapterError, match="diverged"):
        train_own(*arguments, Own(task.start, personal, task.examples(2), PLAN, seed=1))


def test_what_the_settings_ask_of_each_method():
    shared = LocalPlan(steps=12, batch_size=2, learning_rate=1e-3, private_learning_rate=1e-2)

    def plan(method, **values):
        config = make_config({f"algorithm.{method}.{name}": value for name, value in values.items()})
        return make_algorithm(config, method).second.plan(shared)

    assert (plan("ditto").steps, plan("ditto").repeat, plan("ditto").shrinkage, plan("ditto").outer) == (
        12,
        1,
        100.0,
        0.0,
    )
    assert (plan("pfedme").steps, plan("pfedme").repeat, plan("pfedme").outer) == (4, 3, 0.03 * 15)
    assert plan("pfedme", steps=5).steps == 2
    assert (plan("mixture", steps=5).steps, plan("mixture").shrinkage) == (5, 0.0)
    assert plan("dual-adapter").private_learning_rate == 1e-2
    assert [plan(name).learning_rate for name in ("mixture", "ditto", "pfedme")] == pytest.approx([1e-4, 3e-4, 1e-3])
    assert plan("mixture", rate=0.5).learning_rate == pytest.approx(5e-4)
