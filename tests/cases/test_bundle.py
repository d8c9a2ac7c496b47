"""What ``flwr run`` sends to SuperLink and devices, in a clone that is full of somebody's data: the code of a run alone."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build

ROOT = Path(__file__).parents[2]
PACKAGES = ("clients", "fl", "strategies")
READ_IN_A_RUN = [f"fl/data/synthetic/pairs/{pair}.toml" for pair in ("es-en", "ja-en", "ko-en")]
MAX_BYTES = 3_000_000  # of the 10 MB that Flower takes; it compresses nothing
SECRET = "minji says what nobody else should read"
LITTER = (
    *("data/mine/manifest.jsonl", "data/mine/import.json", "data/mine/audio/001.wav", "data/hike/README.md"),
    *("data/a/b/c/d/e/f/g/h/i/j/k/deep.json", "speech.jsonl", "notes.md", ".env", "device-key", "device-key.pem"),
    *(
        "runs/first/predictions.jsonl",
        "runs/first/config.toml",
        "models/whisper/config.json",
        "own.ipynb",
        "secret.toml",
    ),
    *("fl/manifest.jsonl", "fl/data/mine/manifest.jsonl", "fl/data/synthetic/keys.json", "strategies/keys.toml"),
    *(
        "clients/notes.md",
        "clients/.env.yaml",
        "sim/texts.json",
        "lib/manifest.jsonl",
        "docs/results.yml",
        "tests/a.json",
    ),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """What ``flwr build`` makes of a clone with manifests, recordings, predictions and keys everywhere."""
    clone, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("out")
    for name in (*PACKAGES, "sim"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("idiolect.py", "pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, clone)
    for name in LITTER:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text(SECRET)
    with (clone / "data/mine/manifest.jsonl").open("a") as manifest:  # a corpus, more than a bundle may hold
        manifest.writelines(json.dumps({"text": f"{SECRET} {n:x}"}) + "\n" for n in range(300_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out)
        build(clone)
    return zipfile.ZipFile(io.BytesIO(next(out.glob("*.fab")).read_bytes()))


def test_code_alone_leaves_the_machine(bundle: zipfile.ZipFile) -> None:
    code = [path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    assert sorted(bundle.namelist()) == sorted(
        [*code, *READ_IN_A_RUN, "idiolect.py", "pyproject.toml", "LICENSE", ".info/CONTENT"]
    )
    assert not [name for name in bundle.namelist() if SECRET.encode() in bundle.read(name)]
    assert bundle.fp is not None
    assert bundle.fp.seek(0, io.SEEK_END) < MAX_BYTES


def test_a_run_finds_all_that_it_reads_in_the_bundle(bundle: zipfile.ZipFile, tmp_path: Path) -> None:
    readers = [
        name
        for name in bundle.namelist()
        if name.endswith(".py") and re.search(rb"Path\(__file__\)|importlib.resources", bundle.read(name))
    ]
    assert readers == [  # a server is no part of a run
        "fl/data/synthetic/pairs.py",
        "fl/serving/page/__init__.py",
        "idiolect.py",
    ]
    bundle.extractall(tmp_path)
    script = """
import sys
from clients.app import app as client
from strategies.app import app as server
from fl.data.synthetic.pairs import known_pairs, load_pair
print(*(load_pair(name).id for name in known_pairs()), type(server).__name__, type(client).__name__, "sim" in sys.modules)
print(*(sys.modules[name].__file__ for name in ("clients.app", "strategies.app", "fl.data.synthetic.pairs")))
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    found, files = run.stdout.splitlines()
    assert found == "es-en ja-en ko-en ServerApp ClientApp False"
    assert all(Path(file).is_relative_to(tmp_path) for file in files.split())
