"""A tiny population, and a run of it that takes seconds."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fl.settings.config import RunConfig, make_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tiny_manifest(noise_manifest: Callable[..., Path]) -> Path:
    """Three speakers with five recordings each."""
    return noise_manifest([f"화자 {number}" for number in range(3)], 5)


@pytest.fixture
def tiny_run(
    tiny_manifest: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., RunConfig]:
    """Makes a run of two rounds of the personalized arm, with a cache folder of its own."""
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path_factory.getbasetemp() / "tiny-home"))

    def make(output: str = "run", **changes: Any) -> RunConfig:
        values: dict[str, Any] = {
            "base": "random:whisper-nano",
            "manifest": str(tiny_manifest),
            "rounds": 2,
            "local_steps": 2,
            "batch_size": 2,
            "rank": 2,
            "gate": "self",
            "new_people": 1,
            "language": "ko",
            "arms": "personalized,neutral",
            "evaluate_every": 2,
            "output": str(tmp_path / output),
        }
        return make_config({**values, **changes})

    return make


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def flower(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment of an isolated Flower: its own home, SuperLink ports and caches; what it started is stopped at the end."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(_free_port()),
        "FLWR_LOCAL_CONTROL_API_PORT": str(_free_port()),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    yield environment
    mark = f"FLWR_HOME={environment['FLWR_HOME']}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue


@pytest.fixture
def flwr_run(tmp_path: Path, flower: dict[str, str]) -> Callable[..., str]:
    """``flwr_run(settings, **environment)``: run a copy of the project by Flower's own command; what ``flwr ls`` says of it."""

    def run(settings: Mapping[str, Any], **environment: str) -> str:
        clone, found = tmp_path / "app", {**flower, **environment}
        for package in ("fl", "clients", "strategies", "sim"):
            shutil.copytree(ROOT / package, clone / package, ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("idiolect.py", "pyproject.toml", "README.md", "LICENSE", ".gitignore"):
            shutil.copy(ROOT / file, clone)
        overrides = " ".join(f"{k}={v!r}" if isinstance(v, str) else f"{k}={v}" for k, v in settings.items())
        command = ["flwr", "run", ".", "--stream", "--run-config", overrides]
        done = subprocess.run(command, cwd=clone, env=found, capture_output=True, text=True, timeout=420, check=False)
        log = done.stdout + done.stderr
        assert "run finished" in log, log[-3000:]
        deadline = time.monotonic() + 60
        while True:
            listing = subprocess.run(
                ["flwr", "ls", "--format", "json"], cwd=clone, env=found, capture_output=True, text=True, check=False
            )
            if "finished:completed" in listing.stdout or time.monotonic() > deadline:
                return listing.stdout
            time.sleep(2)

    return run
