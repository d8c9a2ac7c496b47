"""Whole runs of each personalization: what is shared, kept, decoded and resumed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from safetensors.torch import load_file

from clients.app import app as client_app
from clients.mods import guard_mod
from clients.store import DeviceStore, folder_name
from clients.training.enrol import enrol
from clients.training.enrol_method import EnrolMethod
from clients.training.private_part import Adapter, Start, kept
from clients.worker import Worker
from fl.adapters.directions import load_directions
from fl.adapters.files import load_adapter
from fl.adapters.ranks import device_rank
from fl.adapters.split import OWN
from fl.adapters.stacked import Slot
from fl.algorithms.arms import trained_arm
from fl.algorithms.base import Role
from fl.algorithms.personal.own_adapter import OwnAdapter
from fl.algorithms.table import ALGORITHMS, make_algorithm, names_of
from fl.core.errors import ConfigError, GuardError
from fl.core.rng import derive_seed
from fl.packed.blob import restored
from fl.packed.header import SCALES
from fl.protocol.wire import (
    COUNTS,
    DEVICES,
    DIRECTIONS,
    IDS,
    JOB,
    SETTINGS_RECORD,
    SHARED,
    UPDATES,
    Job,
    settings_record,
)
from fl.settings.config import RunConfig, make_config
from sim.backends.serial import SerialGrid
from strategies.app import run_server

NAMES = [name for name in names_of(Role.PERSONALIZATION) if ALGORITHMS[name].decides_split]


def second_of(name: str) -> OwnAdapter | None:
    return make_algorithm(RunConfig(), name).second


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"algorithm": "fedper", "algorithm.fedper.layers": 4}, "from 1 to 3"),
        ({"algorithm": "mixture", "rank": 33}, "at most 32"),
    ],
)
def test_what_only_the_base_shows_is_refused_before_the_first_round(
    make_run: Callable[..., RunConfig], tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    grid = Watching()
    with pytest.raises(ConfigError, match=named):
        run_server(grid, make_run(tmp_path / "run", **changes), 1)
    assert not grid.replies


# Whole runs of a small Whisper


class Watching(SerialGrid):
    """A grid that keeps the names of the tensors in each message of training and in its reply."""

    def __init__(self) -> None:
        super().__init__(client_app)
        self.replies: list[tuple[set[str], set[str]]] = []
        self.updates: dict[int, list[RecordDict]] = {}
        self.directions: set[tuple[str, int]] = set()  # which phase was told how many

    def _handle(self, message: Message) -> Message:
        reply = super()._handle(message)
        if message.metadata.message_type == MessageType.TRAIN:
            assert reply.has_content(), reply.error
            back = {name for arrays in reply.content.array_records.values() for name in arrays}
            self.replies.append((set(message.content.array_records[SHARED]), back))
            job = Job.from_record(message.content.config_records[JOB])
            self.updates.setdefault(job.round, []).append(reply.content)
            told = message.content.array_records.get(DIRECTIONS, {})
            self.directions |= {(job.phase.value, len(told[name].numpy())) for name in told if name != SCALES}
        return reply


RUN = {"rounds": 2, "arms": "global,personalized,neutral", "evaluate_every": 0, "final_split": "validation"}


@pytest.fixture(scope="module", params=NAMES)
def finished(
    request: pytest.FixtureRequest, make_run: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Watching]:
    """A run of each method."""
    grid = Watching()
    folder = tmp_path_factory.mktemp("runs") / request.param
    cohort = 2 if request.param in ("fedrep", "ditto", "enrolment") else 1
    clusters = {"algorithm.clusters.agreement": 1.0, "algorithm.clusters.count": 2}  # divided at once, and once
    fast = {"algorithm.enrolment.enrolment-rate": 1e-2}
    changes = {**RUN, "algorithm": request.param, "cohort": cohort, **clusters, **fast}
    return request.param, run_server(grid, make_run(folder, **changes), 1), grid


def checkpoint(folder: Path, arm: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"{arm}.safetensors")


def adapters(folder: Path, arm: str) -> dict[str, Any]:
    return {
        p.name: load_adapter(p / "adapter")
        for p in sorted((folder / "devices" / arm).iterdir())
        if (p / "adapter").exists()
    }


def test_messages_hold_what_was_agreed_and_nothing_of_a_persons_own(finished: tuple[str, Path, Watching]) -> None:
    method, folder, grid = finished
    assert grid.replies
    for sent, back in grid.replies:
        assert back in (sent, set())
        assert not any(name.startswith(OWN) for name in back)
    if second_of(method) is not None:
        last = 2 + second_of(method).afterwards
        kept = list((folder / "devices" / "personalized-own").glob(f"*/state-00000{last}.safetensors"))
        assert len(kept) == 3
        assert all(name.startswith(OWN) or name == SCALES for path in kept for name in load_file(path))


def test_the_shared_part_is_that_of_global_to_the_bit_where_the_method_leaves_it_alone(
    finished: tuple[str, Path, Watching],
) -> None:
    method, folder, _ = finished
    ours, theirs = checkpoint(folder, "personalized"), checkpoint(folder, "global")
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    second = second_of(method)
    assert same == (second is not None and not second.follows)


def test_a_person_decodes_with_the_blend_of_what_is_shared_and_their_own(finished: tuple[str, Path, Watching]) -> None:
    method, folder, _ = finished
    second, shared = second_of(method), checkpoint(folder, "personalized")
    for device, (state, info) in adapters(folder, "personalized").items():
        if second is None:
            continue
        last = f"state-00000{2 + second.afterwards}.safetensors"
        kept = load_file(folder / "devices" / "personalized-own" / device / last)
        if second.afterwards:
            kept = {n: torch.from_numpy(v) for n, v in restored({n: t.numpy() for n, t in kept.items()}).items()}
        built = second.build(shared, kept)
        assert state.keys() == built.keys()
        assert all(torch.equal(state[n], built[n]) for n in built)
        assert (info.config.r, info.config.gate, info.split) == (
            2 * second.ranks,
            second.gate,
            "fedsa" if second.afterwards else "all-private",  # what is enrolled is B
        )
        assert info.config.scaling == 16.0 / 2
    states = [state for state, _ in adapters(folder, "personalized").values()]
    different = sum(any(not torch.equal(a[n], b[n]) for n in a) for a in states for b in states) // 2
    assert different == (2 if method == "clusters" else 3)  # of three people; two of them are in one cluster


def test_a_held_out_speaker_decodes_with_the_shared_adapter(finished: tuple[str, Path, Watching]) -> None:
    _, folder, _ = finished
    shared = checkpoint(folder, "personalized")
    for state, info in adapters(folder, "neutral").values():
        assert all(torch.equal(state[n], shared[n]) for n in shared)
        assert info.config.r == 2
    assert len(adapters(folder, "neutral")) == 4


def test_the_private_layers_are_the_last_ones_and_are_trained(finished: tuple[str, Path, Watching]) -> None:
    method, folder, _ = finished
    if method not in ("fedper", "fedrep"):
        return
    shared = set(checkpoint(folder, "personalized"))
    everything = set(checkpoint(folder, "global"))
    assert everything - shared == {n for n in everything if "decoder.layers.1." in n}
    for state, info in adapters(folder, "personalized").values():
        assert info.split == "last:1"
        assert all(bool(state[n].any()) for n in everything - shared)


def test_the_guard_knows_the_last_layers_whatever_the_aggregator_asks_for(
    make_run: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = make_run(tmp_path / "run", algorithm="fedper")
    names = [f"base_model.model.model.decoder.layers.{i}.self_attn.q_proj.gated_lora_A" for i in (0, 1)]
    asked = ArrayRecord({n: Array(np.zeros((2, 16), np.float32)) for n in names})
    job = Job("personalized", 1, ("화자 0",))
    content = RecordDict({JOB: job.to_record(), SETTINGS_RECORD: settings_record(config), SHARED: asked})
    SerialGrid(client_app)
    message = Message(content, dst_node_id=1, message_type=MessageType.TRAIN)
    back = ArrayRecord({n: Array(np.zeros((1, 2, 16), np.float32)) for n in names})
    columns = {DEVICES: ConfigRecord({IDS: ["화자 0"]}), COUNTS: MetricRecord({"examples": [1]})}
    reply = RecordDict({**columns, UPDATES: back})
    context = Context(1, 1, {"partition-id": 0, "num-partitions": 1}, RecordDict(), {})
    with pytest.raises(GuardError, match=r"private tensor.*layers\.1\."):
        guard_mod(message, context, lambda m, c: Message(reply, reply_to=m))


@pytest.mark.parametrize("changes", [{"algorithm": "mixture,scaffold"}, {"algorithm": "clusters"}])
def test_a_run_that_was_killed_resumes_to_the_same_bytes(
    make_run: Callable[..., RunConfig],
    tmp_path: Path,
    tensors_of: Callable[[Path], dict[str, bytes]],
    changes: dict[str, str],
) -> None:
    settings = {**RUN, "arms": "personalized", "algorithm.clusters.agreement": 1.0, **changes}
    whole = run_server(SerialGrid(client_app), make_run(tmp_path / "whole", **settings), 1)

    class Killed(BaseException):
        pass

    def kill(what: str, done: int, total: int) -> None:
        if done == 1:
            raise Killed

    config = make_run(tmp_path / "killed", **settings)
    with pytest.raises(Killed):
        run_server(SerialGrid(client_app), config, 1, kill)
    resumed = run_server(SerialGrid(client_app), config, 2)
    assert tensors_of(resumed) == tensors_of(whole)
    assert any("state-2" in name for name in tensors_of(whole))
    assert ("control" in " ".join(tensors_of(whole))) == ("scaffold" in changes["algorithm"])


# After the last round


@pytest.mark.parametrize("name", [n for n in names_of(Role.PERSONALIZATION) if ALGORITHMS[n].can.sampled])
def test_every_device_gets_its_private_phase_sampled_or_not(
    make_run: Callable[..., RunConfig], tmp_path: Path, rows_of: Callable[[Path], list[dict[str, Any]]], name: str
) -> None:
    fast = {"algorithm.enrolment.enrolment-rate": 1e-2}
    config = make_run(tmp_path / "run", algorithm=name, sample=0.5, rounds=1, arms="personalized", **fast)
    folder = run_server(SerialGrid(client_app), config, 1)
    rows = [row for row in rows_of(folder) if row["steps"]]
    drawn = {row["device"] for row in rows if row["round"] == 1}
    assert len(drawn) == 2
    assert {row["device"] for row in rows} == {f"화자 {i}" for i in range(4)} - {held_out(folder)}
    last = {row["device"] for row in rows if row["round"] == 2}
    assert last == ({row["device"] for row in rows} if name == "enrolment" else {row["device"] for row in rows} - drawn)
    assert len(list((folder / "devices").glob("*/*/adapter"))) == 3
    assert len({path.parent.name for path in (folder / "devices").glob("*/*/state-*")}) == 3


def held_out(folder: Path) -> str:
    """Who never trains."""
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    return ({f"화자 {i}" for i in range(4)} - {row["device"] for row in rows if not row["new_person"]}).pop()


def test_the_devices_of_a_run_enrol_as_one_person_does(
    make_run: Callable[..., RunConfig], tmp_path: Path, rows_of: Callable[[Path], list[dict[str, Any]]]
) -> None:
    """By default shared tensors and rounds are those of global, and a device keeps what enrolment gives on them, in int8."""
    rate = {"algorithm.enrolment.enrolment-rate": 1e-2, "gate": "none", "cohort": 2}
    config = make_run(tmp_path / "run", **{**RUN, **rate})
    grid = Watching()
    folder = run_server(grid, config, 1)
    assert len(grid.replies) == 2 * (2 + 1)  # two nodes: two rounds of both arms together, and the enrolment
    shared = checkpoint(folder, "global")
    assert all(torch.equal(shared[n], t) for n, t in checkpoint(folder, "personalized").items())
    worker = Worker(config, tmp_path / "other")
    slot = Slot(2, 16.0 / 2, "none")
    seed = derive_seed(config.seed, "enrolment")
    method = EnrolMethod("B@decoder", rate=1e-2, grid=(0, 3, 6, 12, 24))
    directions = load_directions(folder / "shared")
    start = Start.of(Adapter(slot, shared, directions), method, seed=seed)
    assert start.prior.directions == directions
    assert grid.directions == {("personalize", 3)}  # as many as devices, to enrol with and for nothing else
    stored = DeviceStore(folder / "devices", worker.task.fingerprint)
    for device in ("화자 0", "화자 1", "화자 2", "화자 3"):
        if worker.task.is_new(device):
            continue
        people = {device: worker.task.device(device).train}
        one = enrol(worker.host, worker.task, start, people, seed=seed, budget=2**30)[device]
        values, size = kept(one.private)
        shapes = {OWN + name: tuple(tensor.shape) for name, tensor in values.items()}
        found = stored.load("personalized-own", device, shapes, before=4)
        assert found is not None
        for name, tensor in values.items():
            step = tensor.abs().amax(-1, keepdim=True) / 127  # of int8: rounding may fall either way
            assert ((found[OWN + name] - tensor).abs() <= 1.01 * step + 1e-6).all()
        path = next((folder / "devices" / "personalized-own").glob(f"{folder_name(device)}/state-*"))
        assert size < path.stat().st_size < size + 16_000  # and its header


@pytest.mark.parametrize("algorithm", ["fedavg", "flexlora"])
def test_devices_of_smaller_ranks_enrol_within_them(
    make_run: Callable[..., RunConfig], tmp_path: Path, algorithm: str
) -> None:
    ranks = {"device-ranks": "1,2", "rank": 2, "gate": "none", "algorithm": algorithm, "cohort": 3, "rounds": 2}
    config = make_run(tmp_path / "run", seed=3, **ranks, **{"algorithm.enrolment.enrolment-rate": 1e-2})
    folder = run_server(SerialGrid(client_app), config, 1)
    enrolled: set[int] = set()
    for device in (f"화자 {number}" for number in range(4)):
        if device == held_out(folder):
            continue
        rank = device_rank(config, device)
        state, info = load_adapter(folder / "devices" / "personalized" / folder_name(device) / "adapter")
        own = (folder / "devices" / "personalized-own" / folder_name(device)).exists()
        assert info.split == ("fedsa" if own else "all-shared")
        pairs = [(t, state[n.removesuffix("B") + "A"], n) for n, t in state.items() if n.endswith("_B")]
        assert all(bool((b[:, :rank] != 0).any()) for b, _, _ in pairs)
        assert not any(bool((b[:, rank:] @ a[rank:]).any()) for b, a, _ in pairs)
        enrolled |= {rank} if own else set()
    assert enrolled == {1, 2}


def test_people_who_took_no_part_get_the_shared_adapter_and_what_the_last_rounds_updates_differ_by(
    make_run: Callable[..., RunConfig], tmp_path: Path
) -> None:
    grid = Watching()
    folder = run_server(grid, make_run(tmp_path / "run", **{**RUN, "gate": "none", "rounds": 3}), 1)
    state, info = load_adapter(folder / "shared")
    assert all(torch.equal(tensor, state[name]) for name, tensor in checkpoint(folder, "global").items())
    assert (info.split, info.config.gate) == ("all-shared", "none")
    names = [name for name in sorted(state) if "decoder" in name and name.endswith("_B")]
    moved = [content.array_records[UPDATES][name].numpy() for content in grid.updates[3] for name in names]
    rows = [
        np.concatenate([part.reshape(len(part), -1) for part in moved[i : i + len(names)]], 1)
        for i in range(0, len(moved), len(names))
    ]
    away = np.concatenate(rows).astype(np.float64)
    assert len(away) == 3
    found = load_directions(folder / "shared")
    basis = np.linalg.qr(np.concatenate([found[name].numpy() for name in names], 1).T.astype(np.float64))[0]
    lost = np.linalg.norm(away - away @ basis @ basis.T) / np.linalg.norm(away)
    assert lost < 0.02  # int8


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm.enrolment.directions": 0},
        {"secure-sum": "pairwise"},
        {"dp": "local", "epsilon-budget": 1e6},
        {"aggregation": "edge"},
        {"algorithm": "median"},
    ],
)
def test_no_directions_are_made_where_nobody_is_to_see_single_updates(
    make_run: Callable[..., RunConfig], tmp_path: Path, changes: dict[str, Any]
) -> None:
    grid = Watching()
    folder = run_server(grid, make_run(tmp_path / "run", **{**RUN, "gate": "none", "rounds": 1}, **changes), 1)
    assert load_adapter(folder / "shared")
    assert load_directions(folder / "shared") == {}
    assert grid.directions == set()


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "clusters"},  # there is no one adapter
        {"algorithm": "fedper"},
        {"split": "fedsa"},
        {"gate": "self", "gated-arms": "all", "algorithm": "gates"},
        {"method": "bitfit", "arms": "global"},
    ],
)
def test_no_directions_are_of_what_is_not_one_adapter_of_a_and_b(changes: dict[str, Any]) -> None:
    for name in ("global", "personalized", "local", "centralized"):
        arm = trained_arm(name, make_config({"gate": "none", "arms": "global,personalized", **changes}))
        assert arm is not None
        assert not arm.directions or (
            name == "global" and not changes.keys() & {"gate", "method"}
        )  # that is one adapter
    default = trained_arm("personalized", make_config({}))
    assert default is not None
    assert default.directions == 16


def test_who_does_not_enrol_is_told_no_directions(make_run: Callable[..., RunConfig], tmp_path: Path) -> None:
    changes = {"arms": "global,personalized", "algorithm": "ditto", "sample": 0.5, "gate": "none", "rounds": 1}
    grid = Watching()
    folder = run_server(grid, make_run(tmp_path / "run", **changes), 1)
    assert load_directions(folder / "shared")
    assert grid.directions == set()
