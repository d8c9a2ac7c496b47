"""The command line tells the truth: what it prints, what it writes, and its exit code."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.files import AdapterInfo, save_adapter
from fl.adapters.layer import fresh_adapter
from fl.bases.resolve import load_base
from fl.core.errors import AdapterMismatchError, AudioError, ConfigError, RunError
from fl.data.manifest import Utterance, write_manifest
from fl.settings.config import make_config
from fl.speech.audio import SAMPLE_RATE, save_audio
from sim.backends.run import run_simulation
from sim.cli.app import app

NANO = "random:whisper-nano"
ROOT = Path(__file__).parents[2]


def noise(path: Path, seconds: float, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    save_audio(path, (0.1 * rng.standard_normal(int(seconds * SAMPLE_RATE))).clip(-1, 1).astype(np.float32))
    return path


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def manifest(home):
    utterances = [
        Utterance(
            id=f"{speaker}-{i}",
            audio=noise(home / f"{speaker}-{i}.wav", 0.5 + 0.02 * i, seed=i),
            text=f"{speaker} 이번 bug는 {i}",
            speaker=speaker,
            start=None,
            end=None,
            lang="ko",
            spans=(),
            level="word",
            loanwords=(),
            session=None,
            split=None,
        )
        for speaker in ("ann", "bob", "cho")
        for i in range(6)
    ]
    write_manifest(home / "manifest.jsonl", utterances)
    return home / "manifest.jsonl"


@pytest.fixture
def adapter(home):
    base = load_base(NANO)
    config = GatedLoraConfig(r=2, gate="self", target_modules=target_pattern(["decoder.self"]), init_seed=1)
    info = AdapterInfo(base_name=NANO, base_fingerprint=base.fingerprint, split="gates", config=config)
    save_adapter(home / "adapter", fresh_adapter(base.model, config), info)
    return home / "adapter"


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_run_on_a_manifest_ends_with_a_report_of_all_seven_arms(manifest, home):
    result = invoke(
        "run", "--manifest", manifest, "--output", home / "out", "--base", NANO, "--serial", "--rounds", 1,
        "--local-steps", 1, "--rank", 2, "--new-people", 1, "--set", "finetune-steps=1", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert set(summary["arms"]) == {
        "zero-shot",
        "local",
        "global",
        "global+finetune",
        "personalized",
        "neutral",
        "centralized",
    }
    assert {"rate", "low", "high", "errors", "reference"} <= set(summary["arms"]["personalized"]["mer"])
    assert (home / "out" / "report.html").stat().st_size > 10_000
    again = invoke("report", home / "out", "--json")
    assert json.loads(again.stdout)["arms"] == summary["arms"]


@pytest.mark.parametrize(("algorithm", "named"), [("fedavg", True), ("fedex", False)])
def test_a_run_names_the_adapter_for_a_new_person_unless_it_corrects_the_base(manifest, home, algorithm, named):
    result = invoke(
        "run", "--manifest", manifest, "--output", home / "out", "--base", NANO, "--serial", "--rounds", 1,
        "--local-steps", 1, "--rank", 2, "--arms", "global", "--algorithm", algorithm,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "adapters: " in result.stdout
    assert ("for a new person: " in result.stdout) is named


def test_info_says_how_much_of_an_adapter_is_shared_and_how_much_private(adapter):
    facts = json.loads(invoke("info", adapter, "--json").stdout)
    assert facts["gate"] == "self"
    assert facts["shared"]["parameters"] + facts["private"]["parameters"] == facts["parameters"]
    # self gates at rank r: r d_in + r for each map; A and B: r d_in + r d_out
    assert facts["private"]["parameters"] == facts["tensors"] // 4 * (2 * 64 + 2)


def test_transcribing_long_audio_covers_it_in_pieces_within_the_window(adapter, home):
    result = invoke("transcribe", noise(home / "long.wav", 40.0), "--adapter", adapter, "--json")
    assert result.exit_code == 0, result.output
    pieces = json.loads(result.stdout)["pieces"]
    assert len(pieces) >= 2
    assert pieces[0]["start"] == 0
    assert pieces[-1]["end"] == pytest.approx(40.0)
    assert all(p["end"] - p["start"] <= 29.0 for p in pieces)
    assert all(a["end"] == b["start"] for a, b in itertools.pairwise(pieces))


def test_silence_and_clicks_are_refused_by_name(adapter, home):
    save_audio(home / "silent.wav", np.zeros(SAMPLE_RATE, np.float32))
    for path, word in ((home / "silent.wav", "silent"), (noise(home / "click.wav", 0.1), "0.1")):
        result = invoke("transcribe", path, "--adapter", adapter)
        assert isinstance(result.exception, AudioError)
        assert word in str(result.exception)


def test_an_adapter_of_another_base_is_refused(adapter, home):
    result = invoke("transcribe", noise(home / "a.wav", 1.0), "--adapter", adapter, "--base", "random:whisper-tiny")
    assert isinstance(result.exception, AdapterMismatchError)
    assert NANO in str(result.exception)


def test_an_unknown_value_names_what_is_allowed(home):
    result = invoke("run", "--gate", "sideways")
    assert isinstance(result.exception, ConfigError)
    assert "hidden" in str(result.exception)


def test_a_folder_without_a_run_is_no_report(home):
    result = invoke("report", home)
    assert isinstance(result.exception, RunError)


def test_the_process_exits_with_1_and_one_line_on_a_user_error(home):
    command = [sys.executable, "-m", "sim.cli.app", "info", str(home / "nothing")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "idiolect: no adapter at" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [([], True), (["--set", "voices=neural"], False), (["--task", "digits"], False), (["--json"], False)],
)
def test_the_demo_says_what_espeaks_voices_mean(options: list[str], said: bool, monkeypatch) -> None:
    monkeypatch.setattr("sim.cli.app._run_and_report", lambda *_: None)
    shown = CliRunner().invoke(app, ["demo", *options], catch_exceptions=False)
    assert ("espeak" in shown.output) == said


@pytest.mark.parametrize(("workers", "nodes"), [(None, 2), (3, 3)])
def test_a_serial_run_has_as_many_nodes_as_workers(
    workers: int | None, nodes: int, tmp_path: Path, monkeypatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        "strategies.app.run_server", lambda grid, config, *_: seen.append(len(list(grid.get_node_ids()))) or tmp_path
    )
    run_simulation(make_config({"output": str(tmp_path), "compute": "cpu"}), serial=True, workers=workers)
    assert seen == [nodes]
