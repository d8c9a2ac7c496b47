"""The stock recipe: personal adapters by federated averaging as one writes it today from Flower's and Hugging Face's examples.

    python -m benchmarks.stock_recipe [--smoke]

Flower's simulation with its own ``FedAvg``, one SuperNode for each device; transformers' Whisper with PEFT's ``LoraConfig``;
features of transformers' extractor, padded to 30 s; labels padded with -100 and the model's own loss; AdamW, with the
gradient clipped at norm 1 as transformers' Trainer does. It is what every speed figure is a ratio against, so it is given
what a careful user would give it: the base is loaded and features are computed once per process, one worker for each
core, the same base, utterances, batches, steps, learning rates and initial A as ours. It trains under bf16 autocast where that is
faster, which :func:`step_seconds` measures.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperFeatureExtractor

from benchmarks._report import time_side_by_side
from clients.training.evaluate import evaluate
from clients.training.single import step_batches
from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.layer import fresh_adapter
from fl.algorithms.arms import trained_arm
from fl.bases.resolve import load_base
from fl.bases.whisper.base import WhisperBase
from fl.core.compute import DTYPES, autocast, choose_precision
from fl.core.machine import available_cores
from fl.core.rng import derive_seed
from fl.data.partition import DeviceData
from fl.metrics import Counts
from fl.protocol.wire import add_counts
from fl.settings.config import RunConfig, flat, make_config
from fl.speech.audio import SAMPLE_RATE, load_audio
from fl.tasks.speech.population import load_population, population_manifest
from fl.tasks.speech.task import SpeechTask

IGNORED = -100  # transformers' label of a position without a loss


def make_lora(config: RunConfig) -> LoraConfig:
    """PEFT's own LoRA with the rank, alpha and places of ours."""
    return LoraConfig(
        r=config.adapter.rank, lora_alpha=config.adapter.alpha, target_modules=target_pattern(config.sites)
    )


def initial_state(base: WhisperBase, config: RunConfig) -> dict[str, Tensor]:
    """Our initial adapter (A from the seed, B zero) under the names of PEFT's LoRA, so that both start from the same."""
    adapter = GatedLoraConfig(
        r=config.adapter.rank,
        lora_alpha=config.adapter.alpha,
        gate="none",
        target_modules=target_pattern(config.sites),
        init_seed=config.seed,
    )
    return {
        name.replace("gated_lora_A", "lora_A.weight").replace("gated_lora_B", "lora_B.weight"): tensor
        for name, tensor in fresh_adapter(base.model, adapter).items()
    }


class StockProcess:
    """What a worker process keeps: the base with its LoRA, the people, and the features of those it has met."""

    def __init__(self, config: RunConfig) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.base = load_base(config.base.name)
        self.model = get_peft_model(self.base.new_model(), make_lora(config)).to(self.device)
        self.extractor = WhisperFeatureExtractor(feature_size=self.base.mels)
        self.language = config.base.language or None
        self.people = training_people(config)
        self.examples = lru_cache(maxsize=None)(self._examples)

    def _examples(self, partition: int) -> list[tuple[Tensor, Tensor]]:
        """Features (mels, 3000) and label ids (tokens,) of each training utterance; the labels start with the language."""
        prefix = self.base.prefix_ids(self.language)[1:]
        rows = []
        for utterance in self.people[partition].train:
            audio = load_audio(utterance.audio, utterance.start, utterance.end)
            features = self.extractor(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features[0]
            rows.append((features, torch.tensor([*prefix, *self.base.target_ids(utterance.text)])))
        return rows

    def train(self, partition: int, config: RunConfig, server_round: int) -> float:
        """The local steps of one device; returns the mean loss. Batches are those that ours draws."""
        examples = self.examples(partition)
        arm = trained_arm("global", config)
        assert arm is not None
        plan = arm.schedule.plan(server_round)
        seed = derive_seed(config.seed, server_round, self.people[partition].device_id, "train")
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=plan.learning_rate, weight_decay=plan.weight_decay)
        losses = []
        self.model.train()
        for batch in step_batches(plan, len(examples), seed):
            features = torch.stack([examples[i][0] for i in batch]).to(self.device)
            labels = pad_sequence([examples[i][1] for i in batch], batch_first=True, padding_value=IGNORED)
            with autocast(self.device, choose_precision(config.base.precision, self.device)):
                loss = self.model(input_features=features, labels=labels.to(self.device), use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, plan.clipping_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return float(np.mean(losses))


def training_people(config: RunConfig) -> tuple[DeviceData, ...]:
    """The devices that train, in the order of their names: those of ours."""
    people = load_population(population_manifest(config), config.data_seed, config.data, lambda *_: None).devices
    return tuple(person for person in people if person.train)


def step_seconds(config: RunConfig, cpus: int) -> dict[str, float]:
    """Median seconds of a local step of one device in float32 and under bf16 autocast, in turns, with ``cpus`` threads."""
    one, process, threads = config.changed({"local-steps": 1}), StockProcess(config), torch.get_num_threads()
    steps = {name: partial(process.train, 0, one.changed({"base.precision": name}), 1) for name in DTYPES}
    torch.set_num_threads(cpus)
    try:
        found = time_side_by_side(steps, dict.fromkeys(steps, 3))
    finally:
        torch.set_num_threads(threads)
    return {name: round(timing.median, 3) for name, timing in found.items()}


@lru_cache(maxsize=1)
def get_process(config: RunConfig) -> StockProcess:
    """The one of this process."""
    return StockProcess(config)


client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One device's local phase."""
    settings = dict(message.content.config_records["config"])
    server_round = int(settings.pop("server-round"))  # type: ignore[arg-type]
    config = make_config(settings)
    process, partition = get_process(config), int(context.node_config["partition-id"])
    state = message.content.array_records["arrays"].to_torch_state_dict()
    set_peft_model_state_dict(process.model, state)
    loss = process.train(partition, config, server_round)
    trained = {name: tensor.cpu() for name, tensor in get_peft_model_state_dict(process.model).items()}
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(process.examples(partition))})
    return Message(RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics}), reply_to=message)


class TimedFedAvg(FedAvg):
    """Flower's FedAvg, with a look at the clock before a round's messages and after their average."""

    def __init__(self, devices: int) -> None:
        super().__init__(
            fraction_evaluate=0.0, min_train_nodes=devices, min_evaluate_nodes=0, min_available_nodes=devices
        )
        self.started = 0.0
        self.round_seconds: list[float] = []
        self.losses: list[float] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg does."""
        self.started = time.perf_counter()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As FedAvg does; a device that failed would make the round look fast, so it stops the run."""
        found = list(replies)
        failed = [reply.error.reason for reply in found if reply.has_error()]
        if failed:
            raise RuntimeError(f"{len(failed)} devices failed in round {server_round}: {failed[0]}")
        arrays, metrics = super().aggregate_train(server_round, found)
        self.round_seconds.append(time.perf_counter() - self.started)
        self.losses.append(float(metrics["train_loss"]) if metrics else float("nan"))  # type: ignore[arg-type]
        return arrays, metrics


@dataclass(frozen=True)
class StockRun:
    """What a run of the stock recipe left: seconds and mean loss of each round, seconds in all, the final adapter."""

    round_seconds: tuple[float, ...]
    losses: tuple[float, ...]
    seconds: float
    state: dict[str, Tensor] = field(repr=False)


def run_stock(config: RunConfig, workers: int | None = None, cpus: int = 1) -> StockRun:
    """``config.federation.rounds`` rounds with ``workers`` cores (default: all), ``cpus`` of them for each device's task."""
    from flwr.simulation import run_simulation

    from benchmarks import stock_recipe as module  # by name, so that workers import it and keep their cache

    quiet_environment()
    devices = len(training_people(config))
    workers = workers or available_cores()
    strategy = TimedFedAvg(devices)
    server_app, finished = ServerApp(), dict[str, Tensor]()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        initial = ArrayRecord(initial_state(load_base(config.base.name), config))
        result = strategy.start(
            grid,
            initial_arrays=initial,
            num_rounds=config.federation.rounds,
            train_config=ConfigRecord(dict(flat(config))),
            timeout=config.federation.round_timeout,
        )
        assert result.arrays is not None
        finished.update(result.arrays.to_torch_state_dict())

    started = time.perf_counter()
    gpus = min(1.0, cpus / workers) if torch.cuda.is_available() else 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_simulation(
            server_app=server_app,
            client_app=module.client_app,
            num_supernodes=devices,
            backend_config={
                "init_args": {"num_cpus": workers, "logging_level": logging.ERROR, "log_to_driver": False},
                "client_resources": {"num_cpus": cpus, "num_gpus": gpus},
            },
        )
    seconds = time.perf_counter() - started
    return StockRun(tuple(strategy.round_seconds), tuple(strategy.losses), seconds, finished)


def quiet_environment() -> None:
    """Nothing sent anywhere, nothing on the screen, and workers of ordinary priority, as in ``idiolect run``."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    logging.getLogger("flwr").setLevel(logging.ERROR)


def stock_counts(config: RunConfig, state: dict[str, Tensor]) -> dict[str, Counts]:
    """Error counts of the final adapter on the devices' test utterances, in the 30 s window that it was trained on."""
    task = SpeechTask(config.changed({"base.window": "full"}))
    model: PeftModel = get_peft_model(task.base.new_model(), make_lora(config)).eval()
    set_peft_model_state_dict(model, state)
    devices = [task.device(d) for d in task.device_ids() if not task.is_new(d)]
    split = config.federation.final_split
    return add_counts([evaluate(model, task, device.split(split)).counts for device in devices if device.split(split)])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the comparison, which stock and ours share."""
    parser.add_argument("--base", default="whisper-base")
    parser.add_argument("--manifest", default="", help="a manifest.jsonl; default: a synthetic population")
    parser.add_argument("--language", default="ko")
    parser.add_argument("--devices", type=int, default=6)
    parser.add_argument("--sentences", type=int, default=60, help="synthetic sentences of each device")
    parser.add_argument("--rounds", type=int, default=8, help="the first is not measured: it loads the base")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--stock-cpus", type=int, default=1, help="cores of one device's task in the stock recipe")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: about a minute, no figure")


SMOKE = {"devices": 2, "sentences": 8, "rounds": 2, "steps": 1, "batch_size": 1}


def configuration(arguments: argparse.Namespace, **further: object) -> RunConfig:
    """The run's settings from the options; ``further`` wins."""
    if arguments.smoke:
        vars(arguments).update(SMOKE)
    settings = {
        "base": arguments.base,
        "manifest": arguments.manifest,
        "language": arguments.language,
        "devices": arguments.devices,
        "sentences": arguments.sentences,
        "new_people": 0,
        "rounds": arguments.rounds,
        "local_steps": arguments.steps,
        "batch_size": arguments.batch_size,
        "rank": arguments.rank,
        "seed": arguments.seed,
        "evaluate_every": 0,
        "arms": "global",
        **further,
    }
    return make_config(settings)


def main() -> None:
    """Run it and print its speed and word error rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    arguments = parser.parse_args()
    config = configuration(arguments)
    run = run_stock(config, arguments.workers, arguments.stock_cpus)
    measured = run.round_seconds[1:] or run.round_seconds
    devices = len(training_people(config))
    rate = stock_counts(config, run.state)["wer"].rate
    print(
        f"stock recipe: {devices / float(np.median(measured)):.4f} client-rounds/s, "
        f"rounds {', '.join(f'{s:.1f}' for s in run.round_seconds)} s, loss {', '.join(f'{x:.3f}' for x in run.losses)}, "
        f"WER {'-' if rate is None else f'{100 * rate:.1f} %'}"
    )


if __name__ == "__main__":
    main()
