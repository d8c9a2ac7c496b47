"""A whole run over devices of different ranks."""

from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Message, MessageType

from clients.app import app as client_app
from fl.adapters.ranks import device_rank
from fl.protocol.wire import DEVICES, IDS, SHARED, UPDATES
from fl.settings.config import RunConfig
from sim.backends.serial import SerialGrid
from strategies.app import run_server

MakeRun = Callable[..., RunConfig]


class Watching(SerialGrid):
    """A grid that keeps, of each round of training, how many coordinates every device sends."""

    def __init__(self) -> None:
        super().__init__(client_app)
        self.ranks: dict[str, list[set[int]]] = {}  # of all layers, round by round

    def _handle(self, message: Message) -> Message:
        reply = super()._handle(message)
        if message.metadata.message_type == MessageType.TRAIN and UPDATES in reply.content:
            sent = message.content.array_records[SHARED]
            ids = reply.content.config_records[DEVICES][IDS]
            found: dict[str, set[int]] = {device: set() for device in ids}  # type: ignore[union-attr]
            for name, array in reply.content.array_records[UPDATES].items():
                for device, update in zip(ids, array.numpy(), strict=True):  # type: ignore[arg-type]
                    if name.endswith("_A"):
                        found[device].add(int((sent[name].numpy() + update).any(axis=1).sum()))
            for device, ranks in found.items():
                self.ranks.setdefault(device, []).append(ranks)
        return reply


def test_devices_keep_their_ranks_over_rounds_and_a_killed_run_resumes_to_the_same_bytes(
    make_run: MakeRun, tmp_path: Path, tensors_of: Callable[[Path], dict[str, bytes]]
) -> None:
    changes = {"algorithm": "flexlora", "cohort": 3, "rank": 4, "device_ranks": "1,2,4", "seed": 3,
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
