"""Runs without training: any number of devices, the same numbers on every backend, and nodes that die on the way."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, MessageType
from typer.testing import CliRunner

from clients import app as client
from clients.app import app as client_app
from clients.store import KEPT_ROUNDS
from clients.worker import Worker
from fl.algorithms.arms import trained_arm
from fl.protocol.wire import Job, from_arrays
from fl.settings.config import RunConfig, make_config
from fl.settings.names import EDGE, NO_OP
from fl.tasks.noop import NoOpTask
from fl.tasks.task import DeviceExamples
from sim.backends.noop import no_op_config, peak_memory, run_no_op
from sim.backends.run import run_simulation
from sim.backends.serial import SerialGrid
from sim.cli.app import app
from strategies.app import run_server
from strategies.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]


def config(output: Path, **changes: Any) -> RunConfig:
    values = {"task": NO_OP, "devices": 40, "sample": 12, "rounds": 3, "gate": "self", "output": str(output), **changes}
    return no_op_config(make_config({"cohort": 1, **values}))


def rows(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("seconds_", "crc32"))} for row in found]


def test_every_round_of_a_run_without_training_moves_updates() -> None:
    own = no_op_config(make_config({"rounds": 5, "gate": "self"}))
    assert trained_arm("personalized", own).schedule.private_rounds == 0
    assert own.arms == ("personalized",)
    assert no_op_config(make_config({"arms": "global"})).arms == ("global",)


def test_as_many_devices_as_asked_take_part_in_each_round_and_all_report_nothing_learnt(tmp_path: Path) -> None:
    folder = run_simulation(config(tmp_path / "run"), serial=True)
    assert Counter(row["round"] for row in rows(folder)) == {1: 12, 2: 12, 3: 12}
    assert {(row["train_loss"], row["steps"], row["examples"]) for row in rows(folder)} == {(0.0, 0, 1)}
    assert len({row["device"] for row in rows(folder)}) > 12
    states = Counter(path.parent.name for path in (folder / "devices").rglob("state-*"))
    taken = Counter(row["device"] for row in rows(folder))
    assert states == Counter({device: min(KEPT_ROUNDS, times) for device, times in taken.items()})


@pytest.mark.parametrize("nodes", [1, 3])
def test_edge_aggregation_gives_the_same_rows_and_the_same_tensors(tmp_path: Path, nodes: int) -> None:
    folders = [
        run_server(SerialGrid(client_app, nodes), config(tmp_path / name, aggregation=name), 1)
        for name in ("device", EDGE)
    ]
    assert rows(folders[0]) == rows(folders[1])
    one, other = (from_arrays(load_checkpoint(f / "checkpoints", "personalized", "no-op:8").arrays) for f in folders)  # type: ignore[union-attr]
    assert one.keys() == other.keys()
    assert all(np.allclose(one[name], other[name], rtol=1e-6, atol=0) and one[name].shape for name in one)


def test_a_run_without_training_prints_what_it_cost(tmp_path: Path) -> None:
    arguments = ["run", "--no-op", "--devices", "200", "--sample", "20", "--rounds", "2", "--serial", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["devices"], summary["rounds"], summary["trained"]) == (200, 2, 40)
    assert 0 < summary["seconds_rounds"] <= summary["seconds"]
    assert summary["framework_ms"] == pytest.approx(1e3 * summary["seconds_rounds"] / 40, rel=0.2)
    assert not sys.platform.startswith("linux") or summary["peak_bytes"] > 2**27


def test_the_population_costs_an_entry_in_two_tables_and_no_file(tmp_path: Path) -> None:
    summary = run_no_op(
        config(tmp_path / "run", devices=20_000, sample=10, rounds=1), partial(run_simulation, serial=True)
    )
    assert summary.devices == 20_000
    assert len(list((tmp_path / "run" / "devices").glob("*/*"))) == 10


def test_memory_of_a_child_process_counts(tmp_path: Path) -> None:
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("this system does not tell")
    program = "import sys; block = b'x' * 2**27; print('there', flush=True); sys.stdin.read()"
    with peak_memory(every=60.0) as before:
        pass
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with peak_memory(every=60.0) as during:
            pass
        child.communicate(b"")
    assert during.bytes - before.bytes > 2**26


# Nodes and devices that fail in the middle


class DyingNode:
    """The shipped ClientApp on nodes of which one dies when it is asked to train in round 2."""

    def __call__(self, message: Message, context: Context) -> Message:
        training = message.metadata.message_type == MessageType.TRAIN
        if training and context.node_id == 2 and message.content.config_records["job"]["round"] == 2:
            raise MemoryError("killed")
        return client_app(message, context)


@pytest.mark.parametrize("aggregation", ["device", EDGE])
def test_a_node_that_dies_in_a_round_costs_its_devices_and_the_round_goes_on(
    tmp_path: Path, aggregation: str, caplog: pytest.LogCaptureFixture
) -> None:
    quiet, whole = (
        run_server(grid, config(tmp_path / name, aggregation=aggregation), 1)
        for name, grid in (("dying", SerialGrid(DyingNode())), ("whole", SerialGrid(client_app)))  # type: ignore[arg-type]
    )
    asked = [{row["device"] for row in rows(whole) if row["round"] == n} for n in (1, 2, 3)]
    answered = [{row["device"] for row in rows(quiet) if row["round"] == n} for n in (1, 2, 3)]
    assert answered[0] == asked[0]
    assert answered[2] == asked[2]
    assert answered[1] == {d for d in asked[1] if int(d[-6:]) % 2 == 0}  # node 1 hosts every second device
    lost = asked[1] - answered[1]
    assert all(f"{device} left out: did not answer" in caplog.text for device in lost)
    assert "node 2 left out" in caplog.text


@pytest.mark.parametrize("aggregation", ["device", EDGE])
def test_a_device_without_data_is_a_counted_failure_of_that_device_alone(
    tmp_path: Path, aggregation: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = config(tmp_path / "run", aggregation=aggregation, devices=12, rounds=2)
    whole, train = NoOpTask.device, client.train_device
    empty, gone = "device-000003", []

    def device(task: NoOpTask, device_id: str) -> DeviceExamples:
        found = whole(task, device_id)
        return replace(found, train=()) if device_id == empty and gone else found

    def after_the_roster(*arguments: Any) -> Any:
        gone.append("its data")
        return train(*arguments)

    monkeypatch.setattr(NoOpTask, "device", device)
    monkeypatch.setattr(client, "train_device", after_the_roster)
    folder = run_server(SerialGrid(client_app), own, 1)
    trained = Counter(row["device"] for row in rows(folder))
    assert trained == Counter({f"device-{i:06d}": 2 for i in range(12) if i != 3})
    assert f"{empty} left out: failed: " in caplog.text


@pytest.mark.parametrize("aggregation", ["device", EDGE])
def test_an_update_that_is_not_finite_is_a_counted_failure_of_its_device_alone(
    tmp_path: Path, aggregation: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train = client.train_device

    def diverging(worker: Worker, job: Job, device_id: str, incoming: Any) -> Any:
        result = train(worker, job, device_id, incoming)
        for tensor in result.shared.values() if device_id == "device-000005" else ():
            tensor.fill_(float("nan"))
        return result

    monkeypatch.setattr(client, "train_device", diverging)
    folder = run_server(SerialGrid(client_app), config(tmp_path / "run", aggregation=aggregation, sample=1.0), 1)
    assert Counter(row["round"] for row in rows(folder)) == {1: 39, 2: 39, 3: 39}
    assert "device-000005 left out: failed: " in caplog.text


# Ray

PROGRAM = """
import os, sys
from pathlib import Path
from fl.settings.config import load_config
from sim.backends.run import run_simulation
from tests_ray import during

if __name__ == "__main__":
    with during() as address:
        print("finished", run_simulation(load_config(Path(sys.argv[1])), workers=2, processes=True, ray_address=address))
"""

CLUSTER = """
from contextlib import contextmanager
from pathlib import Path
from flwr.clientapp import ClientApp

class Noting(ClientApp):
    def __call__(self, message, context):
        import ray
        from clients.app import app
        (Path(__file__).parent / f"{ray.get_runtime_context().get_node_id()}.{message.metadata.message_type}").touch()
        return app(message, context)

@contextmanager
def during():
    import clients.app
    from ray.cluster_utils import Cluster
    clients.app.app = Noting()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    try:
        yield cluster.address
    finally:
        cluster.shutdown()
"""

DEATH = """
import os
from contextlib import contextmanager
from flwr.clientapp import ClientApp

class Dying(ClientApp):
    def __call__(self, message, context):
        from clients.app import app
        training = message.metadata.message_type == "train"
        second = training and message.content.config_records["job"]["round"] == 2
        if second and context.node_config["partition-id"] == 1:
            os._exit(1)
        return app(message, context)

@contextmanager
def during():
    import clients.app
    clients.app.app = Dying()
    yield ""
"""


DIE = """
def die(flag):
    open(flag, "w").close()
    os._exit(1)
"""


def simulate(own: RunConfig, folder: Path, helper: str) -> str:
    """Run on Ray in a process of its own, with ``helper`` as a module beside it; returns what it printed."""
    from fl.settings.config import dump_config

    (folder / "settings.toml").write_text(dump_config(own), encoding="utf-8")
    (folder / "tests_ray.py").write_text(helper, encoding="utf-8")
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    path = os.pathsep.join((str(ROOT), str(folder)))
    done = subprocess.run(
        [sys.executable, str(folder / "program.py"), str(folder / "settings.toml")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout


@pytest.mark.slow
def test_a_worker_process_that_is_killed_once_does_its_message_again_and_nothing_is_lost(tmp_path: Path) -> None:
    serial = run_simulation(config(tmp_path / "serial"), serial=True)
    once = DEATH.replace(
        "os._exit(1)", f"os.path.exists({str(tmp_path / 'died')!r}) or die({str(tmp_path / 'died')!r})"
    )
    simulate(config(tmp_path / "ray"), tmp_path, once + DIE)
    assert (tmp_path / "died").exists()
    assert rows(tmp_path / "ray") == rows(serial)


@pytest.mark.slow
def test_a_cluster_of_two_nodes_gives_the_same_numbers_as_one_process(tmp_path: Path) -> None:
    serial = run_simulation(config(tmp_path / "serial"), serial=True)
    simulate(config(tmp_path / "ray"), tmp_path, CLUSTER)
    assert len(list(tmp_path.glob("*.train"))) == 2  # both nodes of the cluster trained devices
    assert rows(tmp_path / "ray") == rows(serial)


@pytest.mark.slow
def test_a_worker_process_that_dies_of_a_message_costs_its_devices_that_round_and_is_back_in_the_next(
    tmp_path: Path,
) -> None:
    serial = run_simulation(config(tmp_path / "serial"), serial=True)
    simulate(config(tmp_path / "ray"), tmp_path, DEATH)
    whole, found = rows(serial), rows(tmp_path / "ray")
    lost = [row for row in whole if row not in found]
    assert {row["round"] for row in lost} == {2}
    assert {int(row["device"][-6:]) % 2 for row in lost} == {1}
    assert [row for row in whole if row not in lost] == found
