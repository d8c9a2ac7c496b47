"""Which device lives where: asked of every node, and the first's where two say the same."""

from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Context, Message

from clients.app import app as client_app
from fl.core.errors import ConfigError, RunError
from fl.settings.config import RunConfig
from sim.backends.serial import SerialGrid
from strategies.roster import ask_roster

MakeRun = Callable[..., RunConfig]


def test_a_node_that_cannot_start_is_named_with_its_reason(make_run: MakeRun, tmp_path: Path) -> None:
    def crash(message: Message, context: Context) -> Message:
        raise ConfigError("no such corpus")

    with pytest.raises(RunError, match=r"node 1 left out: ConfigError: no such corpus"):
        ask_roster(SerialGrid(crash), make_run(tmp_path / "run"))  # type: ignore[arg-type]


def test_of_two_nodes_with_the_same_device_the_first_has_it(
    make_run: MakeRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grid = SerialGrid(client_app)
    for context in grid._contexts.values():
        context.node_config = {"device-id": "화자 0", "store": str(tmp_path / "store"), "manifest": "run"}
    assert ask_roster(grid, make_run(tmp_path / "run")).nodes == {"화자 0": 1}
    assert "device 화자 0 of node 2 left out: node 1 hosts it already" in caplog.text


def test_no_node_at_all_is_an_error_and_not_an_endless_wait(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no node came up"):
        ask_roster(SerialGrid(client_app, nodes=0), make_run(tmp_path / "run"), wait=0.0)
