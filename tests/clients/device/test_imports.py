"""What a low-spec device has to load: facts about modules, in a process of its own where the heavy ones are blocked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = [
    "torch",
    "transformers",
    "flwr",
    "peft",
    "ray",
    "pandas",
    "scipy",
    "typer",
    "rich",
    "huggingface_hub",
    "tokenizers",
]
LAZY = ["soxr", "cryptography", "sounddevice", "safetensors", "getpass"]
ROOT = Path(__file__).parents[3]

PROGRAM = """
import json, sys
for name in {blocked!r}:
    sys.modules[name] = None  # an import of it raises ImportError
sys.argv = {argv!r}
try:
    {run}
except SystemExit as end:
    code = end.code
else:
    code = None
print(json.dumps({{"code": code, "modules": sorted(name for name, m in sys.modules.items() if m is not None)}}))
"""


def run_blocked(argv, run="from sim.cli.entry import main; main()", blocked=HEAVY):
    program = PROGRAM.format(blocked=blocked, argv=["idiolect", *map(str, argv)], run=run)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path, make_client, make_adapter):
    client = make_client()
    client.store.set(make_adapter())
    return client.store.folder


def test_importing_the_client_loads_nothing_heavy_and_nothing_that_may_not_be_needed():
    found, _, _ = run_blocked([], run="import clients.device.client, clients.device.cli")
    loaded = {name.partition(".")[0] for name in found["modules"]}
    assert loaded.isdisjoint(HEAVY)
    assert loaded.isdisjoint(LAZY)
    assert {"numpy", "soundfile", "ssl", "http"} <= loaded


def test_a_transcription_needs_only_numpy_soundfile_and_the_standard_library(folder, server, wav):
    blocked = [*HEAVY, *LAZY]
    found, out, err = run_blocked(["device", "transcribe", wav, "--stream", "--folder", folder], blocked=blocked)
    assert (found["code"], "meeting" in out) == (0, True), err
    installed = {name.partition(".")[0] for name in found["modules"]} - set(sys.stdlib_module_names)
    known = {"clients", "fl", "sim", "numpy", "soundfile", "_soundfile", "_soundfile_data", "cffi", "_cffi_backend"}
    outside = {name for name in installed if not name.startswith("_")} - known
    assert outside <= {"sitecustomize", "typing_extensions", "google", "mpl_toolkits"}  # what a site loads by itself


def test_training_at_the_server_needs_no_more(folder, server, wav, tmp_path):
    labelled = tmp_path / "labelled"
    labelled.mkdir()
    (labelled / "a.wav").write_bytes(wav.read_bytes())
    (labelled / "a.txt").write_text("오늘 meeting")
    found, _, err = run_blocked(["device", "enrol", labelled, "--folder", folder], blocked=[*HEAVY, *LAZY])
    assert found["code"] == 0, err
    assert server.paths() == ["POST /v1/adapt"]


@pytest.mark.parametrize("module", ["fl.packed.blob", "fl.packed.folder", "fl.core.errors", "fl.core.files"])
def test_what_the_client_takes_of_fl_is_light(module):
    found, _, _ = run_blocked([], run=f"import {module}")
    assert {name.partition(".")[0] for name in found["modules"]}.isdisjoint(HEAVY)
