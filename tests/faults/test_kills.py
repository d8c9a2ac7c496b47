"""A run that is killed anywhere and started again ends with the bits that an uninterrupted one gives."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reliability import InjectionRow, store
from fl.settings.config import RunConfig, flat, make_config

ROOT = Path(__file__).parents[2]
KILLING = Path(__file__).parent / "killing"
SEED = 18
SMALL = {
    "base": "random:whisper-nano", "language": "ko", "rank": 2, "gate": "self", "rounds": 3, "local-steps": 1, "batch-size": 2,
    "new-people": 1, "evaluate-every": 2, "arms": "personalized", "private-share": 0.34, "seed": 1,
    "server-optimizer": "fedadam",
}  # fmt: skip
RUNS = {
    "error-feedback": {"codec": "int8", "error-feedback": True, "arms": "global,personalized"},
    "secure": {"secure-sum": "pairwise", "dp": "distributed", "noise-multiplier": 0.3, "epsilon-budget": 1e6},
}
CLOCK = ("seconds_train", "seconds_evaluate", "crc32")


def outcome(folder: Path) -> dict[str, Any]:
    """What a run leaves: tensors byte by byte, rows and predictions without what a clock measured, the ledger byte by byte."""
    left: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*.safetensors")
        if path.parent.name != "before"
    }
    for name in ("results.jsonl", "transcripts.jsonl"):
        rows = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        left[name] = sorted(
            json.dumps({k: v for k, v in row.items() if k not in CLOCK}, sort_keys=True) for row in rows
        )
    if (folder / "privacy-ledger.jsonl").exists():
        left["ledger"] = (folder / "privacy-ledger.jsonl").read_bytes()
    return left


def differing(folder: Path, whole: Path) -> list[str]:
    """The names of what a run lacks or has otherwise; it may have kept the state of one round more."""
    mine = outcome(folder)
    return [name for name, value in outcome(whole).items() if mine.get(name) != value]


def environment(home: Path, **more: str) -> dict[str, str]:
    path = os.pathsep.join([str(KILLING), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "IDIOLECT_HOME": str(home), **more}


@pytest.fixture(scope="module")
def speech(noise_manifest: Callable[..., Path]) -> Path:
    return noise_manifest([f"화자 {number}" for number in range(4)], 5)


Runs = Callable[..., int]
Found = tuple[int, list[tuple[str, list[str]]]]  # how many died, and what of which run came out otherwise


@pytest.fixture(scope="module")
def fork_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """``fork_run(**job)``: a job of ``killing/runs.py``; returns how its process ended."""
    home = tmp_path_factory.mktemp("home")
    log = (home / "log").open("wb")
    process = subprocess.Popen(
        [sys.executable, str(KILLING / "runs.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        env=environment(home), cwd=ROOT, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    writing, reading = process.stdin, process.stdout

    def run(**job: Any) -> int:
        print(json.dumps(job), file=writing, flush=True)
        end = int(json.loads(reading.readline())["end"])
        assert end in (0, -signal.SIGKILL), (home / "log").read_text()[-3000:]
        return end

    yield run
    writing.close()
    process.wait(60)
    log.close()


def kill_and_resume(fork_run: Runs, folder: Path, speech: Path, kills: int, seed: int) -> Found:
    """Kill runs until ``kills`` have died, each resumed to its end."""
    generator, died, wrong = random.Random(seed), 0, []
    whole: dict[str, tuple[Path, int, float]] = {}
    for name, changes in RUNS.items():
        config = {**SMALL, **changes, "manifest": str(speech), "output": str(folder / f"{name}-whole")}
        started = time.monotonic()
        assert fork_run(config=config, folder=config["output"], counter=str(folder / name), at=0) == 0
        touches = (folder / name).stat().st_size
        whole[name] = Path(config["output"]), touches, time.monotonic() - started
    number = 0
    while died < kills:
        name = list(RUNS)[number % len(RUNS)]
        number += 1
        reference, touches, seconds = whole[name]
        output = folder / f"{name}-{number}"
        config = {**SMALL, **RUNS[name], "manifest": str(speech), "output": str(output)}
        for attempt in range(9):
            job: dict[str, Any] = {}
            if died < kills and attempt < 2:
                if generator.random() < 0.25:
                    job = {"after": generator.random() * seconds}
                else:
                    counter = folder / f"{name}-{number}-{attempt}"
                    job = {
                        "folder": str(output),
                        "counter": str(counter),
                        "at": generator.randint(1, touches if attempt == 0 else touches // 3),
                    }
            if fork_run(config=config, **job) == 0:
                break
            died += 1
        if other := differing(output, reference):
            wrong.append((f"{output.name}", other))
    return died, wrong


def test_runs_that_die_at_the_disk_or_at_any_time_end_as_one_that_lives(
    fork_run: Runs, tmp_path: Path, speech: Path
) -> None:
    died, wrong = kill_and_resume(fork_run, tmp_path, speech, 6, SEED)
    assert died >= 6
    assert not wrong


# Ray's workers and driver, and Flower's own command


def ray_run(config: dict[str, Any], home: Path, killing: dict[str, Any] | None = None) -> int:
    """``idiolect run`` on two Ray workers, in a process group of its own."""
    program = (
        "import json, sys\nfrom fl.settings.config import make_config\nfrom sim.backends.run import run_simulation\n"
    )
    program += "run_simulation(make_config(json.loads(sys.argv[1])), workers=2, processes=True)"
    more = {"KILLING": json.dumps(killing)} if killing else {}
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(config)], env=environment(home, **more), cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    # A worker that dies in a step of a secure sum takes its devices' secrets along, and of three devices three are needed.
    refused = killing is not None and "SecureSumError" in done.stderr
    assert done.returncode in (0, -signal.SIGKILL) or refused, done.stderr[-3000:]
    return done.returncode


def kill_ray(folder: Path, speech: Path, who: str, kills: int, seed: int) -> Found:
    """As :func:`kill_and_resume`, on Ray: a worker that dies is started again within the run, or ends its secure sum and the run."""
    generator, died, wrong = random.Random(seed), 0, []
    changes = {**SMALL, **RUNS["secure"], "manifest": str(speech)}
    whole = {**changes, "output": str(folder / f"{who}-whole")}
    counting = {
        "folder": str(folder / f"{who}-whole"),
        "counter": str(folder / f"{who}-all"),
        "at": 1 << 60,
        "who": who,
    }
    assert ray_run(whole, folder / "home", counting) == 0
    touches = (folder / f"{who}-all").stat().st_size
    for number in range(kills):
        output, counter = folder / f"{who}-{number}", folder / f"{who}-{number}.counter"
        config = {**changes, "output": str(output)}
        killing = {"folder": str(output), "counter": str(counter), "at": generator.randint(1, touches), "who": who}
        end = ray_run(config, folder / "home", killing)
        assert end or who == "worker"
        died += counter.with_name(counter.name + ".killed").exists()
        if end:
            assert ray_run(config, folder / "home") == 0
        if other := differing(output, Path(whole["output"])):
            wrong.append((output.name, other))
    return died, wrong


@contextlib.contextmanager
def flower(home: Path, **more: str) -> Iterator[dict[str, str]]:
    """The environment of a Flower of our own; the SuperLink that it starts, and what that started, end with the block."""
    ports = {}
    for name in ("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "FLWR_LOCAL_CONTROL_API_PORT"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports[name] = str(probe.getsockname()[1])
    own = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    yield environment(home / "home", **own, **ports, **more)
    mark = f"FLWR_HOME={own['FLWR_HOME']}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)


def flwr_run(settings: dict[str, Any], clone: Path, found: dict[str, str]) -> str:
    """``flwr run`` of a copy of the project; how it ended, in Flower's words."""
    if not clone.exists():
        for package in ("fl", "clients", "strategies", "sim"):
            shutil.copytree(ROOT / package, clone / package, ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("idiolect.py", "pyproject.toml", "README.md", "LICENSE", ".gitignore"):
            shutil.copy(ROOT / file, clone)
    overrides = " ".join(f"{k}={v!r}" if isinstance(v, str) else f"{k}={v}" for k, v in settings.items())
    command = ["flwr", "run", ".", "--run-config", overrides]
    options: dict[str, Any] = {"cwd": clone, "env": found, "capture_output": True, "text": True, "check": False}
    before = subprocess.run(["flwr", "ls", "--format", "json"], **options).stdout.count("finished:")
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    deadline = time.monotonic() + 420
    while time.monotonic() < deadline:
        listing = subprocess.run(["flwr", "ls", "--format", "json"], **options).stdout
        ends = re.findall(r"finished:(\w+)", listing)
        if len(ends) > before:
            return "completed" if ends.count("completed") > 0 else ends[0]
        time.sleep(2)
    pytest.fail(f"the run did not end: {listing[-2000:]}")


def kill_flwr(fork_run: Runs, folder: Path, speech: Path, kills: int, seed: int) -> Found:
    """``flwr run``, whose simulation dies at a touch of the disk by the aggregator, and again, which resumes it."""
    generator, died, wrong = random.Random(seed), 0, []
    config = make_config({**SMALL, **RUNS["secure"], "manifest": str(speech), "output": str(folder / "flwr-whole")})
    settings = {**SMALL, **RUNS["secure"], "manifest": str(speech)}
    assert fork_run(config={**settings, "output": config.output}) == 0
    changed = {key: value for key, value in flat(config).items() if value != flat(RunConfig())[key]}
    for number in range(kills):
        output, counter = folder / f"flwr-{number}", folder / f"flwr-{number}.counter"
        killing = {"folder": str(output), "counter": str(counter), "at": generator.randint(4, 30), "who": "driver"}
        with flower(folder / f"flower-{number}", KILLING=json.dumps(killing)) as found:
            own = {**changed, "output": str(output)}
            assert flwr_run(own, folder / "app", found) != "completed"
            died += counter.with_name(counter.name + ".killed").exists()
            assert flwr_run(own, folder / "app", found) == "completed"
        if other := differing(output, Path(config.output)):
            wrong.append((output.name, other))
    return died, wrong


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_fifty_kills_lose_nothing(fork_run: Runs, tmp_path: Path, speech: Path) -> None:
    """``make faults``: kills at the disk and at any time, of Ray's workers and driver, and of a Flower run."""
    parts = [
        kill_and_resume(fork_run, tmp_path, speech, 40, SEED),
        kill_ray(tmp_path, speech, "worker", 4, SEED),
        kill_ray(tmp_path, speech, "driver", 4, SEED),
        kill_flwr(fork_run, tmp_path, speech, 2, SEED),
    ]
    died, wrong = sum(part[0] for part in parts), [one for part in parts for one in part[1]]
    counts = ", ".join(str(part[0]) for part in parts)
    store(
        InjectionRow(
            "kills",
            "SIGKILL of aggregator, worker or run, at a random touch of the disk or a random time",
            died,
            died - len(wrong),
            len(wrong),
            (SEED,),
            "make faults",
            "Runs with private parts, FedAdam and error feedback, or secure sums, noise and a ledger, resumed to their end; tensors, rows, "
            f"predictions and ledger compared byte for byte with an uninterrupted run (one process, Ray workers, drivers, flwr: {counts})",
        )
    )
    assert died >= 50
    assert not wrong
