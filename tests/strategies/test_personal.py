"""Clusters by hand, what a personalization refuses, and whole runs of each: what is shared, kept, decoded and resumed."""

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from safetensors.torch import load_file

from clients.app import app as client_app
from clients.mods import guard_mod
from fl.adapters.blend import make_blend
from fl.adapters.files import load_adapter
from fl.adapters.split import OWN
from fl.core.errors import ConfigError, GuardError
from fl.protocol.wire import COUNTS, JOB, SETTINGS_RECORD, SHARED, Job, device_key, settings_record
from fl.settings.config import RunConfig, make_config
from fl.settings.names import EDGE, PERSONALIZATIONS
from sim.backends.serial import SerialGrid
from strategies.app import run_server
from strategies.base import Roster
from strategies.personal import ClusteredFedAvg, bipartition
from strategies.registry import ENTRIES, PERSONAL, check_strategy

X = "x"
METHODS = [name for name in PERSONALIZATIONS if name != "gates"]
# Two groups that move apart: ann and bob along the first axis, cem and dan against it, each a little aside.
UPDATES = {"ann": (2.0, 0.5), "bob": (2.0, -0.5), "cem": (-2.0, 0.25), "dan": (-2.0, -0.25)}
EXAMPLES = {"ann": 1, "bob": 3, "cem": 2, "dan": 2}


def clustered(**options: Any) -> ClusteredFedAvg:
    roster = Roster(dict.fromkeys(EXAMPLES, 1), EXAMPLES)
    return ClusteredFedAvg(
        roster=roster, settings=ConfigRecord(), job=Job("personalized", 0, tuple(EXAMPLES)), **options
    )


def record(values: Any) -> ArrayRecord:
    return ArrayRecord({X: Array(np.asarray(values, np.float32))})


def models_sent(strategy: ClusteredFedAvg, arrays: ArrayRecord, server_round: int = 1) -> dict[str, tuple[float, ...]]:
    """What each device gets in a round."""
    grid = SerialGrid(lambda message, context: message, nodes=1)  # type: ignore[arg-type]
    found = {}
    for message in strategy.configure_train(server_round, arrays, ConfigRecord(), grid):
        for device_id in Job.from_record(message.content.config_records[JOB]).devices:
            found[device_id] = tuple(map(float, message.content.array_records[SHARED][X].numpy()))
    return found


def answer(
    strategy: ClusteredFedAvg,
    arrays: ArrayRecord,
    message_with: Callable[..., Message],
    *,
    devices: tuple[str, ...] = tuple(EXAMPLES),
    server_round: int = 1,
) -> ArrayRecord:
    """A round in which every device moves what it got by its update."""
    got = models_sent(strategy, arrays, server_round)
    content: dict[str, Any] = {}
    for d in devices:
        content[device_key(COUNTS, d)] = MetricRecord({"examples": EXAMPLES[d], "loss": 1.0, "steps": 2})
        content[device_key(SHARED, d)] = record(np.add(got[d], UPDATES[d]))
    new, _ = strategy.aggregate_train(server_round, [message_with(content)])
    assert new is not None
    return new


def test_a_cluster_whose_devices_pull_apart_is_divided_and_each_part_goes_on_from_its_own_mean(
    message_with: Callable[..., Message],
) -> None:
    """mean (0, ...) is short beside 2.06; ann and bob are alike (cosine 15 / 17), as are cem and dan (63 / 65)."""
    strategy = clustered()
    assert set(models_sent(strategy, record([1.0, 1.0])).values()) == {(1.0, 1.0)}
    new = answer(strategy, record([1.0, 1.0]), message_with)
    first = [1 + (1 * 2.0 + 3 * 2.0) / 4, 1 + (1 * 0.5 - 3 * 0.5) / 4]
    second = [1 - 2.0, 1 + 0.0]
    assert new[X].numpy() == pytest.approx(first)  # of two as large ones the first
    got = models_sent(strategy, new, 2)
    assert got["ann"] == got["bob"] == pytest.approx(first)
    assert got["cem"] == got["dan"] == pytest.approx(second)
    answer(strategy, new, message_with, server_round=2)
    assert strategy.members == {"ann": 0, "bob": 0, "cem": 1, "dan": 1}  # within a part they agree


def test_agreement_a_missing_device_and_the_largest_number_keep_a_cluster_whole(
    message_with: Callable[..., Message],
) -> None:
    mean = np.array([1.0, 1.0]) + sum(EXAMPLES[d] * np.array(UPDATES[d]) for d in EXAMPLES) / 8
    for options in ({"agreement": 0.01}, {"most": 1}):
        strategy = clustered(**options)
        assert answer(strategy, record([1.0, 1.0]), message_with)[X].numpy() == pytest.approx(mean)
        assert len(strategy.models) == 1
    strategy = clustered()
    answer(strategy, record([1.0, 1.0]), message_with, devices=("ann", "bob", "cem"))
    assert len(strategy.models) == 1


def test_the_order_of_replies_changes_nothing_and_one_device_alone_gives_its_own(
    message_with: Callable[..., Message],
) -> None:
    states = []
    for devices in (tuple(EXAMPLES), ("dan", "bob", "ann", "cem"), ("cem", "dan", "bob", "ann")):
        strategy = clustered()
        answer(strategy, record([1.0, 1.0]), message_with, devices=devices)
        states.append({name: values.tobytes() for name, values in strategy.server_state().items()})
    assert states[0] == states[1] == states[2]
    alone = ClusteredFedAvg(
        roster=Roster({"bob": 1}, {"bob": 3}), settings=ConfigRecord(), job=Job("personalized", 0, ("bob",))
    )
    new = answer(alone, record([1.0, 1.0]), message_with, devices=("bob",))
    assert tuple(new[X].numpy()) == (3.0, 0.5)


def test_clusters_survive_in_the_servers_state_and_new_people_get_the_largest(
    message_with: Callable[..., Message],
) -> None:
    first, second = clustered(), clustered()
    new = answer(first, record([1.0, 1.0]), message_with)
    second.restore(first.server_state())
    assert models_sent(first, new, 2) == models_sent(second, new, 2)
    second.job = Job("neutral", 0, tuple(EXAMPLES))
    grid = SerialGrid(lambda message, context: message, nodes=1)  # type: ignore[arg-type]
    (message,) = second.configure_evaluate(2, new, ConfigRecord(), grid)
    assert message.content.array_records[SHARED][X].numpy() == pytest.approx(new[X].numpy())


@pytest.mark.parametrize("seed", range(4))
def test_no_other_division_has_a_smaller_largest_similarity_across(seed: int) -> None:
    directions = np.random.default_rng(seed).standard_normal((6, 3))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    similarity = directions @ directions.T

    def across(group: tuple[int, ...]) -> float:
        return max(similarity[i, j] for i in range(6) for j in range(6) if group[i] != group[j])

    found = tuple(bipartition(similarity))
    others = {tuple(map(int, bin(code)[2:].zfill(6))) for code in range(1, 32)}
    assert found[0] == 0
    assert across(found) == pytest.approx(min(across(group) for group in others))
    for order in list(permutations(range(6)))[::90]:
        turned = bipartition(similarity[np.ix_(order, order)])
        sides = dict(zip(order, turned, strict=True))
        assert {frozenset(i for i in range(6) if sides[i] == s) for s in (0, 1)} == {
            frozenset(i for i in range(6) if found[i] == s) for s in (0, 1)
        }


# What does not go together


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"personalization": "ditto", "split": "all-private"}, "split = 'all-private'"),
        ({"personalization": "apfl", "split": "ffa", "strategy": "ffa"}, "split = 'ffa'"),
        ({"personalization": "feddpa", "arms": "global"}, "add personalized"),
        ({"personalization": "pfedme", "strategy": "scaffold"}, "strategy = 'scaffold'"),
        ({"personalization": "pfedme", "strategy": "rolora"}, "strategy = 'rolora'"),
        ({"personalization": "pfedme", "proximal": 0.1}, "proximal = 0.1"),
        ({"personalization": "pfedme", "personal-steps": 13}, "personal-steps = 13"),
        ({"personalization": "fedrep", "local-steps": 1}, "local-steps = 1"),
        ({"personalization": "fedrep", "local-steps": 4, "personal-steps": 4}, "local-steps = 4"),
        ({"personalization": "clusters", "aggregation": EDGE}, "aggregation = 'edge'"),
        ({"personalization": "clusters", "strategy": "median"}, "strategy = 'median'"),
        ({"personalization": "clusters", "sample": 0.5}, "sample = 0.5"),
        ({"personalization": "clusters", "server-optimizer": "fedadam"}, "server-optimizer = 'fedadam'"),
    ],
)
def test_what_cannot_work_is_refused_with_the_setting_to_change(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_strategy(make_config(values))
    assert named in str(error.value)


def test_every_personalization_goes_with_the_defaults_and_has_a_row() -> None:
    for method in PERSONALIZATIONS:
        check_strategy(make_config({"personalization": method}))
    rows = {entry.name for entry in ENTRIES if entry.kind == PERSONAL and entry.setting == "personalization"}
    assert rows == set(METHODS)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"personalization": "fedper", "personal_layers": 4}, "from 1 to 3"),
        ({"personalization": "apfl", "rank": 33}, "at most 32"),
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

    def _handle(self, message: Message) -> Message:
        reply = super()._handle(message)
        if message.metadata.message_type == MessageType.TRAIN:
            assert reply.has_content()
            back = {name for arrays in reply.content.array_records.values() for name in arrays}
            self.replies.append((set(message.content.array_records[SHARED]), back))
        return reply


RUN = {"rounds": 2, "arms": "global,personalized,neutral", "evaluate_every": 0, "final_split": "validation"}


@pytest.fixture(scope="module", params=METHODS)
def finished(
    request: pytest.FixtureRequest, make_run: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Watching]:
    """A run of each method."""
    grid = Watching()
    folder = tmp_path_factory.mktemp("runs") / request.param
    cohort = 2 if request.param in ("fedrep", "ditto") else 1
    clusters = {"cluster_agreement": 1.0, "clusters": 2}  # divided at once, and once
    changes = {**RUN, "personalization": request.param, "cohort": cohort, **clusters}
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
        assert back == sent
        assert not any(name.startswith(OWN) for name in back)
    if make_blend(method) is not None:
        kept = list((folder / "devices" / "personalized-own").glob("*/state-000002.safetensors"))
        assert len(kept) == 3
        assert all(name.startswith(OWN) for path in kept for name in load_file(path))


def test_the_shared_part_is_that_of_global_to_the_bit_where_the_method_leaves_it_alone(
    finished: tuple[str, Path, Watching],
) -> None:
    method, folder, _ = finished
    ours, theirs = checkpoint(folder, "personalized"), checkpoint(folder, "global")
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert same == (method in ("ditto", "apfl", "feddpa", "interpolation"))


def test_a_person_decodes_with_the_blend_of_what_is_shared_and_their_own(finished: tuple[str, Path, Watching]) -> None:
    method, folder, _ = finished
    blend, shared = make_blend(method), checkpoint(folder, "personalized")
    for device, (state, info) in adapters(folder, "personalized").items():
        if blend is None:
            continue
        kept = load_file(folder / "devices" / "personalized-own" / device / "state-000002.safetensors")
        built = blend.build(shared, kept)
        assert state.keys() == built.keys()
        assert all(torch.equal(state[n], built[n]) for n in built)
        assert (info.config.r, info.config.gate, info.split) == (2 * blend.ranks, blend.gate, "all-private")
        assert info.config.scaling == 16.0 / 2
    states = [state for state, _ in adapters(folder, "personalized").values()]
    different = sum(any(not torch.equal(a[n], b[n]) for n in a) for a in states for b in states) // 2
    assert different == (2 if method == "clusters" else 3)  # of three people; two of them are in one cluster


def test_a_new_person_decodes_with_the_shared_adapter(finished: tuple[str, Path, Watching]) -> None:
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
    config = make_run(tmp_path / "run", personalization="fedper")
    names = [f"base_model.model.model.decoder.layers.{i}.self_attn.q_proj.gated_lora_A" for i in (0, 1)]
    asked = ArrayRecord({n: Array(np.zeros((2, 16), np.float32)) for n in names})
    job = Job("personalized", 1, ("화자 0",))
    content = RecordDict({JOB: job.to_record(), SETTINGS_RECORD: settings_record(config), SHARED: asked})
    SerialGrid(client_app)
    message = Message(content, dst_node_id=1, message_type=MessageType.TRAIN)
    reply = RecordDict(
        {device_key(SHARED, "화자 0"): asked, device_key(COUNTS, "화자 0"): MetricRecord({"examples": 1})}
    )
    context = Context(1, 1, {"partition-id": 0, "num-partitions": 1}, RecordDict(), {})
    with pytest.raises(GuardError, match=r"private tensor.*layers\.1\."):
        guard_mod(message, context, lambda m, c: Message(reply, reply_to=m))


@pytest.mark.parametrize(
    "changes", [{"personalization": "apfl", "strategy": "scaffold"}, {"personalization": "clusters"}]
)
def test_a_run_that_was_killed_resumes_to_the_same_bytes(
    make_run: Callable[..., RunConfig],
    tmp_path: Path,
    tensors_of: Callable[[Path], dict[str, bytes]],
    changes: dict[str, str],
) -> None:
    settings = {**RUN, "arms": "personalized", "cluster_agreement": 1.0, **changes}
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
    assert ("control" in " ".join(tensors_of(whole))) == ("strategy" in changes)
