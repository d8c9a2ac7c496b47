"""The table of strategies: complete, built by name from the settings, and refusing before the first round."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from flwr.app import ConfigRecord, Message, MessageType
from flwr.serverapp.strategy import Strategy
from safetensors import safe_open
from typer.testing import CliRunner

from clients.app import app as client_app
from fl.algorithms.arms import trained_arm
from fl.core.errors import ConfigError
from fl.protocol.wire import Job
from fl.settings.config import RunConfig, make_config, resting_factor
from fl.settings.names import ARMS, EDGE, SERVER_OPTIMIZERS, STRATEGIES
from sim.backends.serial import SerialGrid
from sim.cli.strategies import strategies
from strategies.app import run_server
from strategies.base import Roster, SharedFedAvg
from strategies.checkpoint import load_checkpoint
from strategies.optimizers import ServerOptimizer
from strategies.registry import ENTRIES, OPTIMIZER, RULES, check_strategy, make_strategy
from strategies.robust import Krum, NormBound, TrimmedMean

MakeRun = Callable[..., RunConfig]
COMMON: dict[str, Any] = {
    "roster": Roster({"ann": 1}, {"ann": 1}),
    "settings": ConfigRecord(),
    "job": Job(arm="personalized", round=0, devices=("ann",)),
}
SPLITS = {"ffa": "ffa", "fedsa": "fedsa"}


def settings(strategy: str, **changes: Any) -> RunConfig:
    return make_config({"strategy": strategy, "split": SPLITS.get(strategy, "gates"), **changes})


def test_the_table_and_the_settings_name_the_same() -> None:
    assert tuple(RULES) == STRATEGIES
    assert {entry.name for entry in ENTRIES if entry.kind == OPTIMIZER} == set(SERVER_OPTIMIZERS) - {"none"}
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_each_name_gives_an_ordinary_strategy_of_flower(name: str) -> None:
    config = settings(name)
    arm = trained_arm("personalized", config)
    assert arm is not None
    strategy = make_strategy(config, arm, **COMMON)
    assert isinstance(strategy, Strategy)
    assert type(strategy) is RULES[name].cls
    check_strategy(config)


def test_settings_reach_the_strategy() -> None:
    def made(**values: Any) -> Any:
        config = make_config(values)
        arm = trained_arm("global", config)
        assert arm is not None
        return make_strategy(config, arm, **COMMON)

    assert isinstance(krum := made(strategy="krum", hostile_share=0.1), Krum)
    assert krum.hostile_share == 0.1
    assert isinstance(trimmed := made(strategy="trimmed-mean", trim_share=0.3), TrimmedMean)
    assert trimmed.trim_share == 0.3
    assert isinstance(bound := made(strategy="norm-bound", norm_bound=2.5), NormBound)
    assert bound.norm_bound == 2.5
    assert made().optimizer is None
    assert made(server_optimizer="fedadam").optimizer == ServerOptimizer("fedadam", 0.01, 0.9)
    given = made(server_optimizer="fedavgm", server_learning_rate=0.5, server_momentum=0.3).optimizer
    assert given == ServerOptimizer("fedavgm", 0.5, 0.3)


@pytest.mark.parametrize("name", [arm for arm in ARMS if trained_arm(arm, RunConfig())])
def test_only_arms_that_federate_have_a_strategy_of_their_own(name: str) -> None:
    config = make_config({"strategy": "median", "server-optimizer": "fedadam"})
    arm = trained_arm(name, config)
    assert arm is not None
    strategy = make_strategy(config, arm, **COMMON)
    special = type(strategy) is not SharedFedAvg and strategy.optimizer is not None
    assert special == (name in ("global", "personalized"))


def test_a_strategy_with_a_split_of_its_own_leaves_the_arm_alone_whose_split_is_fixed() -> None:
    config = settings("ffa")
    arms = {name: trained_arm(name, config) for name in ("global", "personalized")}
    kinds = {name: type(make_strategy(config, arm, **COMMON)).__name__ for name, arm in arms.items() if arm}
    assert kinds == {"global": "SharedFedAvg", "personalized": "Ffa"}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        *(
            ({"strategy": n, "aggregation": EDGE}, ["aggregation = 'edge'", n])
            for n in ("median", "flexlora", "fednova")
        ),
        ({"strategy": "ffa"}, ["split = 'ffa'", "split = 'gates'"]),
        ({"strategy": "fedsa", "split": "fedsa", "arms": "global"}, ["personalized", "'global'"]),
        ({"strategy": "fedex", "server-optimizer": "fedadam"}, ["fedex", "server-optimizer = 'fedadam'"]),
    ],
)
def test_what_the_settings_show_to_be_impossible_is_refused(values: dict[str, str], named: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        check_strategy(make_config(values))
    assert all(part in str(error.value) for part in named)


class Counting(SerialGrid):
    """A grid that counts what it sends."""

    def __init__(self) -> None:
        super().__init__(client_app)
        self.kinds: list[str] = []

    def push_messages(self, messages: Any) -> Any:
        messages = list(messages)
        self.kinds += [message.metadata.message_type for message in messages]
        return super().push_messages(messages)


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "flexlora", "split": "fedsa"},
        {"strategy": "rolora", "split": "ffa"},
        {"strategy": "krum", "hostile_share": 0.4},
        {"strategy": "median", "aggregation": EDGE},
    ],
)
def test_a_strategy_that_cannot_work_is_refused_before_the_first_round(
    make_run: MakeRun, tmp_path: Path, changes: dict[str, Any]
) -> None:
    grid = Counting()
    with pytest.raises(ConfigError):
        run_server(grid, make_run(tmp_path / "run", **changes), 1)
    assert MessageType.TRAIN not in grid.kinds


# Whole runs of a small Whisper


@pytest.mark.parametrize("name", ["rolora", "flexlora", "fedex", "median", "ffa"])
def test_a_run_with_a_strategy_ends_and_resumes_to_the_same_bytes(
    make_run: MakeRun, tmp_path: Path, tensors_of: Callable[[Path], dict[str, bytes]], name: str
) -> None:
    changes = {"strategy": name, "split": SPLITS.get(name, "gates"), "evaluate_every": 0, "final_split": "validation"}
    whole = run_server(SerialGrid(client_app), make_run(tmp_path / "whole", **changes), 1)

    class Killed(BaseException):
        pass

    def kill(what: str, done: int, total: int) -> None:
        if done == 1:
            raise Killed

    config = make_run(tmp_path / "killed", **changes)
    with pytest.raises(Killed):
        run_server(SerialGrid(client_app), config, 1, kill)
    resumed = run_server(SerialGrid(client_app), config, 2)
    assert tensors_of(resumed) == tensors_of(whole)


class Watching(SerialGrid):
    """A grid that keeps the shared tensors of each training message and of its reply."""

    def __init__(self) -> None:
        super().__init__(client_app)
        self.rounds: list[tuple[int, dict[str, Any], dict[str, Any]]] = []

    def _handle(self, message: Message) -> Message:
        reply = super()._handle(message)
        if message.metadata.message_type == MessageType.TRAIN and "shared" in reply.content:
            job = Job.from_record(message.content.config_records["job"])
            sent, back = (m.content.array_records["shared"] for m in (message, reply))
            self.rounds.append((job.round, *({n: a.numpy() for n, a in r.items()} for r in (sent, back))))  # type: ignore[arg-type]
        return reply


@pytest.mark.parametrize("cohort", [1, 3])
def test_devices_leave_the_resting_factor_alone_and_train_the_other(
    make_run: MakeRun, tmp_path: Path, cohort: int
) -> None:
    grid = Watching()
    config = make_run(tmp_path / "run", strategy="rolora", cohort=cohort, evaluate_every=0)
    run_server(grid, config, 1)
    assert {server_round for server_round, _, _ in grid.rounds} == {1, 2}
    for server_round, sent, back in grid.rounds:
        resting = resting_factor("rolora", server_round)
        for name, values in sent.items():
            same = all((row == values).all() for row in back[name])
            assert same == name.endswith(f"_{resting}"), (server_round, name)
    assert [resting_factor("rolora", n) for n in (1, 2, 3)] == ["A", "B", "A"]


def test_the_correction_of_the_last_federated_round_is_beside_the_checkpoint(make_run: MakeRun, tmp_path: Path) -> None:
    folder = run_server(SerialGrid(client_app), make_run(tmp_path / "run", strategy="flora", evaluate_every=0), 1)
    (path,) = (folder / "checkpoints").glob("personalized.state-*.safetensors")
    with safe_open(path, framework="pt") as file:
        base = file.metadata()["base"]
    found = load_checkpoint(folder / "checkpoints", "personalized", base)
    assert found is not None
    layers = {name.rpartition(".")[0] for name in found.arrays}
    assert set(found.state) == {f"correction:{layer}" for layer in layers}


# The command


def test_the_command_lists_every_strategy_for_a_person_and_for_a_script() -> None:
    app = typer.Typer()
    app.command()(strategies)
    printed = CliRunner().invoke(app, [])
    assert printed.exit_code == 0
    assert all(entry.name in printed.output for entry in ENTRIES)
    found = json.loads(CliRunner().invoke(app, ["--json"]).output)
    assert [row["name"] for row in found] == [entry.name for entry in ENTRIES]
    assert all(row["shares"] and row["keeps"] and row["arxiv"] and row["composes_with"] for row in found)
    assert all(bool(row["class"]) == (row["setting"] == "strategy") for row in found)


def test_the_page_names_every_strategy_with_its_paper() -> None:
    page = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
    for entry in ENTRIES:
        assert f"`{entry.name}`" in page
        assert entry.arxiv in page
