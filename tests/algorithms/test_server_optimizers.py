"""Server optimizers against their formulas written out."""

import numpy as np
import pytest

from fl.algorithms.server_optimizers import BETA2, LEARNING_RATES, TAU, ServerOptimizer
from fl.core.errors import ConfigError
from fl.settings.names import SERVER_OPTIMIZERS

NAMES = [name for name in SERVER_OPTIMIZERS if name != "none"]


def by_hand(name: str, updates: list[float], rate: float, momentum: float) -> list[float]:
    """The formulas of Reddi et al. (2021), algorithm 2, on one number that starts at 0; FedAdagrad with beta = 0, as they run it."""
    x, m, v, seen = 0.0, 0.0, TAU**2, []
    for d in updates:
        if name == "fedavgm":
            m = momentum * m + d
            x += rate * m
        else:
            m = d if name == "fedadagrad" else momentum * m + (1 - momentum) * d
            if name == "fedadagrad":
                v = v + d * d
            elif name == "fedadam":
                v = BETA2 * v + (1 - BETA2) * d * d
            else:
                v = v - (1 - BETA2) * d * d * np.sign(v - d * d)
            x += rate * m / (v**0.5 + TAU)
        seen.append(x)
    return seen


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_three_steps_of_each_optimizer_are_those_of_the_formula(name: str, momentum: float) -> None:
    optimizer = ServerOptimizer(name, 0.25, momentum)
    x, found = 0.0, []
    for update in (1.0, -0.5, 0.125):
        x += float(optimizer.step({"x": np.array([update])}, ("x",))["x"][0])
        found.append(x)
    assert found == pytest.approx(by_hand(name, [1.0, -0.5, 0.125], 0.25, momentum))


def test_a_momentum_of_zero_at_a_rate_of_one_is_plain_averaging() -> None:
    optimizer = ServerOptimizer("fedavgm", 1.0, 0.0)
    for update in (np.array([0.1, -3.0]), np.array([1e-9, 7.0])):
        assert optimizer.step({"x": update}, ("x",))["x"].tobytes() == update.tobytes()


def test_what_does_not_move_has_no_step_and_gets_no_moments() -> None:
    optimizer = ServerOptimizer("fedadam", 0.1)
    assert optimizer.step({"x": np.array([3.0])}, ()) == {}
    assert optimizer.state == {}


@pytest.mark.parametrize("name", NAMES)
def test_its_state_is_all_that_a_later_step_needs(name: str) -> None:
    first, second = (ServerOptimizer(name, 0.3) for _ in range(2))
    first.step({"x": np.array([1.0, -2.0])}, ("x",))
    second.state = {key: values.copy() for key, values in first.state.items()}
    one, other = (optimizer.step({"x": np.array([0.5, 0.5])}, ("x",))["x"] for optimizer in (first, second))
    assert (one == other).all()


def test_an_unknown_optimizer_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="fedyogi"):
        ServerOptimizer("adam", 0.1)
    assert set(LEARNING_RATES) == set(NAMES)
