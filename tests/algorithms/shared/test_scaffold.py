"""SCAFFOLD by hand: x and c after rounds with all devices and with some, and what a device keeps."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fl.adapters.split import CONTROL, OWN
from fl.aggregation.mean import product_gaps
from fl.algorithms.base import Aggregator
from fl.algorithms.shared.scaffold import ControlledMean
from fl.algorithms.table import ALGORITHMS

X, C = "x", f"{CONTROL}x"
After = Callable[..., dict[str, np.ndarray]]
EXAMPLES = {"ann": 1, "bob": 3, "cem": 4}
TRAINED = {"ann": (1.0, 0.5), "bob": (3.0, -0.5), "cem": (-2.0, 1.0)}  # x after training, and by how much c_k moved


def values(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def trained(*devices: str) -> dict[str, tuple[float, dict[str, np.ndarray]]]:
    """What the devices trained; the update of c is the difference of their own variate."""
    return {d: (EXAMPLES[d], {X: values(TRAINED[d][0]), C: values(TRAINED[d][1])}) for d in devices}


def sent_by(scaffold: Aggregator, x: float) -> dict[str, float]:
    ((_, tensors),) = scaffold.recipients(tuple(EXAMPLES), {X: values(x)}, training=True)
    return {name: float(value[0]) for name, value in tensors.items()}


def test_two_rounds_by_hand(after_round: After) -> None:
    """c starts at 0; in round 1 all answer, in round 2 only ann and bob (half of the examples)."""
    scaffold = ControlledMean()
    assert sent_by(scaffold, 10.0) == {X: 10.0, C: 0.0}
    new = after_round(scaffold, {X: values(10.0)}, trained(*EXAMPLES))
    x, c = (sum(EXAMPLES[d] / 8 * TRAINED[d][i] for d in EXAMPLES) for i in (0, 1))
    assert list(new) == [X]
    assert new[X] == pytest.approx([x])
    assert scaffold.control[X] == pytest.approx([c])
    assert sent_by(scaffold, x)[C] == pytest.approx(c)
    new = after_round(scaffold, new, trained("ann", "bob"), participation=4 / 8)
    assert new[X] == pytest.approx([(1 * 1.0 + 3 * 3.0) / 4])
    assert scaffold.control[X] == pytest.approx([c + 1 / 8 * 0.5 - 3 / 8 * 0.5])


def test_one_device_alone_gives_its_own(after_round: After) -> None:
    scaffold = ControlledMean()
    new = after_round(scaffold, {X: values(10.0)}, trained("cem"))
    assert (float(new[X][0]), float(scaffold.control[X][0])) == TRAINED["cem"]


def test_its_state_continues_and_a_phase_without_exchange_sends_no_control_variate(after_round: After) -> None:
    first, second = ControlledMean(), ControlledMean()
    after_round(first, {X: values(10.0)}, trained(*EXAMPLES))
    second.restore(first.state(), ())
    assert sent_by(second, 1.0) == sent_by(first, 1.0)
    assert sent_by(second, 1.0)[C] != 0
    ((_, tensors),) = second.recipients(tuple(EXAMPLES), {X: values(1.0)}, training=False)
    assert list(tensors) == [X]


def test_control_variates_are_no_low_rank_pairs(updates_of: Callable[..., tuple]) -> None:
    start = {
        name: np.zeros(shape, np.float32) for name, shape in (("m.gated_lora_A", (2, 3)), ("m.gated_lora_B", (4, 2)))
    }
    devices = {}
    for i, device in enumerate(EXAMPLES):
        tensors = {n: np.full(v.shape, 1.0 + i, np.float32) for n, v in start.items()}
        devices[device] = (1.0, {**tensors, **{CONTROL + n: v for n, v in tensors.items()}})
    found = product_gaps(updates_of(start, devices), start)
    assert set(found) == {"product-gap", "product-gap:m"}


# The device's half


def test_a_device_corrects_its_gradients_by_what_it_keeps_and_sends_by_how_much_that_moved() -> None:
    scaffold = ALGORITHMS["scaffold"]()
    incoming = {X: torch.zeros(2), C: torch.tensor([1.0, 1.0])}
    asked = []
    first = scaffold.begin(incoming, lambda shapes: asked.append(shapes))
    assert asked == [{f"{OWN}x": (2,)}]
    assert first is not None
    assert first.correction[X].tolist() == [1.0, 1.0]  # c - c_k, and c_k is zero in the first round
    for gradient in ([1.0, 4.0], [3.0, 0.0]):
        first.observe(X, torch.tensor(gradient))
    assert {n: t.tolist() for n, t in first.kept().items()} == {f"{OWN}x": [2.0, 2.0]}  # the mean gradient
    assert {n: t.tolist() for n, t in first.sent().items()} == {C: [1.0 + 2.0, 1.0 + 2.0]}
    second = scaffold.begin(incoming, lambda shapes: first.kept())
    assert second is not None
    assert second.correction[X].tolist() == [-1.0, -1.0]
    assert second.kept()[f"{OWN}x"].tolist() == [2.0, 2.0]  # no gradient: as before
    assert second.sent()[C].tolist() == [1.0, 1.0]


def test_a_message_without_control_variates_begins_no_correction() -> None:
    assert ALGORITHMS["scaffold"]().begin({X: torch.zeros(2)}, lambda shapes: None) is None
