"""Whole runs of a small Whisper with some algorithms: refused before the first round, or resumed to the same bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message, MessageType
from safetensors import safe_open

from clients.app import app as client_app
from clients.training.evaluate import Evaluation, evaluate
from fl.adapters.correction import load_correction
from fl.adapters.files import load_adapter
from fl.algorithms.shared.rolora import frozen_factor
from fl.algorithms.table import ALGORITHMS
from fl.bases.resolve import load_base
from fl.core.errors import ConfigError
from fl.protocol.wire import JOB, UPDATES, Job
from fl.settings.config import RunConfig
from sim.backends.serial import SerialGrid
from strategies.app import run_server
from strategies.checkpoint import load_checkpoint

MakeRun = Callable[..., RunConfig]


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
        {"algorithm": "flexlora", "split": "fedsa"},
        {"algorithm": "rolora", "split": "layers:decoder.*_B"},
        {"algorithm": "krum", "hostile_share": 0.4},
        {"algorithm": "median", "aggregation": "edge"},
    ],
)
def test_an_algorithm_that_cannot_work_is_refused_before_the_first_round(
    make_run: MakeRun, tmp_path: Path, changes: dict[str, Any]
) -> None:
    grid = Counting()
    with pytest.raises(ConfigError):
        run_server(grid, make_run(tmp_path / "run", **changes), 1)
    assert MessageType.TRAIN not in grid.kinds


# Whole runs of a small Whisper


@pytest.mark.parametrize("name", ["rolora", "flexlora", "fedex", "median", "ffa"])
def test_a_run_with_an_algorithm_ends_and_resumes_to_the_same_bytes(
    make_run: MakeRun, tmp_path: Path, tensors_of: Callable[[Path], dict[str, bytes]], name: str
) -> None:
    changes = {
        "algorithm": name,
        "split": ALGORITHMS[name].split or "gates",
        "evaluate_every": 0,
        "final_split": "validation",
    }
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


@pytest.mark.parametrize("changes", [{}, {"secure_sum": "pairwise"}, {"sample": 3}], ids=str)
def test_the_number_of_nodes_changes_no_bit(
    make_run: MakeRun, tmp_path: Path, tensors_of: Callable[[Path], dict[str, bytes]], changes: dict[str, Any]
) -> None:
    """Cohorts of two, which are other devices' neighbours on other nodes unless they are the same everywhere."""
    common = {"cohort": 2, "arms": "global,personalized", "evaluate_every": 0, **changes}
    found = [
        tensors_of(run_server(SerialGrid(client_app, nodes), make_run(tmp_path / str(nodes), **common), 1))
        for nodes in (1, 2, 3)
    ]
    assert found[0] == found[1] == found[2]


class Watching(SerialGrid):
    """A grid that keeps the updates of each training message's reply."""

    def __init__(self) -> None:
        super().__init__(client_app)
        self.rounds: list[tuple[int, dict[str, Any]]] = []

    def _handle(self, message: Message) -> Message:
        reply = super()._handle(message)
        if message.metadata.message_type == MessageType.TRAIN and UPDATES in reply.content:
            job = Job.from_record(message.content.config_records[JOB])
            self.rounds.append((job.round, {n: a.numpy() for n, a in reply.content.array_records[UPDATES].items()}))
        return reply


@pytest.mark.parametrize("cohort", [1, 3])
def test_devices_leave_the_frozen_factor_alone_and_train_the_other(
    make_run: MakeRun, tmp_path: Path, cohort: int
) -> None:
    grid = Watching()
    run_server(grid, make_run(tmp_path / "run", algorithm="rolora", cohort=cohort, evaluate_every=0), 1)
    assert {server_round for server_round, _ in grid.rounds} == {1, 2}
    for server_round, updates in grid.rounds:
        for name, rows in updates.items():
            still = not rows.any()
            assert still == name.endswith(f"_{frozen_factor(server_round)}"), (server_round, name)


def test_the_correction_of_the_last_federated_round_is_beside_the_checkpoint(make_run: MakeRun, tmp_path: Path) -> None:
    folder = run_server(SerialGrid(client_app), make_run(tmp_path / "run", algorithm="flora", evaluate_every=0), 1)
    (path,) = (folder / "checkpoints").glob("personalized.state-*.safetensors")
    with safe_open(path, framework="pt") as file:
        base = file.metadata()["base"]
    found = load_checkpoint(folder / "checkpoints", "personalized", base)
    assert found is not None
    layers = {name.rpartition(".")[0] for name in found.arrays}
    assert set(found.state) == {f"correction:{layer}" for layer in layers}


def test_whoever_decodes_shared_tensors_has_their_correction_in_the_frozen_weights(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = "base_model.model.model.decoder.layers.0.self_attn.q_proj"
    seen: list[torch.Tensor] = []

    def looking(model: Any, task: Any, *arguments: Any, **options: Any) -> Evaluation:
        frozen = task.model.get_submodule(layer.removeprefix("base_model.model."))
        wrapped = model.get_submodule(layer).base_layer if hasattr(model, "peft_config") else frozen
        seen.append(wrapped.weight.detach().clone())
        return evaluate(model, task, *arguments, **options)

    config = make_run(tmp_path / "run", algorithm="fedex", arms="zero-shot,global,global+finetune", evaluate_every=0)
    base = load_base(config.base.name)
    plain = base.model.get_submodule(layer.removeprefix("base_model.model.")).weight.detach().clone()
    monkeypatch.setattr("clients.app.evaluate", looking)
    folder = run_server(SerialGrid(client_app), config, 1)
    (file,) = (folder / "corrections").iterdir()
    corrected = plain + load_correction(file, base.fingerprint)[layer]
    assert not torch.equal(corrected, plain)
    adapters = list(folder.glob("devices/global*/*/adapter"))  # of the fine-tuned, too
    assert sum(torch.equal(weight, corrected) for weight in seen) == len(adapters) > 0
    assert sum(torch.equal(weight, plain) for weight in seen) == len(seen) - len(adapters) > 0, "of the frozen base"
    for adapter in adapters:
        assert load_adapter(adapter)[1].base_fingerprint == f"{base.fingerprint}+correction:{file.stem}"


def test_an_adapter_of_a_persons_own_decodes_on_the_untouched_base(make_run: MakeRun, tmp_path: Path) -> None:
    config = make_run(tmp_path / "run", algorithm="fedex,ditto", arms="personalized,neutral", evaluate_every=0)
    folder = run_server(SerialGrid(client_app), config, 1)
    base = load_base(config.base.name).fingerprint
    trained = {name: load_adapter(path)[1].base_fingerprint == base
               for name in ("personalized", "neutral") for path in folder.glob(f"devices/{name}/*/adapter")}  # fmt: skip
    assert trained == {"personalized": True, "neutral": False}
