"""``idiolect doctor`` finds what is missing, says what to do about it, and its exit code tells a script."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sim.cli import doctor as command
from sim.cli.app import app
from sim.cli.doctor import Health, MachineFinding


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what loads torch, which other tests do."""
    checks = {name: check for name, check in command.CHECKS.items() if name != "torch"}
    monkeypatch.setattr(command, "CHECKS", checks)


def test_it_looks_at_everything_that_a_run_needs() -> None:
    shown = CliRunner().invoke(app, ["doctor", "--json"])
    assert shown.exit_code == 0, shown.output
    found = {finding["name"] for finding in json.loads(shown.stdout)}
    assert found >= {"Python", "packages", "torch", "matrix units", "GPU", "Flower", "Ray", "weights", "FFmpeg", "home"}
    assert found >= {"voices: espeak", "voices: neural", "disk: home", "disk: runs", "ports", "memory"}


def test_a_package_of_another_version_is_missing(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"typer": "0.1.0"}
    real = command.metadata.version
    monkeypatch.setattr(command.metadata, "version", lambda name: versions.get(name) or real(name))
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 3
    assert "typer is 0.1.0" in shown.output
    assert "pip install --upgrade idiolect-fl" in shown.output
    assert "Missing: packages." in shown.output


def test_what_cannot_be_imported_is_missing_and_ends_nothing(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    shown = CliRunner().invoke(app, ["doctor", "--json"])
    assert shown.exit_code == 3
    states = {finding["name"]: finding["state"] for finding in json.loads(shown.stdout)}
    assert states["FFmpeg"] == "missing"
    assert states["Python"] == "ok"


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[MachineFinding]:
        raise OSError("no such device")
        yield

    monkeypatch.setattr(command, "CHECKS", {"GPU": broken})
    (found,) = command.examine()
    assert (found.name, found.state, found.found) == ("GPU", Health.MISSING, "OSError: no such device")


def test_a_home_that_cannot_be_written_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("IDIOLECT_HOME", str(file / "home"))
    found = {finding.name: finding for finding in command.home()}
    assert found["home"].state is Health.MISSING
    assert "IDIOLECT_HOME" in found["home"].remedy


def test_weights_that_are_not_here_say_how_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path))
    found = next(command.weights())
    assert found.state is Health.NOTE
    assert "133 MB" in found.remedy


def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(command, "PORTS", {port: "idiolect serve"})
        (found,) = command.ports()
    assert found.state is Health.NOTE
    assert str(port) in found.found
    (found,) = command.ports()
    assert found.state is Health.OK
