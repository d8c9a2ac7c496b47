"""A federation of real processes ends with the model that its devices give in one process, bit for bit."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from clients.app import app as client_app
from fl.settings.config import make_config
from sim.backends.serial import SerialGrid
from strategies.app import run_server

PEOPLE = ("ann", "bob", "cem", "dee")
RUN = {
    "base.name": "random:whisper-nano",
    "base.language": "ko",
    "adapter.rank": 2,
    "train.local-steps": 2,
    "data.manifest": "own",
    "data.new-people": 0,
    "federation.rounds": 3,
    "federation.arms": "global,personalized",
    "federation.evaluate-every": 0,
    "federation.round-timeout": 120,
}


def final_tensors(folder: Path, arm: str) -> dict[str, bytes]:
    """The shared tensors of an arm's last checkpoint."""
    paths = [p for p in (folder / "checkpoints").glob(f"{arm}*.safetensors") if ".state" not in p.name]
    return {name: values.tobytes() for name, values in load_file(max(paths)).items()}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_real_processes_and_one_process_give_the_same_model(
    make_federation: Callable[..., object], noise_manifest: Callable[..., Path], tmp_path: Path
) -> None:
    manifests: Mapping[str, Path] = {name: noise_manifest([name], 6) for name in PEOPLE}
    with make_federation(manifests) as federation:  # type: ignore[attr-defined]
        for name in PEOPLE:
            federation.start(name)
        federation.wait_for(lambda: federation.online() == len(PEOPLE))
        assert federation.submit({**RUN, "output": str(tmp_path / "deployed")}).wait(1500) == 0
        assert "run finished" in (federation.folder / "run.log").read_text()
    grid = SerialGrid(client_app, nodes=len(PEOPLE))
    for name, context in zip(PEOPLE, grid._contexts.values(), strict=True):
        context.node_config = {"device-id": name, "store": str(tmp_path / name), "manifest": str(manifests[name])}
    run_server(grid, make_config({**RUN, "output": str(tmp_path / "serial")}), 1)
    for arm in ("global", "personalized"):
        assert final_tensors(tmp_path / "deployed", arm) == final_tensors(tmp_path / "serial", arm)
