"""A federation of real processes ends with the model that its devices give in one process, bit for bit, whatever happens to it."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, MessageType
from safetensors.numpy import load_file

from benchmarks.reliability import InjectionRow, store
from clients.app import app as client_app
from fl.core.errors import RunError
from fl.protocol.wire import COUNTS, JOB
from fl.runs.results import ResultsFile
from fl.settings.config import make_config
from sim.backends.serial import SerialGrid
from strategies.app import run_server

PEOPLE = ("ann", "bob", "cem", "eve")
RUN = {
    "base.name": "random:whisper-nano",
    "base.language": "ko",
    "adapter.rank": 2,
    "adapter.gate": "self",
    "train.local-steps": 2,
    "data.manifest": "own",
    "data.new-people": 0,
    "federation.rounds": 3,
    "federation.arms": "global,personalized",
    "federation.evaluate-every": 0,
    "federation.round-timeout": 600,
}
# Gates learn in every round, so that a state that is lost or an older one shows.
TROUBLED = {
    **RUN,
    "federation.rounds": 5,
    "federation.arms": "personalized",
    "algorithm.gates.private-share": 0.0,
}
LIES = "foreign count tensor trailer sentence"  # of eve, one for each round
BELIEVED = 1000  # federation.max-examples: what becomes of a million of millions

Moments = set[tuple[int, str]]  # round, device


def final_tensors(folder: Path, arm: str) -> dict[str, bytes]:
    """The shared tensors of an arm's last checkpoint."""
    paths = [p for p in (folder / "checkpoints").glob(f"{arm}*.safetensors") if ".state" not in p.name]
    return {name: values.tobytes() for name, values in load_file(max(paths)).items()}


def private_tensors(folder: Path, arm: str) -> dict[tuple[str, str], bytes]:
    """The gates that a device keeps, of the last two rounds."""
    found = {path.name: load_file(path) for path in folder.rglob("state-*.safetensors") if arm in path.parts}
    return {(name, key): values.tobytes() for name, state in found.items() for key, values in state.items()}


def kept_rounds(folder: Path) -> set[int]:
    """The rounds whose gates a device still has: the last two in which it trained."""
    return {int(path.stem.removeprefix("state-")) for path in folder.rglob("state-*.safetensors")}


def rows(folder: Path, people: Collection[str]) -> list[dict[str, Any]]:
    """What a run wrote of some devices, without its clock."""
    timed = ("seconds_train", "seconds_evaluate")
    found = [row for row in ResultsFile(folder).rows() if row["device"] in people]
    return [{key: value for key, value in row.items() if key not in timed} for row in found]


def trained(folder: Path) -> Moments:
    """Who counted in which round."""
    return {(row["round"], row["device"]) for row in ResultsFile(folder).rows() if row["steps"]}


def in_one_process(
    manifests: Mapping[str, Path], folder: Path, settings: Mapping[str, object], app: Callable[..., Message]
) -> Path:
    """The run of the same devices over a ``SerialGrid``, stored below ``folder`` as a federation's is."""
    grid = SerialGrid(app, nodes=len(PEOPLE))  # type: ignore[arg-type]
    for name, context in zip(PEOPLE, grid._contexts.values(), strict=True):
        own = {"device-id": name, "store": str(folder / "store" / name), "manifest": str(manifests[name])}
        context.node_config = dict(own)
    run_server(grid, make_config({**settings, "output": str(folder / "run")}), 1)
    return folder / "run"


def replay(heard: Moments, unheard: Moments) -> Callable[[Message, Context], Message]:
    """The honest app, which trains where its device did and answers where its device was heard. Eve's false count is cut."""

    def answer(message: Message, context: Context) -> Message:
        if message.metadata.message_type != MessageType.TRAIN:
            return client_app(message, context)
        device = str(context.node_config["device-id"])
        moment = (int(message.content.config_records[JOB]["round"]), device)  # type: ignore[arg-type]
        reply = client_app(message, context) if moment in heard | unheard else None
        if reply is None or moment not in heard:
            raise RunError("not heard")
        if device == "eve" and LIES.split()[moment[0] - 1] == "count":
            reply.content.metric_records[COUNTS]["examples"] = [BELIEVED]
        return reply

    return answer


@pytest.fixture
def manifests(noise_manifest: Callable[..., Path]) -> dict[str, Path]:
    """What each person has on a disk of their own."""
    return {name: noise_manifest([name], 6) for name in PEOPLE}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_real_processes_and_one_process_give_the_same_model(
    make_federation: Callable[..., Any], manifests: dict[str, Path], tmp_path: Path
) -> None:
    with make_federation(manifests) as federation:
        for name in PEOPLE:
            federation.start(name)
        federation.wait_for(lambda: federation.activated() == len(PEOPLE))
        assert federation.submit({**RUN, "output": str(tmp_path / "deployed")}).wait(1500) == 0
        assert federation.says("run", "run finished")
    serial = in_one_process(manifests, tmp_path / "serial", RUN, client_app)
    for arm in ("global", "personalized"):
        assert final_tensors(tmp_path / "deployed", arm) == final_tensors(serial, arm)


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_one_killed_one_cut_off_and_one_that_lies_leave_the_model_of_the_honest(
    make_federation: Callable[..., Any], manifests: dict[str, Path], tmp_path: Path
) -> None:
    deployed = tmp_path / "deployed"
    with make_federation(manifests) as federation:
        federation.start("ann")
        federation.start_faulty("bob", "before-3")
        federation.start_faulty("cem", "after-3")
        federation.start_faulty("eve", "after-4", lies=LIES, others="ann bob cem")
        federation.wait_for(lambda: federation.activated() == len(PEOPLE))
        run = federation.submit({**TROUBLED, "output": str(deployed)})
        federation.wait_at("bob", "before-3")
        federation.kill("bob")  # before it trained
        federation.wait_at("cem", "after-3")
        federation.cable("cem", "down")  # it has trained and stored, and nobody hears of it
        (federation.faults("cem") / "after-3").unlink()
        federation.wait_for(lambda: federation.says("run", "round 3/5"))  # Flower gave both up
        federation.start("bob")  # whose gate is gone with it
        federation.cable("cem", "up")
        federation.wait_at("eve", "after-4")
        federation.wait_for(lambda: federation.activated() == len(PEOPLE) + 1)
        federation.wait_for(lambda: federation.online() == len(PEOPLE))
        (federation.faults("eve") / "after-4").unlink()
        assert run.wait(1500) == 0
        assert federation.says("run", "run finished")
    heard = trained(deployed)
    present = {(1, "ann"), (1, "bob"), (1, "cem"), (2, "ann"), (2, "bob"), (2, "cem"), (3, "ann"), (4, "ann")}
    assert heard >= present | {(5, "ann"), (5, "bob"), (5, "cem")}
    assert not heard & {(3, "bob"), (3, "cem"), (3, "eve"), (5, "eve")}
    # What a device stored although nobody heard of it: cem gets the message of round 4 when its cable is back, too late.
    stores = federation.folder / "store"
    unheard = {(3, "cem")} | {(number, "eve") for number in range(1, 6)}
    unheard |= {(number, name) for name in PEOPLE for number in kept_rounds(stores / name)}
    serial = in_one_process(manifests, tmp_path / "serial", TROUBLED, replay(heard, unheard))
    assert final_tensors(deployed, "personalized") == final_tensors(serial, "personalized")
    for name in PEOPLE:
        kept = private_tensors(stores / name, "personalized")
        assert kept, name
        assert kept == private_tensors(tmp_path / "serial" / "store" / name, "personalized"), name
    assert rows(deployed, PEOPLE[:3]) == rows(serial, PEOPLE[:3])
    store(
        InjectionRow(
            "deployment",
            "a real federation over TLS: a node killed and restarted, one cut off, one that lies",
            times=2 + len(LIES.split()) + 1,
            survived=2 + len(LIES.split()) + 1,
            lost=0,
            seeds=(1,),
            command="make deploy-test",
            detail="final tensors, every device's stored gates and the rows of the honest are equal, to the bit, to one process "
            "without network in which the same devices were heard in the same rounds and nobody lied; 10^12 examples count as 1,000",
        )
    )
