"""Another package's algorithm, found by its entry point: in ``idiolect run`` and in a Flower run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]

ALGORITHM = '''
from fl.algorithms.base import About, Algorithm, Capabilities
from fl.aggregation.mean import mean
from fl.settings.fields import setting


class Scaled(Algorithm):
    """FedAvg, less of it."""

    name = "scaled"
    about = About("nobody 2026", "2601.00001")
    can = Capabilities(sums=False)
    scale: float = setting(0.0, "share of the mean that is taken", low=0.0, high=1.0)

    def aggregate(self, found):
        return {name: self.scale * values for name, values in mean(found.updates).items()}
'''
RUN = {"base.name": "random:whisper-nano", "base.language": "ko", "adapter.rank": 2, "train.local-steps": 1,
       "data.new-people": 0, "federation.rounds": 1, "federation.arms": "global", "algorithm.name": "scaled"}  # fmt: skip


@pytest.fixture
def installed(tmp_path: Path) -> str:
    """The folder that an installer would leave, as a search path."""
    facts = tmp_path / "site" / "scaled_package-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: scaled-package\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[idiolect.algorithms]\nscaled = scaled_package:Scaled\n")
    (tmp_path / "site" / "scaled_package.py").write_text(ALGORITHM)
    return str(tmp_path / "site")


def moved(folder: Path) -> bool:
    """Whether the run's shared tensors left their start: every B is zero there."""
    (path,) = (p for p in (folder / "checkpoints").glob("global*.safetensors") if ".state" not in p.name)
    return any(values.any() for name, values in load_file(path).items() if name.endswith("_B"))


def test_idiolect_run_trains_with_an_algorithm_of_another_package(tmp_path, tiny_manifest, installed):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([installed, str(ROOT)])}

    def idiolect(*arguments: str) -> str:
        command = [sys.executable, "-m", "sim.cli.app", *arguments]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert "nobody 2026" in idiolect("algorithms")
    settings = [part for key, value in RUN.items() for part in ("--set", f"{key}={value}")]
    for scale in (0.0, 1.0):
        output = tmp_path / f"run-{scale}"
        idiolect("run", "--serial", "--manifest", str(tiny_manifest), "--output", str(output), *settings,
                 "--set", f"algorithm.scaled.scale={scale}")  # fmt: skip
        assert moved(output) == bool(scale)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="stops the SuperLink by its environment, which needs /proc")
def test_a_flower_run_trains_all_arms_with_an_algorithm_of_another_package(
    tmp_path, tiny_manifest, installed, flwr_run
):
    settings = {key: value for key, value in RUN.items() if key != "federation.arms"}
    listing = flwr_run(
        {**settings, "federation.rounds": 2, "data.manifest": str(tiny_manifest), "output": str(tmp_path / "out")},
        PYTHONPATH=installed,
    )
    assert "finished:completed" in listing, listing[-2000:]
    rows = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert {row["arm"] for row in rows} == {"global", "personalized", "neutral"}
    assert not moved(tmp_path / "out"), "its default takes no share of the mean, which no other algorithm does"
