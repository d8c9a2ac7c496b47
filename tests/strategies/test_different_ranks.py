"""Rounds over devices of different ranks, with the expected numbers computed here; and whole runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MessageType

from clients.app import app as client_app
from fl.adapters.ranks import device_rank
from fl.core.errors import ConfigError
from fl.protocol.wire import Job
from fl.settings.config import RunConfig, make_config
from sim.backends.serial import SerialGrid
from strategies.app import run_server
from strategies.base import SharedFedAvg
from strategies.lora import FedEx, FlexLora, Flora, HetLora
from strategies.registry import check_strategy

MakeRun = Callable[..., RunConfig]
Round = Callable[..., dict[str, np.ndarray]]
A, B = "map.gated_lora_A", "map.gated_lora_B"
RANK, D_OUT, D_IN = 2, 5, 6  # of the messages


def tensors(rank: int, seed: int) -> dict[str, np.ndarray]:
    """A device's pair of ``rank``, filled up with zeros."""
    generator = np.random.default_rng(seed)
    a, b = np.zeros((RANK, D_IN), np.float32), np.zeros((D_OUT, RANK), np.float32)
    a[:rank], b[:, :rank] = generator.standard_normal((rank, D_IN)), generator.standard_normal((D_OUT, rank))
    return {A: a, B: b}


BEFORE = tensors(2, 0)
SMALL, LARGE = tensors(1, 1), tensors(2, 2)
DEVICES = {"ann": (1.0, SMALL), "bob": (3.0, LARGE)}
MEAN_PRODUCT = 0.25 * np.outer(SMALL[B][:, 0], SMALL[A][0]) + 0.75 * LARGE[B].astype(np.float64) @ LARGE[A]


@pytest.mark.parametrize("kind", [FlexLora, Flora])
def test_the_best_pair_for_ranks_one_and_two_is_the_truncated_sum_of_their_products(
    round_of: Round, kind: type[SharedFedAvg]
) -> None:
    made: list[Any] = []
    new = round_of(kind, BEFORE, DEVICES, made=made)
    u, values, vt = np.linalg.svd(MEAN_PRODUCT)
    assert values[2] > 0.1  # a third direction, which does not fit
    np.testing.assert_allclose(new[B] @ new[A], (u[:, :2] * values[:2]) @ vt[:2], atol=1e-5)
    if kind is Flora:
        np.testing.assert_allclose(new[B] @ new[A] + made[0].corrections["map"], MEAN_PRODUCT, atol=1e-5)


def test_hetlora_weighs_padded_factors_by_the_norm_of_each_product(round_of: Round) -> None:
    small = np.linalg.norm(SMALL[B][:, 0]) * np.linalg.norm(SMALL[A][0])
    large = np.linalg.norm(LARGE[B] @ LARGE[A])
    new = round_of(HetLora, BEFORE, DEVICES)
    share = large / (small + large)
    np.testing.assert_allclose(new[A][0], (1 - share) * SMALL[A][0] + share * LARGE[A][0], atol=1e-6)
    np.testing.assert_allclose(new[A][1], share * LARGE[A][1], atol=1e-6)
    np.testing.assert_allclose(new[B][:, 1], share * LARGE[B][:, 1], atol=1e-6)


def test_fedavg_counts_what_a_device_has_no_room_for_as_zero_and_fedex_keeps_what_that_loses(round_of: Round) -> None:
    made: list[Any] = []
    plain, exact = round_of(SharedFedAvg, BEFORE, DEVICES), round_of(FedEx, BEFORE, DEVICES, made=made)
    for new in (plain, exact):
        np.testing.assert_allclose(new[A][0], 0.25 * SMALL[A][0] + 0.75 * LARGE[A][0], atol=1e-6)
        np.testing.assert_allclose(new[A][1], 0.75 * LARGE[A][1], atol=1e-6)
    np.testing.assert_allclose(exact[B] @ exact[A] + made[0].corrections["map"], MEAN_PRODUCT, atol=1e-5)


def test_with_the_best_pair_a_coordinate_that_one_device_has_does_not_fade_with_the_rounds(round_of: Round) -> None:
    """Devices with the same A: the mean of products is mean(B) A, and A stays as long as it is, round after round."""
    a, small = LARGE[A], SMALL[B]
    shared = {"ann": (99.0, {A: np.vstack([a[:1], np.zeros_like(a[1:])]), B: small}), "bob": (1.0, {A: a, B: LARGE[B]})}
    new = round_of(FlexLora, BEFORE, shared)
    np.testing.assert_allclose(new[A], a, atol=1e-4)
    np.testing.assert_allclose(new[B], 0.99 * small + 0.01 * LARGE[B], atol=1e-4)


def test_a_round_in_which_nothing_was_learned_leaves_a_as_it_is(round_of: Round) -> None:
    idle = {name: (n, {**values, B: np.zeros_like(values[B])}) for name, (n, values) in DEVICES.items()}
    new = round_of(FlexLora, BEFORE, idle)
    np.testing.assert_allclose(new[A][1], LARGE[A][1], atol=1e-6)  # of the only device that has it
    assert not new[B].any()


@pytest.mark.parametrize(
    "values",
    [{"dp": "server"}, {"dp": "local"}, {"secure-sum": "pairwise"}, {"codec": "int8"}, {"attack": "sign-flip"}],
    ids=str,
)
def test_what_is_done_to_updates_does_not_go_with_different_ranks(values: dict[str, str]) -> None:
    check_strategy(make_config({"device-ranks": "2,4"}))
    check_strategy(make_config(values))
    with pytest.raises(ConfigError, match=r"device-ranks = '2,4': .* has no room for.*or leave device-ranks empty"):
        check_strategy(make_config({**values, "device-ranks": "2,4"}))


class Watching(SerialGrid):
    """A grid that keeps, of each round of training, how many coordinates every device sends."""

    def __init__(self) -> None:
        super().__init__(client_app)
        self.ranks: dict[str, list[set[int]]] = {}  # of all layers, round by round

    def _handle(self, message: Message) -> Message:
        reply = super()._handle(message)
        if message.metadata.message_type == MessageType.TRAIN and "shared" in reply.content:
            job = Job.from_record(message.content.config_records["job"])
            found: dict[str, set[int]] = {device: set() for device in job.devices}
            for name, array in reply.content.array_records["shared"].items():
                for device, values in zip(job.devices, array.numpy(), strict=True):
                    if name.endswith("_A"):
                        found[device].add(int(values.any(axis=1).sum()))
            for device, ranks in found.items():
                self.ranks.setdefault(device, []).append(ranks)
        return reply


def test_devices_keep_their_ranks_over_rounds_and_a_killed_run_resumes_to_the_same_bytes(
    make_run: MakeRun, tmp_path: Path, tensors_of: Callable[[Path], dict[str, bytes]]
) -> None:
    changes = {"strategy": "flexlora", "cohort": 3, "rank": 4, "device_ranks": "1,2,4", "seed": 3,
               "evaluate_every": 0, "final_split": "validation"}  # fmt: skip
    grid, config = Watching(), make_run(tmp_path / "whole", **changes)
    whole = run_server(grid, config, 1)
    expected = {device: device_rank(config, device) for device in grid.ranks}
    assert len(set(expected.values())) > 1
    assert grid.ranks == {device: [{rank}, {rank}] for device, rank in expected.items()}

    class Killed(BaseException):
        pass

    def kill(what: str, done: int, total: int) -> None:
        if done == 1:
            raise Killed

    with pytest.raises(Killed):
        run_server(SerialGrid(client_app), make_run(tmp_path / "killed", **changes), 1, kill)
    resumed = run_server(SerialGrid(client_app), make_run(tmp_path / "killed", **changes), 2)
    assert tensors_of(resumed) == tensors_of(whole)
