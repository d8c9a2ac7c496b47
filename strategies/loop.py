"""The round loop over a Flower ``Grid``: train, aggregate, evaluate, checkpoint; resumable after any round.

Flower's own ``Strategy.start`` has no resume and drops what single devices reported, which this project reports on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid

from fl.aggregation.updates import DeviceUpdate
from fl.core.errors import AggregationError
from strategies.arm import ArmStrategy
from strategies.checkpoint import Checkpoint, load_checkpoint, load_seconds, save_checkpoint, save_seconds

log = logging.getLogger("idiolect.server")
RowWriter = Callable[
    [str, int, str, DeviceUpdate, DeviceUpdate | None], None
]  # arm, round, split, evaluation or training, training
Progress = Callable[[str, int, int], None]  # what is being done, done, total


@dataclass(frozen=True)
class CommonRounds:
    """An arm whose first ``rounds`` rounds are those of another, to the bit: they are trained once and count for both."""

    arm: str
    rounds: int


@dataclass
class RoundLoop:
    """Runs rounds of one strategy at a time and writes one row for each device that answered."""

    grid: Grid
    checkpoints: Path
    fingerprint: str
    rows: RowWriter
    timeout: float = 3600.0
    progress: Progress = lambda what, done, total: None
    seconds: dict[str, float] = field(default_factory=dict)
    flush: Callable[[], None] = lambda: None  # makes the rows so far durable
    common: dict[str, CommonRounds] = field(default_factory=dict)  # by the arm that trains for both
    metrics: tuple[str, ...] = ()  # whose rates go into the log
    _trained: dict[str, float] = field(default_factory=dict)  # seconds of rounds that are checkpointed, by arm

    def __post_init__(self) -> None:
        """Rounds that an earlier process checkpointed took their time too."""
        self._trained = load_seconds(self.checkpoints)
        self.seconds = {**self.seconds, **self._trained}

    def train(
        self, strategy: ArmStrategy, arrays: ArrayRecord, rounds: int, evaluate_every: int, evaluated: tuple[str, ...]
    ) -> ArrayRecord:
        """``rounds`` rounds from ``arrays`` or from the arm's checkpoint; returns the final shared tensors.

        Raises :class:`AggregationError` if in some round no device answered soundly, after ``rounds`` have stopped changing
        anything: the checkpoint of the round before is intact.
        """
        arm = strategy.job.arm
        found = load_checkpoint(self.checkpoints, arm, self.fingerprint)
        first = 1
        if found is not None:
            arrays, first = found.arrays, found.round + 1
            strategy.restore(found.state)
        for server_round in range(first, rounds + 1):
            self.progress(arm, server_round - 1, rounds)
            started = time.perf_counter()
            messages = strategy.configure_train(server_round, arrays, ConfigRecord(), self.grid)
            replies = self.grid.send_and_receive(messages, timeout=self.timeout)
            new, metrics = strategy.aggregate_train(server_round, replies)
            if new is None:
                reasons = "; ".join(f"{d}: {why}" for d, why in list(strategy.last.left_out.items())[:3])
                raise AggregationError(f"arm {arm}, round {server_round}: no device answered soundly ({reasons})")
            arrays = new
            trained = {reply.device_id: reply for reply in strategy.last.sound}
            log.info("arm %s round %d/%d: %s", arm, server_round, rounds, _summary(dict(metrics or {})))
            also = self._also(arm, server_round)
            if evaluate_every and (server_round % evaluate_every == 0 or server_round == rounds):
                self.evaluate(strategy, arrays, server_round, "validation", evaluated, trained=trained)
                rest = [reply for device, reply in trained.items() if device not in evaluated]
            else:
                rest = list(trained.values())
            for reply in rest:
                self._write(arm, server_round, "validation", reply, reply)
            took = time.perf_counter() - started
            for one in (arm, also) if also else (arm,):
                for total in (self.seconds, self._trained):
                    total[one] = total.get(one, 0.0) + took
            # Rows before the checkpoint: a run killed between the two repeats the round and replaces its rows, whereas a
            # checkpoint without rows would never get them.
            self.flush()
            checkpoint = Checkpoint(server_round, arrays, strategy.server_state())
            if also:
                save_checkpoint(self.checkpoints, also, checkpoint, self.fingerprint)
            save_checkpoint(self.checkpoints, arm, checkpoint, self.fingerprint)
            save_seconds(self.checkpoints, self._trained)
        self.progress(arm, rounds, rounds)
        return arrays

    def _also(self, arm: str, server_round: int) -> str:
        """The arm for which this round counts too, or an empty text."""
        common = self.common.get(arm)
        return common.arm if common is not None and server_round <= common.rounds else ""

    def _write(
        self, arm: str, server_round: int, split: str, reply: DeviceUpdate, trained: DeviceUpdate | None
    ) -> None:
        for one in (arm, self._also(arm, server_round)):
            if one:
                self.rows(one, server_round, split, reply, trained)

    def evaluate(
        self,
        strategy: ArmStrategy,
        arrays: ArrayRecord,
        server_round: int,
        split: str,
        devices: tuple[str, ...],
        *,
        arm: str | None = None,
        final: bool = False,
        trained: dict[str, DeviceUpdate] | None = None,
    ) -> None:
        """Evaluate ``arrays`` (with the devices' own private parts, as the arm says) and write the rows."""
        job = replace(strategy.job, split=split, devices=devices, final=final, arm=arm or strategy.job.arm)
        evaluator = strategy.with_job(job)
        messages = evaluator.configure_evaluate(server_round, arrays, ConfigRecord(), self.grid)
        replies = self.grid.send_and_receive(messages, timeout=self.timeout)
        metrics = evaluator.aggregate_evaluate(server_round, replies)
        for reply in evaluator.last.sound:
            self._write(job.arm, server_round, split, reply, (trained or {}).get(reply.device_id))
        log.info("arm %s round %d %s: %s", job.arm, server_round, split, _rates(dict(metrics or {}), self.metrics))


def _summary(metrics: dict[str, object]) -> dict[str, object]:
    """The metrics of a round for the log: of those that come layer by layer only the largest, with its layer."""
    layers = {name: value for name, value in metrics.items() if ":" in name and isinstance(value, float)}
    summary = {name: value for name, value in metrics.items() if ":" not in name}
    if layers:
        worst = max(layers, key=lambda name: layers[name])
        summary[f"largest {worst}"] = layers[worst]
    return summary


def _rates(values: dict[str, object], metrics: tuple[str, ...]) -> dict[str, str]:
    """Rates in per cent of some metrics, for the log."""
    rates = {}
    for name in metrics:
        fields = [values.get(f"{name}.{f}", 0) for f in ("substitutions", "deletions", "insertions", "reference")]
        numbers = [float(v) for v in fields if isinstance(v, int | float)]
        if len(numbers) == 4 and numbers[3]:
            rates[name] = f"{100 * sum(numbers[:3]) / numbers[3]:.1f} %"
    return rates
