"""The whole way on real weights, and through Flower's own command."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fl.settings.config import make_config
from fl.speech.transcribe import transcribe_file
from sim.backends.run import run_simulation
from sim.report import summarize

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def test_speech_of_two_people_becomes_personal_recognizers_on_the_pretrained_base(tmp_path):
    config = make_config(
        {
            "devices": 2,
            "new-people": 1,
            "sentences": 14,
            "new-people-tests": 2,
            "rounds": 3,
            "local-steps": 4,
            "private-warmup-rounds": 1,
            "arms": "personalized,neutral",
            "evaluate-every": 3,
            "output": str(tmp_path / "run"),
        }
    )
    folder = run_simulation(config, serial=True)
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    losses = {r: [x["train_loss"] for x in rows if x["round"] == r and x["train_loss"] is not None] for r in (1, 3)}
    assert sum(losses[3]) < 0.8 * sum(losses[1]), "three rounds on real speech must teach something"

    summary = summarize([folder])
    assert set(summary["arms"]) == {"personalized", "neutral"}
    assert summary["new_people"]["neutral"]["mer"]["reference"] > 0
    up, shared = summary["costs"]["bytes_up_per_device_round"], summary["costs"]["shared_bytes"]
    assert shared < up < 1.02 * shared, "the shared tensors and their array headers go up, the gates do not"

    transcripts = map(json.loads, (folder / "transcripts.jsonl").read_text(encoding="utf-8").splitlines())
    transcript = next(row for row in transcripts if row["arm"] == "personalized")
    adapter = folder / "devices" / "personalized" / transcript["device"] / "adapter"
    again = transcribe_file(Path(transcript["audio"]), "", adapter)
    assert " ".join(piece.text for piece in again) == transcript["hypothesis"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def flower(tmp_path):
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


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="stops the SuperLink by its environment, which needs /proc")
def test_flwr_run_trains_and_reports_the_aggregated_metrics(tiny_manifest, tmp_path, flower):
    clone = tmp_path / "app"
    ignored = shutil.ignore_patterns(".*", "tests", "runs", "benchmarks", "__pycache__")
    shutil.copytree(ROOT, clone, ignore=ignored)
    shutil.copy(ROOT / ".gitignore", clone)
    settings = {
        "base": "random:whisper-nano", "manifest": str(tiny_manifest), "rounds": 2, "local-steps": 1, "rank": 2, "new-people": 0,
        "language": "ko", "output": str(tmp_path / "out"),
    }  # fmt: skip
    overrides = " ".join(f"{k}={v!r}" if isinstance(v, str) else f"{k}={v}" for k, v in settings.items())
    command = ["flwr", "run", ".", "--stream", "--run-config", overrides]
    done = subprocess.run(command, cwd=clone, env=flower, capture_output=True, text=True, timeout=420, check=False)
    log = done.stdout + done.stderr
    assert "run finished" in log, log[-3000:]
    deadline = time.monotonic() + 60
    while True:
        listing = subprocess.run(
            ["flwr", "ls", "--format", "json"], cwd=clone, env=flower, capture_output=True, text=True, check=False
        )
        if "finished:completed" in listing.stdout or time.monotonic() > deadline:
            break
        time.sleep(2)
    assert "finished:completed" in listing.stdout, listing.stdout[-2000:]
    assert {r["arm"] for r in map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())} == {
        "global",
        "personalized",
        "neutral",
    }
