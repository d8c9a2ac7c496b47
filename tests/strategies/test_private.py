"""Private means in whole runs without training: each device moves its shared tensors by a step that the test knows."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MessageType, RecordDict
from safetensors.numpy import load_file

from clients.app import app
from clients.updates.reply import DeviceResult
from clients.worker import Worker
from fl.adapters.state import State
from fl.algorithms.arms import EVERYONE
from fl.algorithms.hostile import attackers
from fl.algorithms.plan import Phase
from fl.codecs.table import make_codec
from fl.codecs.tensors import decode_all, encode_all
from fl.core.errors import AggregationError, AudioError, ConfigError
from fl.core.rng import derive_random
from fl.methods.recipes import fresh_state
from fl.privacy.dp import PrivacyError, add_noise, honest_devices, noise_share
from fl.privacy.ledger import BudgetError
from fl.privacy.randomness import key_from_seed, standard_normal
from fl.privacy.secure_sum.keys import SecureSumError
from fl.protocol.wire import Job, split_key
from fl.runs.schema import PRIVACY_NAME
from fl.settings.config import make_config
from fl.settings.names import NO_OP
from fl.tasks.noop import WIDTH
from fl.tasks.table import load_task
from sim.backends.serial import SerialGrid
from strategies.account import LEDGER_NAME
from strategies.app import run_server
from strategies.checkpoint import load_checkpoint

ARM, SEED, DEVICES = "personalized", 1, 6
Tensors = dict[str, np.ndarray]
Run = Callable[..., Tensors]


class Killed(BaseException):
    """The end of the process."""


def number(device_id: str) -> int:
    return 0 if device_id == EVERYONE else int(device_id.rsplit("-", 1)[-1])


def step_of(device_id: str) -> float:
    """How far a device moves every number of its shared tensors: another way for each."""
    return (-1.0) ** number(device_id) * 0.01 * (1 + number(device_id))


def name_of(place: int) -> str:
    return f"device-{place:06d}"


SETTINGS = {
    "task": NO_OP,
    "devices": DEVICES,
    "new_people": 0,
    "rounds": 1,
    "private_share": 0.0,
    "arms": ARM,
    "evaluate_every": 0,
    "rank": 2,
    "cohort": 1,  # each device on a node of its own
    "seed": SEED,
}
NAMES = [name_of(place) for place in range(DEVICES)]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Devices that fail to train; all others take their step."""
    broken: set[str] = set()

    def train(worker: Worker, job: Job, device_id: str, incoming: State) -> DeviceResult:
        if device_id in broken:
            raise AudioError("no microphone")
        moved = {name: tensor + np.float32(step_of(device_id)) for name, tensor in incoming.items()}
        sent = sum(128 + 4 * tensor.numel() for tensor in moved.values())
        numbers = {"examples": 1 + number(device_id), "steps": 1, "loss": 0.5, "bytes-up": sent, "bytes-down": sent}
        return DeviceResult(
            device_id, {**numbers, "seconds-train": 0.0}, shared=moved if job.phase is Phase.FEDERATE else {}
        )

    monkeypatch.setattr("clients.app.train_device", train)
    return broken


class DroppingGrid(SerialGrid):
    """A grid on which ``drops`` participants fall silent from a step of the secure sum on: 1 keys, 2 shares, 3 vector, 4 reveal."""

    def __init__(self, drops: dict[str, int] | None = None, nodes: int = 2) -> None:
        super().__init__(app, nodes)
        self.drops = drops or {}
        self.sent: list[tuple[str, RecordDict]] = []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        messages = list(messages)
        self.sent += [(message.metadata.message_type, message.content) for message in messages]
        replies = list(super().send_and_receive(messages, timeout=timeout))
        for reply in replies:
            for key, record in list(reply.content.config_records.items()) if reply.has_content() else []:
                step = {"AdvertiseKeys": 1, "ShareKeys": 2, "MaskedInput": 3, "Unmask": 4}.get(
                    str(record.get("kind")), 0
                )
                if step >= self.drops.get(split_key(key)[1], 9) > 0:
                    del reply.content[key]
        return replies


@pytest.fixture
def run(tmp_path: Path, failing: set[str]) -> Run:
    """The shared tensors after a run with these settings, on two nodes unless a grid is given."""

    def start(grid: SerialGrid | None = None, folder: str = "run", **settings: Any) -> Tensors:
        values = {**SETTINGS, "output": str(tmp_path / folder)}
        run_server(grid or SerialGrid(app), make_config({**values, **settings}), 1)
        return finished(tmp_path / folder)

    return start


def finished(folder: Path) -> Tensors:
    found = load_checkpoint(folder / "checkpoints", ARM, f"{NO_OP}:{WIDTH}")
    assert found is not None
    return {name: array.numpy() for name, array in found.arrays.items()}


@pytest.fixture
def start() -> Tensors:
    """What every run starts from."""
    config = make_config(SETTINGS)
    return {name: tensor.numpy() for name, tensor in fresh_state(config, load_task(config), "none").items()}


def entries(start: Tensors) -> int:
    return sum(value.size for value in start.values())


def clipped_step(start: Tensors, device_id: str, bound: float) -> float:
    """A device's step after clipping its update, all of whose numbers are the same."""
    length = abs(step_of(device_id)) * math.sqrt(entries(start))
    return step_of(device_id) * min(1.0, bound / length)


def server_noise(start: Tensors, deviation: float, server_round: int = 1) -> Tensors:
    zeros = {name: np.zeros(value.shape) for name, value in start.items()}
    return add_noise(zeros, deviation, key_from_seed(SEED, ARM, server_round, "server noise"))


def assert_close(found: Tensors, wanted: Tensors, atol: float = 1e-6) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=atol, err_msg=name)


BOUND = 0.2  # between the norms of the devices' updates
NOISE = {"dp": "server", "noise_multiplier": 2.0, "update_norm": BOUND}


@pytest.mark.parametrize("aggregation", ["device", "edge"])
def test_clipped_updates_and_the_noise_of_the_multiplier_are_divided_by_the_devices_that_were_planned(
    run: Run, start: Tensors, failing: set[str], aggregation: str
) -> None:
    failing.add(NAMES[2])
    lengths = [abs(step_of(name)) * math.sqrt(entries(start)) for name in NAMES]
    assert min(lengths) < BOUND < max(lengths)
    noise = server_noise(start, 2.0 * BOUND)
    total = sum(clipped_step(start, name, BOUND) for name in NAMES if name not in failing)
    wanted = {name: value + (total + noise[name]) / DEVICES for name, value in start.items()}
    assert_close(run(**NOISE, aggregation=aggregation), wanted)


def test_capped_weights_are_shares_of_the_cap(run: Run, start: Tensors) -> None:
    noise = server_noise(start, 2.0 * BOUND)
    total = sum(clipped_step(start, name, BOUND) * min(number(name) + 1, 3) / 3 for name in NAMES)
    wanted = {name: value + (total + noise[name]) / DEVICES for name, value in start.items()}
    for aggregation in ("device", "edge"):
        assert_close(run(folder=aggregation, **NOISE, example_cap=3, aggregation=aggregation), wanted)


@pytest.mark.parametrize("aggregation", ["device", "edge"])
def test_the_clipping_norm_follows_the_quantile_and_survives_a_restart(
    run: Run, start: Tensors, aggregation: str, tmp_path: Path
) -> None:
    settings = {**NOISE, "clip_quantile": 0.5, "aggregation": aggregation, "rounds": 2, "noise_multiplier": 3.0}
    run(**settings)
    bound = BOUND
    for server_round in (1, 2):
        within = sum(abs(step_of(name)) * math.sqrt(entries(start)) <= bound for name in NAMES)
        deviation = math.sqrt(1.25) * 3.0
        noise = float(standard_normal(key_from_seed(SEED, ARM, server_round, "count noise"), 1)[0]) * deviation
        share = min(1.0, max(0.0, (within - DEVICES / 2 + noise) / DEVICES + 0.5))
        bound *= math.exp(-0.2 * (share - 0.5))
    kept = load_checkpoint(tmp_path / "run" / "checkpoints", ARM, f"{NO_OP}:{WIDTH}")
    assert kept is not None
    assert kept.state["privacy:bound"] == pytest.approx([bound])


def test_a_poisson_sample_is_drawn_device_by_device_and_an_empty_one_releases_noise_alone(
    run: Run, start: Tensors
) -> None:
    settings = {**NOISE, "sampling": "poisson", "noise_multiplier": 20.0}
    draw = derive_random(SEED, ARM, 1, "private sample")
    chosen = [name for name in NAMES if draw.random() < 0.5]
    assert 0 < len(chosen) < DEVICES
    noise = server_noise(start, 20.0 * BOUND)
    total = sum(clipped_step(start, name, BOUND) for name in chosen)
    wanted = {name: value + (total + noise[name]) / 3 for name, value in start.items()}
    assert_close(run(**settings, sample=0.5), wanted)


def test_an_empty_poisson_sample_releases_noise_alone(run: Run) -> None:
    def drawn(seed: int) -> list[str]:
        draw = derive_random(seed, ARM, 1, "private sample")
        return [name for name in NAMES if draw.random() < 1 / DEVICES]

    nobody = next(seed for seed in range(1, 100) if not drawn(seed))
    settings = {**NOISE, "sampling": "poisson", "noise_multiplier": 20.0, "sample": 1 / DEVICES, "seed": nobody}
    found = run(**settings)
    zeros = {name: np.zeros(value.shape) for name, value in found.items()}
    noise = add_noise(zeros, 20.0 * BOUND, key_from_seed(nobody, ARM, 1, "server noise"))
    started_at_zero = {name: value for name, value in found.items() if name.endswith("_B")}
    assert_close(started_at_zero, {name: noise[name] for name in started_at_zero})


def test_an_arm_that_does_not_federate_is_paid_for_by_nobody(run: Run, tmp_path: Path) -> None:
    budget = {"dp": "server", "update_norm": BOUND, "sample": 3, "epsilon_budget": 50.0, "rounds": 2}
    spent = []
    for arms in (ARM, f"centralized,{ARM}"):
        run(folder=arms, arms=arms, **budget)
        spent.append(json.loads((tmp_path / arms / PRIVACY_NAME).read_text(encoding="utf-8")))
    assert spent[0] == spent[1]


# Secure sums


def secure_mean(start: Tensors, names: Iterable[str], bound: float = BOUND) -> Tensors:
    mean = np.mean([clipped_step(start, name, bound) for name in names])
    return {name: value + mean for name, value in start.items()}


def test_a_secure_sum_is_the_mean_of_clipped_updates_and_no_single_update_travels(run: Run, start: Tensors) -> None:
    wanted = secure_mean(start, NAMES)
    grid = DroppingGrid()
    assert_close(run(grid, secure_sum="pairwise", update_norm=BOUND), wanted)
    assert [kind for kind, _ in grid.sent if kind != MessageType.QUERY] == [
        *["query.secure_sum"] * 4, "train", "train", *["query.secure_sum"] * 2,
    ]  # fmt: skip
    weights = [1 + number(name) for name in NAMES]
    total = np.average([clipped_step(start, name, BOUND) for name in NAMES], weights=np.minimum(weights, 3))
    capped = run(
        DroppingGrid(nodes=3),
        folder="edge",
        secure_sum="pairwise",
        update_norm=BOUND,
        example_cap=3,
        aggregation="edge",
    )
    assert_close(capped, {name: value + total for name, value in start.items()})


@pytest.mark.parametrize("doubled", [False, True], ids=["half kept", "less"])
def test_a_node_tells_once_that_a_fixed_norm_cuts_off_more_than_half_of_an_update(
    run: Run, start: Tensors, caplog: pytest.LogCaptureFixture, doubled: bool
) -> None:
    longest = step_of(NAMES[-1]) * math.sqrt(entries(start))
    bound = abs(longest) / (2.1 if doubled else 1.9)
    run(SerialGrid(app, nodes=1), secure_sum="pairwise", update_norm=bound, rounds=2)
    told = [message for message in caplog.messages if f"update-norm = {bound:g} is short" in message]
    assert len(told) == doubled
    assert all(f"device {NAMES[-1]} " in message and "loses 52 %" in message for message in told)


@pytest.mark.parametrize(
    ("cut", "quantile"), [(2.1, 0.0), (1.9, 0.0), (2.1, 0.5)], ids=["less", "half kept", "adaptive"]
)
def test_an_aggregator_that_clips_tells_once_that_a_fixed_norm_cuts_most_updates_short(
    run: Run, start: Tensors, caplog: pytest.LogCaptureFixture, cut: float, quantile: float
) -> None:
    lengths = sorted(abs(step_of(name)) * math.sqrt(entries(start)) for name in NAMES)
    bound = lengths[len(NAMES) // 2 - 1] / cut  # one more than half of them are longer than cut times that, or as long
    run(dp="server", noise_multiplier=5.0, update_norm=bound, clip_quantile=quantile, rounds=2)
    told = [message for message in caplog.messages if f"update-norm = {bound:g} is short: most updates" in message]
    assert len(told) == (cut > 2 and not quantile)


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_the_sum_is_exact_whoever_drops_out_at_a_step(run: Run, start: Tensors, step: int, tmp_path: Path) -> None:
    gone = NAMES[1]
    remaining = NAMES if step == 4 else [name for name in NAMES if name != gone]  # its vector had arrived
    assert_close(
        run(DroppingGrid({gone: step}), secure_sum="pairwise", update_norm=BOUND), secure_mean(start, remaining)
    )
    assert not list((tmp_path / "run").glob("devices/secure-sums/*/*"))


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_below_the_threshold_there_is_no_sum_and_the_state_before_is_intact(
    run: Run, start: Tensors, step: int, tmp_path: Path
) -> None:
    settings = {"secure_sum": "pairwise", "update_norm": BOUND}
    before = run(**settings)
    drops = dict.fromkeys(NAMES[:2], step)  # four of six stay, five are needed
    folder = tmp_path / "run"
    text = (folder / "config.toml").read_text(encoding="utf-8").replace("rounds = 1\n", "rounds = 2\n")
    (folder / "config.toml").write_text(text, encoding="utf-8")
    with pytest.raises(SecureSumError, match="4 of 6 devices sent"):
        run(DroppingGrid(drops), **settings, rounds=2)
    assert not list(folder.glob("devices/secure-sums/*/*"))  # no seed outlives its session
    assert_close(finished(folder), before, atol=0)


def test_a_device_that_fails_to_train_is_out_of_the_sum_and_named(
    run: Run, start: Tensors, failing: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    failing.add(NAMES[3])
    found = run(secure_sum="pairwise", update_norm=BOUND)
    assert_close(found, secure_mean(start, [name for name in NAMES if name not in failing]))
    assert f"{NAMES[3]} left out" in caplog.text


def test_one_participant_has_nobody_to_hide_among(run: Run) -> None:
    with pytest.raises(SecureSumError, match="1 participant"):
        run(SerialGrid(app, nodes=1), secure_sum="pairwise", aggregation="edge")


def test_each_devices_share_of_the_noise_adds_up_to_the_noise_that_is_accounted_for(run: Run, start: Tensors) -> None:
    found = run(dp="distributed", secure_sum="pairwise", noise_multiplier=2.0, update_norm=BOUND)
    assert honest_devices(DEVICES, dropouts=0.3) == 5
    keys = [key_from_seed(SEED, ARM, 1, name, "distributed noise") for name in NAMES]
    noise = sum(standard_normal(key, entries(start) + 1) for key in keys) * noise_share(2.0, BOUND, 5)
    total = sum(clipped_step(start, name, BOUND) for name in NAMES)
    wanted, place = {}, 0
    for name in sorted(start):
        size = start[name].size
        part = noise[place : place + size].reshape(start[name].shape)
        wanted[name], place = start[name] + (total + part) / DEVICES, place + size
    assert_close(found, wanted, atol=1e-5)


def test_distributed_noise_goes_with_sums_at_nodes_and_an_adaptive_norm(
    run: Run, start: Tensors, tmp_path: Path
) -> None:
    settings = {"dp": "distributed", "secure_sum": "pairwise", "clip_quantile": 0.5, "noise_multiplier": 1.5}
    run(SerialGrid(app, nodes=3), **settings, update_norm=BOUND, aggregation="edge")
    said = json.loads((tmp_path / "run" / PRIVACY_NAME).read_text(encoding="utf-8"))
    assert "nodes, each with the sum over its devices" in said["statement"]
    assert "0.5 quantile" in said["statement"]


# Local noise and compression


def test_local_noise_is_added_to_each_clipped_update_before_it_leaves(run: Run, start: Tensors) -> None:
    found = run(dp="local", noise_multiplier=9.0, update_norm=BOUND)
    weights = np.array([1.0 + place for place in range(DEVICES)]) / sum(range(1, DEVICES + 1))
    total = {name: np.zeros(value.shape) for name, value in start.items()}
    for device_id, weight in zip(NAMES, weights, strict=True):
        flat = {name: np.full(value.shape, clipped_step(start, device_id, BOUND)) for name, value in start.items()}
        noisy = add_noise(flat, 9.0 * BOUND, key_from_seed(SEED, ARM, 1, device_id, "local noise"))
        for name in total:
            total[name] += weight * noisy[name]
    assert_close(found, {name: value + total[name] for name, value in start.items()}, atol=1e-5)


@pytest.mark.parametrize(("codec", "aggregation"), [("int8", "device"), ("top-k:0.2+fp16", "device"), ("fp16", "edge")])
def test_the_aggregate_is_of_what_was_decoded_and_the_bytes_are_those_that_were_sent(
    run: Run, start: Tensors, codec: str, aggregation: str, tmp_path: Path
) -> None:
    found = run(codec=codec, aggregation=aggregation)
    weights = np.array([1.0 + place for place in range(DEVICES)]) / sum(range(1, DEVICES + 1))
    shapes = {name: value.shape for name, value in start.items()}
    total = {name: np.zeros(value.shape) for name, value in start.items()}
    for device_id, weight in zip(NAMES, weights, strict=True):
        # As a device finds it: what it trained less what it started from, with the rounding of both.
        update = {name: np.float32(value + np.float32(step_of(device_id))) - value for name, value in start.items()}
        encoded = encode_all(update, make_codec(codec))
        for name, value in decode_all(encoded, shapes, make_codec(codec)).items():
            total[name] += weight * value
    assert_close(found, {name: value + total[name] for name, value in start.items()})
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert {row["bytes_up"] for row in rows} == {128 + sum(payload.nbytes for payload in encoded.values())}


def test_noise_at_the_aggregator_goes_with_a_codec_of_limited_updates(run: Run, start: Tensors) -> None:
    """Devices clip for the codec's limit, to the norm of the round."""
    found = run(dp="server", noise_multiplier=1.0, update_norm=BOUND, codec="int8:0.5")
    total = sum(clipped_step(start, name, BOUND) for name in NAMES)
    noise = server_noise(start, BOUND)
    assert_close(found, {n: value + (total + noise[n]) / DEVICES for n, value in start.items()}, atol=0.5 / 127)


def test_with_error_feedback_what_arrived_and_the_residual_are_what_was_sent(
    run: Run, start: Tensors, tmp_path: Path
) -> None:
    found = run(codec="top-k:0.3", error_feedback=True, rounds=3, devices=2)
    weights = {NAMES[0]: 1 / 3, NAMES[1]: 2 / 3}
    for name in start:
        residual = 0.0
        for device_id, weight in weights.items():
            folder = tmp_path / "run" / "devices" / f"{ARM}%2eresidual" / device_id
            residual = residual + weight * load_file(sorted(folder.glob("state-*"))[-1])[name]
        sent = 3 * sum(weight * step_of(device_id) for device_id, weight in weights.items())
        np.testing.assert_allclose(found[name] - start[name] + residual, sent, atol=1e-6)


# The account


def test_epsilon_and_every_assumption_are_in_the_folder_and_in_the_log(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="idiolect.server")
    run(**NOISE)
    said = json.loads((tmp_path / "run" / PRIVACY_NAME).read_text(encoding="utf-8"))
    assert said["epsilon"] == pytest.approx(1.993, abs=0.001)
    assert (said["delta"], said["rounds_paid"], said["population"], said["simulated"]) == (1e-5, 1, DEVICES, True)
    assert said["statement"].splitlines()[1:] == [f"- {line}" for line in said["assumptions"]]
    for line in said["statement"].splitlines():
        assert line in caplog.text
    assert any("SIMULATION" in line for line in said["assumptions"])


@pytest.mark.parametrize(
    ("settings", "paid"),
    [
        ({}, 10),  # of 12 rounds the last two train gates alone
        ({"method": "lora", "split": "fedsa"}, 12),  # without gates every round sends updates
        ({"split": "fedsa"}, 10),
        ({"arms": "global,personalized"}, 12),  # the ten rounds that both have in common are paid once
        ({"arms": "global,personalized", "private_share": 0.0}, 12 + 12),
        ({"arms": "global,personalized,local,global+finetune"}, 12),
    ],
)
def test_as_many_rounds_are_planned_and_paid_as_send_updates(
    run: Run, tmp_path: Path, settings: dict[str, Any], paid: int
) -> None:
    changes = {**NOISE, "noise_multiplier": 50.0, "rounds": 12, "gate": "self", "private_share": 0.15, **settings}
    grid = DroppingGrid()
    run(grid, **changes)
    said = json.loads((tmp_path / "run" / PRIVACY_NAME).read_text(encoding="utf-8"))
    assert said["rounds_planned"] == said["rounds_paid"] == paid
    jobs = [Job.from_record(c.config_records["job"]) for kind, c in grid.sent if kind == MessageType.TRAIN]
    federating = {(job.arm, job.round) for job in jobs if job.phase is Phase.FEDERATE}
    assert len({place for place in federating if place[0] in ("global", "personalized")}) == paid


def test_a_spent_budget_stops_the_run_and_the_last_paid_round_stays(run: Run, tmp_path: Path) -> None:
    settings = {**NOISE, "rounds": 3, "epsilon_budget": 3.0}  # pays for two rounds: 1.99, 2.94, 3.71
    for _ in range(2):  # and it stays spent when the run is started again
        with pytest.raises(BudgetError, match="round 3"):
            run(**settings)
        found = load_checkpoint(tmp_path / "run" / "checkpoints", ARM, f"{NO_OP}:{WIDTH}")
        assert found is not None
        assert found.round == 2
        said = json.loads((tmp_path / "run" / PRIVACY_NAME).read_text(encoding="utf-8"))
        assert (said["rounds_paid"], said["rounds_planned"]) == (2, 3)
        assert said["epsilon"] <= 3.0


def test_a_budget_that_pays_for_no_round_is_refused_before_anything_is_trained(run: Run) -> None:
    grid = DroppingGrid()
    with pytest.raises(BudgetError, match="does not pay for a single round"):
        run(grid, **NOISE, epsilon_budget=1.0)
    assert {kind for kind, _ in grid.sent} == {MessageType.QUERY}


def test_without_a_multiplier_the_least_noise_is_found_that_the_budget_allows(run: Run, tmp_path: Path) -> None:
    run(dp="server", rounds=2, epsilon_budget=5.0)
    said = json.loads((tmp_path / "run" / PRIVACY_NAME).read_text(encoding="utf-8"))
    assert 4.9 < said["epsilon"] <= 5.0
    assert said["rounds_paid"] == 2


def test_a_killed_simulation_resumes_to_the_same_numbers_and_pays_no_round_twice(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**NOISE, "rounds": 2, "clip_quantile": 0.5}
    whole = run(folder="whole", **settings)
    save = "strategies.loop.save_checkpoint"
    with monkeypatch.context() as patch:

        def die(*_: object) -> None:
            raise Killed

        patch.setattr(save, die)
        with pytest.raises(Killed):
            run(**settings)
    assert_close(run(**settings), whole, atol=0)
    lines = [(tmp_path / name / LEDGER_NAME).read_text().splitlines() for name in ("whole", "run")]
    assert [len(part) for part in lines] == [3, 3]  # settings and two rounds


def test_a_resumed_run_with_another_guarantee_is_refused(run: Run, tmp_path: Path) -> None:
    run(**NOISE)
    (tmp_path / "run" / "config.toml").unlink()
    with pytest.raises(PrivacyError, match="begun with other settings"):
        run(**{**NOISE, "update_norm": 0.1})


# What does not go together


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"secure_sum": "pairwise", "algorithm": "median"}, "algorithm = 'median'"),
        ({"dp": "server", "algorithm": "flexlora"}, "algorithm = 'flexlora'"),
        ({"dp": "server", "algorithm": "krum"}, "algorithm = 'krum'"),
        ({"dp": "distributed"}, "secure-sum = 'pairwise'"),
        ({"dp": "local", "secure_sum": "pairwise"}, "dp = 'distributed'"),
        ({"dp": "local", "clip_quantile": 0.5}, "clip-quantile = 0"),
        ({"sampling": "poisson"}, "sampling = 'fixed'"),
        ({"secure_sum": "pairwise", "codec": "int8"}, "codec = 'fp32'"),
        ({"secure_sum": "pairwise", "secure_sum.threshold": 0.5}, "more than 0.5"),
        ({"codec": "int8", "aggregation": "edge"}, "int8:LIMIT"),
        ({"codec": "top-k:0.1", "aggregation": "edge"}, "aggregation = 'device'"),
        ({"codec": "mp3"}, "codec 'mp3' is unknown"),
        ({"codec": "int8:0.5", "dp": "server", "clip_quantile": 0.5}, "clip-quantile = 0"),
        ({"error_feedback": True}, "choose a codec"),
        ({"algorithm": "clusters", "codec": "int8"}, "set codec = 'fp32'"),
        ({"attack": "scale", "aggregation": "edge"}, "attack = 'label-swap'"),
        ({"attack": "scale", "secure_sum": "pairwise"}, "attack = 'label-swap'"),
    ],
)  # fmt: skip
def test_what_does_not_compose_is_refused_before_anything_is_sent_or_written(
    run: Run, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    grid = DroppingGrid()
    with pytest.raises(ConfigError, match=named):
        run(grid, **settings)
    assert not grid.sent
    assert not (tmp_path / "run").exists()


def test_fixed_sampling_has_no_pld_accountant_and_says_so(run: Run) -> None:
    with pytest.raises(PrivacyError, match="'pld' does not do fixed"):
        run(**NOISE, sample=0.5, accountant="pld")


def test_when_nobody_answers_the_round_is_skipped_with_the_reason(run: Run, failing: set[str]) -> None:
    failing.update(NAMES)
    with pytest.raises(AggregationError, match="failed: AudioError: no microphone"):
        run(**NOISE)


# Hostile devices, deployed ones, late ones


@pytest.mark.parametrize(("attack", "factor"), [("sign-flip", -1.0), ("scale", 100.0)])
def test_hostile_devices_send_the_attack_and_the_log_says_so(
    run: Run, start: Tensors, attack: str, factor: float, caplog: pytest.LogCaptureFixture
) -> None:
    hostile = attackers(NAMES, 0.3, SEED)
    assert len(hostile) == 2
    found = run(attack=attack, attacker_share=0.3)
    weights = [1 + number(name) for name in NAMES]
    steps = [step_of(name) * (factor if name in hostile else 1.0) for name in NAMES]
    assert_close(found, {name: value + np.average(steps, weights=weights) for name, value in start.items()}, atol=1e-5)
    assert "STUDY OF HOSTILE DEVICES" in caplog.text
    assert all(name in caplog.text for name in hostile)


def test_an_attack_is_deterministic(run: Run, start: Tensors) -> None:
    settings = {"attack": "random", "attacker_share": 0.5}
    once, again = run(**settings), run(folder="again", **settings)
    assert_close(once, again, atol=0)
    assert any((once[name] != value).any() for name, value in start.items())


def deployed(store: Path, devices: int = DEVICES) -> DroppingGrid:
    """A node for each device, which says its name and where it keeps what is private."""
    grid = DroppingGrid(nodes=devices)
    for place, context in enumerate(grid._contexts.values()):
        context.node_config = {"device-id": name_of(place), "store": str(store / name_of(place)), "manifest": "run"}
    return grid


@pytest.mark.parametrize("attack", ["sign-flip", "label-swap"])
def test_no_deployed_device_is_made_hostile(run: Run, attack: str, tmp_path: Path) -> None:
    grid = deployed(tmp_path)
    with pytest.raises(ConfigError, match="some of these nodes are deployed"):
        run(grid, attack=attack)
    assert {kind for kind, _ in grid.sent} == {MessageType.QUERY}


def test_deployed_devices_get_noise_that_no_seed_tells(run: Run, start: Tensors, tmp_path: Path) -> None:
    found = [run(deployed(tmp_path / "stores" / folder), folder=folder, **NOISE) for folder in ("one", "two")]
    assert any((found[0][name] != found[1][name]).any() for name in start)
    said = json.loads((tmp_path / "one" / PRIVACY_NAME).read_text(encoding="utf-8"))
    assert said["simulated"] is False
    assert "SIMULATION" not in said["statement"]


def test_who_answers_too_late_is_named_and_the_round_ends_without_it(
    run: Run, start: Tensors, caplog: pytest.LogCaptureFixture
) -> None:
    class LateGrid(SerialGrid):
        """A grid whose second node answers training after the deadline."""

        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            replies = list(super().send_and_receive(messages, timeout=timeout))
            kinds = {reply.metadata.message_type for reply in replies}
            late = 2 if MessageType.TRAIN in kinds else 0
            return [reply for reply in replies if reply.metadata.src_node_id != late]

    found = run(LateGrid(app, 2))
    there = NAMES[::2]
    weights = [1 + number(name) for name in there]
    mean = np.average([step_of(name) for name in there], weights=weights)
    assert_close(found, {name: value + mean for name, value in start.items()})
    assert all(f"{name} left out: did not answer" in caplog.text for name in NAMES[1::2])
