"""Deployed devices: each brings its own speech and keeps its own state, and the aggregator has nobody's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes

from clients.app import app as client_app
from fl.core.errors import ConfigError, RunError
from fl.runs.files import read_run
from fl.runs.results import ResultsFile
from fl.settings.config import RunConfig
from sim.backends.serial import SerialGrid
from strategies.app import run_server

PEOPLE = ("ann", "bob")


@pytest.fixture(scope="module")
def speech(noise_manifest: Callable[..., Path]) -> dict[str, Path]:
    """What each person has on a disk of their own."""
    return {name: noise_manifest([name], 6) for name in PEOPLE}


@pytest.fixture
def grid(speech: dict[str, Path], tmp_path: Path) -> SerialGrid:
    """A node for each person."""
    grid = SerialGrid(client_app, nodes=len(PEOPLE))
    for name, context in zip(PEOPLE, grid._contexts.values(), strict=True):
        context.node_config = {"device-id": name, "store": str(tmp_path / name), "manifest": str(speech[name])}
    return grid


@pytest.fixture
def make_own(make_run: Callable[..., RunConfig], tmp_path: Path) -> Callable[..., RunConfig]:
    def make(**changes: Any) -> RunConfig:
        values = {"manifest": "own", "arms": "global,personalized", "evaluate_every": 0, **changes}
        return make_run(tmp_path / "run", **values)

    return make


def test_each_device_learns_from_its_own_speech_and_the_aggregator_has_none(
    grid: SerialGrid, make_own: Callable[..., RunConfig], tmp_path: Path
) -> None:
    folder = run_server(grid, make_own(), 1)
    rows = ResultsFile(folder).rows()
    assert {row["device"] for row in rows if row["steps"]} == set(PEOPLE)
    tested = {(row["arm"], row["device"]) for row in rows if row["split"] == "test" and row["metrics"]}
    assert tested == {(arm, name) for arm in ("global", "personalized") for name in PEOPLE}
    # Gates, adapters and transcripts lie where their owner said, and nowhere else.
    assert not (folder / "devices").exists()
    assert (folder / "transcripts.jsonl").read_bytes() == b""
    for name in PEOPLE:
        kept = {path.parent.name for path in (tmp_path / name).rglob("state-*")}
        assert kept == {name}
        token = (folder / "run-token").read_text()
        assert {path.name for path in (tmp_path / name).iterdir()} == {token, "answers"}
        assert len(list((tmp_path / name).rglob("transcripts.jsonl"))) == 2
    with pytest.raises(RunError, match="what deployed devices transcribe stays with them"):
        read_run(folder)


def test_an_owner_decides_which_speech_even_if_the_run_names_a_manifest(
    grid: SerialGrid, make_own: Callable[..., RunConfig], manifest: Path
) -> None:
    folder = run_server(grid, make_own(manifest=str(manifest), arms="global", rounds=1, private_share=0.0), 1)
    assert {row["device"] for row in ResultsFile(folder).rows()} == set(PEOPLE)


def test_all_data_in_one_place_is_refused_before_the_first_round(
    grid: SerialGrid, make_own: Callable[..., RunConfig]
) -> None:
    config = make_own(arms="global,centralized")
    with pytest.raises(ConfigError, match="'centralized' needs everybody's data in one place"):
        run_server(grid, config, 1)
    assert ResultsFile(Path(config.output)).rows() == []


def test_own_speech_is_asked_of_deployed_devices_alone(make_own: Callable[..., RunConfig]) -> None:
    with pytest.raises(RunError, match="manifest = 'own' is for deployed devices"):
        run_server(SerialGrid(client_app), make_own(), 1)


def test_an_aggregator_without_a_sentence_needs_the_language(
    grid: SerialGrid, make_own: Callable[..., RunConfig]
) -> None:
    with pytest.raises(ConfigError, match="set language"):
        run_server(grid, make_own(language=""), 1)


def test_a_node_that_claims_anothers_id_changes_nothing_and_the_run_remembers_the_keys(
    grid: SerialGrid,
    make_own: Callable[..., RunConfig],
    speech: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    liar = {"device-id": "ann", "store": str(tmp_path / "liar"), "manifest": str(speech["ann"])}
    grid._contexts[3] = Context(1, 3, liar, RecordDict(), {})
    keys = {node: public_key_to_bytes(generate_key_pairs()[1]) for node in grid._contexts}
    nodes = [NodeInfo(node_id=node, public_key=key) for node, key in keys.items()]
    monkeypatch.setattr(SerialGrid, "get_nodes", lambda self: nodes)
    folder = run_server(grid, make_own(arms="global", rounds=1, private_share=0.0), 1)
    assert "device ann of node 3 left out: node 1 hosts it already" in caplog.text
    assert {row["device"] for row in ResultsFile(folder).rows()} == set(PEOPLE)
    assert not (tmp_path / "liar").exists() or not list((tmp_path / "liar").rglob("state-*"))
    lines = (folder / "device-keys.txt").read_text(encoding="utf-8").splitlines()
    assert [line.partition(" ecdsa-sha2-nistp384 AAAA")[0] for line in lines] == list(PEOPLE)


def test_what_a_device_trains_on_in_which_order_is_the_seeds_whoever_it_is(
    grid: SerialGrid, make_own: Callable[..., RunConfig], tmp_path: Path, tensors_of: Callable[[Path], dict[str, bytes]]
) -> None:
    config = make_own(arms="global", rounds=1, private_share=0.0)
    found = []
    for number, name in enumerate(("one", "two"), 1):
        for context in grid._contexts.values():
            context.run_id = number  # a device answers a round of a run once
        found.append(tensors_of(run_server(grid, config.changed({"output": str(tmp_path / name)}), number)))
    assert found[0] == found[1]


def test_a_device_that_says_nothing_of_its_errors_has_rows_without_counts_and_is_counted_in_the_log(
    grid: SerialGrid, make_own: Callable[..., RunConfig], caplog: pytest.LogCaptureFixture
) -> None:
    grid._contexts[1].node_config["evaluation"] = "off"
    caplog.set_level("INFO", "idiolect.server")
    rows = ResultsFile(run_server(grid, make_own(), 1)).rows()
    tested = {row["device"]: (bool(row["metrics"]), row["examples"] > 0) for row in rows if row["split"] == "test"}
    assert tested == {"ann": (False, True), "bob": (True, True)}
    assert {row["train_loss"] is None for row in rows if row["steps"] and row["device"] == "ann"} == {True}
    assert "1 of 2 devices sent no error counts" in caplog.text
