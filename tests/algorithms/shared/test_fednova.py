"""FedNova by hand: a device with many steps does not win by them."""

from collections.abc import Callable

import numpy as np
import pytest

from fl.aggregation.updates import DeviceUpdate
from fl.algorithms.base import Aggregator

After = Callable[..., dict[str, np.ndarray]]


def test_fednova_takes_directions_per_step(after_round: After) -> None:
    """ann took 1 step and moved by 2, bob took 4 steps and moved by 4."""
    new = after_round(
        "fednova",
        {"x": np.zeros(1, np.float32)},
        {"ann": (1.0, {"x": np.float32([2.0])}), "bob": (3.0, {"x": np.float32([4.0])})},
        numbers={"ann": {"steps": 1}, "bob": {"steps": 4}},
    )
    tau = 0.25 * 1 + 0.75 * 4
    assert new["x"].tolist() == pytest.approx([tau * (0.25 * 2.0 / 1 + 0.75 * 4.0 / 4)])


def test_fednova_is_fedavg_where_all_take_as_many_steps(after_round: After) -> None:
    generator = np.random.default_rng(0)
    devices = {d: (n, {"x": generator.standard_normal(5).astype(np.float32)}) for d, n in (("ann", 1.0), ("bob", 6.0))}
    start = {"x": np.ones(5, np.float32)}
    one, other = after_round("fednova", start, devices), after_round("fedavg", start, devices)
    assert one["x"].tobytes() == other["x"].tobytes()
    alone = after_round("fednova", start, {"ann": devices["ann"]}, numbers={"ann": {"steps": 7}})
    np.testing.assert_allclose(alone["x"], devices["ann"][1]["x"], rtol=1e-6)


@pytest.mark.parametrize("steps", [0, -1])
def test_a_device_that_says_it_took_no_step_cannot_be_used(half: Callable[..., Aggregator], steps: int) -> None:
    fednova = half("fednova")
    assert "local steps" in fednova.fault(DeviceUpdate("bob", {}, {}, {"examples": 3.0, "steps": steps}))
    assert "local steps" in fednova.fault(DeviceUpdate("bob", {}, {}, {"examples": 3.0}))
    assert fednova.fault(DeviceUpdate("bob", {}, {}, {"examples": 3.0, "steps": 1.0})) == ""
