"""The round loop: one row for each device, resumable after any round, never twice the same."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message

from fl.core.errors import AggregationError
from fl.runs.results import ResultsFile
from fl.settings.names import SERVER_OPTIMIZERS
from sim.backends.serial import SerialGrid
from strategies.arm import ArmStrategy
from strategies.checkpoint import SECONDS_NAME, checkpoint_path, load_checkpoint, load_seconds, save_seconds
from strategies.loop import CommonRounds, RoundLoop

Make = Callable[..., ArmStrategy]
Row = tuple[str, int, str, str, float | None, int, int]


class Killed(BaseException):
    """The end of the process."""


class MortalGrid(SerialGrid):
    """A grid whose process dies when the answers of a given exchange have arrived."""

    def __init__(self, app: Any, dies_after: int) -> None:
        super().__init__(app)
        self.left = dies_after

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = list(super().send_and_receive(messages, timeout=timeout))
        self.left -= 1
        if not self.left:
            raise Killed
        return replies


@dataclass
class Run:
    """A loop with its files in ``folder``, as a process would open them."""

    folder: Path
    grid: SerialGrid
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    results: ResultsFile = field(init=False)

    def __post_init__(self) -> None:
        self.results = ResultsFile(self.folder)

    def train(self, strategy: ArmStrategy, start: ArrayRecord, rounds: int = 4, every: int = 2) -> ArrayRecord:
        loop = RoundLoop(self.grid, self.folder / "checkpoints", "base", self.results, progress=self.progress)
        return loop.train(strategy, start, rounds, every, tuple(sorted(strategy.job.devices)))

    def files(self) -> dict[str, bytes]:
        """Everything but how long it took."""
        found = (p for p in self.folder.rglob("*") if p.is_file() and p.name != SECONDS_NAME)
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in found}


@pytest.fixture
def whole(tmp_path: Path, devices: Any, make_strategy: Make, start: ArrayRecord) -> dict[str, bytes]:
    """The files of a run that nothing interrupted."""
    run = Run(tmp_path / "whole", SerialGrid(devices))
    run.train(make_strategy(devices), start)
    return run.files()


def test_each_round_has_a_row_for_each_device(
    tmp_path: Path, devices: Any, make_strategy: Make, start: ArrayRecord
) -> None:
    run = Run(tmp_path, SerialGrid(devices))
    run.train(make_strategy(devices), start)
    rows = {(r["round"], r["device"]): r for r in ResultsFile(tmp_path).rows()}
    assert set(rows) == {(n, d) for n in (1, 2, 3, 4) for d in ("ann", "bob", "cho")}
    for (server_round, device), row in rows.items():
        assert row["train_loss"] == devices.steps[device]
        assert (row["steps"], row["bytes_up"]) == (2, 40)
        # evaluated every second round; in between a row tells of training alone
        counts = {"substitutions": 1, "deletions": 0, "insertions": 2, "reference": 10}
        assert row["metrics"] == ({"wer": counts} if server_round % 2 == 0 else {})


@pytest.mark.parametrize(("every", "evaluated"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_evaluations_come_every_so_many_rounds_and_after_the_last(
    tmp_path: Path, devices: Any, make_strategy: Make, start: ArrayRecord, every: int, evaluated: list[int]
) -> None:
    Run(tmp_path, SerialGrid(devices)).train(make_strategy(devices), start, rounds=5, every=every)
    assert sorted({job.round for kind, job in devices.jobs if kind == "evaluate"}) == evaluated


@pytest.mark.parametrize("dies_after", [1, 2, 3, 4, 5, 6])
def test_a_run_killed_at_any_exchange_resumes_to_the_same_bytes(
    tmp_path: Path,
    devices: Any,
    make_strategy: Make,
    start: ArrayRecord,
    whole: dict[str, bytes],
    dies_after: int,
) -> None:
    killed = tmp_path / "killed"
    with pytest.raises(Killed):
        Run(killed, MortalGrid(devices, dies_after)).train(make_strategy(devices), start)
    resumed = Run(killed, SerialGrid(devices))
    resumed.train(make_strategy(devices), start)
    assert resumed.files() == whole


@pytest.mark.parametrize("killed_in", [1, 2, 3])
def test_a_run_killed_between_two_rounds_repeats_none_and_loses_no_row(
    tmp_path: Path,
    devices: Any,
    make_strategy: Make,
    start: ArrayRecord,
    whole: dict[str, bytes],
    killed_in: int,
) -> None:
    def kill(what: str, done: int, total: int) -> None:
        if done == killed_in:
            raise Killed

    killed = tmp_path / "killed"
    with pytest.raises(Killed):
        Run(killed, SerialGrid(devices), kill).train(make_strategy(devices), start)
    devices.jobs.clear()
    resumed = Run(killed, SerialGrid(devices))
    resumed.train(make_strategy(devices), start)
    assert min(job.round for kind, job in devices.jobs if kind == "train") == killed_in + 1
    assert resumed.files() == whole


def test_a_run_killed_between_rows_and_checkpoint_repeats_the_round_without_repeating_its_rows(
    tmp_path: Path,
    devices: Any,
    make_strategy: Make,
    start: ArrayRecord,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from strategies import loop

    save = loop.save_checkpoint

    def dying(folder: Path, arm: str, checkpoint: Any, fingerprint: str) -> None:
        if checkpoint.round == 2:
            raise Killed
        save(folder, arm, checkpoint, fingerprint)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", dying)
        with pytest.raises(Killed):
            Run(tmp_path / "killed", SerialGrid(devices)).train(make_strategy(devices), start)
    resumed = Run(tmp_path / "killed", SerialGrid(devices))
    resumed.train(make_strategy(devices), start)
    assert resumed.files() == whole


def test_a_finished_run_trains_nothing_more(
    tmp_path: Path, devices: Any, make_strategy: Make, start: ArrayRecord
) -> None:
    first = Run(tmp_path, SerialGrid(devices)).train(make_strategy(devices), start)
    devices.jobs.clear()
    again = Run(tmp_path, SerialGrid(devices)).train(make_strategy(devices), start)
    assert devices.jobs == []
    assert {n: a.data for n, a in again.items()} == {n: a.data for n, a in first.items()}


def test_the_round_goes_on_without_a_device_that_fails_in_it(
    tmp_path: Path, devices: Any, make_strategy: Make, start: ArrayRecord
) -> None:
    devices.failing = {"bob": 2}
    final = Run(tmp_path, SerialGrid(devices)).train(make_strategy(devices), start, rounds=3, every=0)
    everybody, without_bob = (1 * 1.0 + 2 * 2.0 + 5 * 4.0) / 8, (1 * 1.0 + 5 * 4.0) / 6
    assert final["layer.A"].numpy() == pytest.approx(2 * everybody + without_bob, rel=1e-6)
    rows = ResultsFile(tmp_path).rows()
    assert [r["round"] for r in rows if r["device"] == "bob"] == [1, 3]


def test_a_round_without_any_sound_answer_stops_and_leaves_the_round_before(
    tmp_path: Path, devices: Any, make_strategy: Make, start: ArrayRecord
) -> None:
    devices.failing = dict.fromkeys(devices.steps, 3)
    with pytest.raises(AggregationError, match=r"round 3: no device answered soundly .*ann: failed"):
        Run(tmp_path, SerialGrid(devices)).train(make_strategy(devices), start)
    found = load_checkpoint(tmp_path / "checkpoints", "global", "base")
    assert found is not None
    assert found.round == 2
    assert len(ResultsFile(tmp_path).rows()) == 2 * 3
    devices.failing = {}
    Run(tmp_path, SerialGrid(devices)).train(make_strategy(devices), start)
    found = load_checkpoint(tmp_path / "checkpoints", "global", "base")
    assert found is not None
    assert found.round == 4


def test_progress_counts_rounds(tmp_path: Path, devices: Any, make_strategy: Make, start: ArrayRecord) -> None:
    told: list[tuple[str, int, int]] = []
    run = Run(tmp_path, SerialGrid(devices), lambda *what: told.append(what))
    run.train(make_strategy(devices), start, rounds=2)
    assert told == [("global", 0, 2), ("global", 1, 2), ("global", 2, 2)]
    assert checkpoint_path(tmp_path / "checkpoints", "global").exists()


def test_the_seconds_of_rounds_before_a_restart_count(
    tmp_path: Path, devices: Any, make_strategy: Make, start: ArrayRecord
) -> None:
    folder = tmp_path / "checkpoints"
    Run(tmp_path, SerialGrid(devices)).train(make_strategy(devices), start, rounds=2)
    assert load_seconds(folder)["global"] > 0
    save_seconds(folder, {"global": 1e6, "local": 7.0})
    loop = RoundLoop(SerialGrid(devices), folder, "base", ResultsFile(tmp_path))
    loop.train(make_strategy(devices), start, 4, 2, tuple(devices.steps))
    assert 1e6 < loop.seconds["global"] < 2e6
    assert loop.seconds["local"] == 7.0
    # Evaluations are repeated after a restart: only rounds are remembered.
    loop.seconds["global"] += 1e9
    assert 1e6 < load_seconds(folder)["global"] < 2e6


@pytest.mark.parametrize("text", ["{oops", "[1]", '{"global": "long"}', ""])
def test_a_run_does_not_fail_for_a_time_that_cannot_be_read(
    tmp_path: Path, devices: Any, make_strategy: Make, start: ArrayRecord, text: str
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / SECONDS_NAME).write_text(text, encoding="utf-8")
    Run(tmp_path, SerialGrid(devices)).train(make_strategy(devices), start, rounds=1)
    assert load_seconds(folder)["global"] > 0


# What survives beside the shared tensors

OPTIMIZERS = [name for name in SERVER_OPTIMIZERS if name != "none"]


def train(
    folder: Path, devices: Any, strategy: ArmStrategy, start: ArrayRecord, dies_at: int = 0, **more: Any
) -> ArrayRecord:
    def progress(what: str, done: int, total: int) -> None:
        if dies_at and done == dies_at:
            raise Killed

    loop = RoundLoop(SerialGrid(devices), folder, "base", ResultsFile(folder), progress=progress, **more)
    return loop.train(strategy, start, 4, 0, ())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dies_at", [1, 3])
def test_a_killed_run_goes_on_with_its_moments_to_the_same_bytes(
    tmp_path: Path, devices: Any, make_strategy: Make, start: ArrayRecord, name: str, dies_at: int
) -> None:
    def strategy() -> ArmStrategy:
        return make_strategy(devices, server_optimizer=name, **{"server-optimizer.rate": 0.3})

    whole = train(tmp_path / "whole", devices, strategy(), start)
    with pytest.raises(Killed):
        train(tmp_path / "killed", devices, strategy(), start, dies_at)
    resumed = train(tmp_path / "killed", devices, strategy(), start)
    assert {n: a.data for n, a in resumed.items()} == {n: a.data for n, a in whole.items()}
    files = [{p.name: p.read_bytes() for p in (tmp_path / run).glob("*.safetensors")} for run in ("whole", "killed")]
    assert files[0] == files[1]
    assert set(files[0]) == {"global.safetensors", "global.state-4.safetensors"}


def test_an_arm_with_common_rounds_gets_their_moments_too(
    tmp_path: Path, devices: Any, make_strategy: Make, start: ArrayRecord
) -> None:
    strategy = make_strategy(devices, server_optimizer="fedadam")
    train(tmp_path, devices, strategy, start, common={"global": CommonRounds("personalized", 2)})
    found = load_checkpoint(tmp_path, "personalized", "base")
    assert found is not None
    assert found.round == 2
    assert set(found.state) == {f"{kind}:{n}" for kind in ("first", "second") for n in start}
