"""The round loop over a Flower ``Grid``: train, aggregate, evaluate, checkpoint; resumable after any round.

Flower's own ``Strategy.start`` has no resume and drops what single devices reported, which this project reports on.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid

from fl.aggregation.updates import DeviceUpdate
from fl.core.errors import AggregationError, RunError
from fl.metrics import Counts
from fl.privacy.ledger import Ledger
from fl.protocol.wire import add_counts
from fl.runs.progress import Progress
from fl.runs.results import ResultsFile, make_row
from strategies.arm import ArmStrategy
from strategies.checkpoint import Checkpoint, load_checkpoint, load_seconds, save_checkpoint, save_seconds

log = logging.getLogger("idiolect.server")


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
    results: ResultsFile
    timeout: float = 3600.0
    progress: Progress = lambda what, done, total: None
    seconds: dict[str, float] = field(default_factory=dict)
    common: dict[str, CommonRounds] = field(default_factory=dict)  # by the arm that trains for both
    metrics: tuple[str, ...] = ()  # whose rates go into the log
    ledger: Ledger | None = None  # of a run that pays for its rounds
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
        arm, measured = strategy.job.arm, frozenset(evaluated)
        found = load_checkpoint(self.checkpoints, arm, self.fingerprint)
        first = 1
        if found is not None:
            self._require_stored(arm, found)
            arrays, first = found.arrays, found.round + 1
            strategy.restore(found.state)
        for server_round in range(first, rounds + 1):
            self.tell(arm, server_round - 1, rounds)
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
            evaluates = evaluate_every and (server_round % evaluate_every == 0 or server_round == rounds)
            if evaluates:
                self.evaluate(strategy, arrays, server_round, "validation", evaluated, trained=trained)
            for device_id, reply in trained.items():
                if not evaluates or device_id not in measured:
                    self._write(strategy, arm, server_round, "validation", reply, reply)
            took = time.perf_counter() - started
            counted = self._counts_for(arm, server_round)
            for one in counted:
                for total in (self.seconds, self._trained):
                    total[one] = total.get(one, 0.0) + took
            # Rows before the checkpoint: a run killed between the two repeats the round and replaces its rows, whereas a
            # checkpoint without rows would never get them.
            self.results.flush()
            kept = strategy.server_state()
            for one in reversed(counted):
                stored = {path.name: count for path, count in self._stored(one).items()}
                checkpoint = Checkpoint(server_round, arrays, kept, stored)
                save_checkpoint(self.checkpoints, one, checkpoint, self.fingerprint)
            save_seconds(self.checkpoints, self._trained)
        self.tell(arm, rounds, rounds)
        return arrays

    def tell(self, arm: str, done: int, rounds: int) -> None:
        """Tell the progress of an arm, without the rounds that another arm trains for both."""
        elsewhere = sum(common.rounds for common in self.common.values() if common.arm == arm)
        self.progress(arm, max(0, done - elsewhere), rounds - elsewhere)

    def _stored(self, arm: str) -> dict[Path, int]:
        """How much of an arm is in the files that a run only adds to."""
        stored = {self.results.path: self.results.count(arm)}
        if self.ledger is not None:
            stored[self.ledger.path] = sum(charge.part == arm for charge in self.ledger.charges)
        return stored

    def _require_stored(self, arm: str, found: Checkpoint) -> None:
        """Raise :class:`RunError` if rows or charges that a checkpoint stands on are gone: the run would seem whole, and be cheaper."""
        for path, count in self._stored(arm).items():
            before = found.stored.get(path.name, 0)
            if count < before:
                raise RunError(
                    f"{path} has {count} entries of arm {arm!r} and had {before} when round {found.round} was finished: put back "
                    "the file of then, or start the run again in a new output folder"
                )

    def _counts_for(self, arm: str, server_round: int) -> tuple[str, ...]:
        """The arms for which a round counts, the one that trains first."""
        common = self.common.get(arm)
        return (arm, common.arm) if common is not None and server_round <= common.rounds else (arm,)

    def _write(
        self,
        strategy: ArmStrategy,
        arm: str,
        server_round: int,
        split: str,
        reply: DeviceUpdate,
        trained: DeviceUpdate | None,
    ) -> None:
        """The row of one device, from its evaluation or its training."""
        device, numbers = reply.device_id, trained.numbers if trained else None
        new = strategy.roster.examples[device] <= 0
        for one in self._counts_for(arm, server_round):
            row = make_row(one, server_round, split, device, reply.metrics, reply.numbers, numbers, new_person=new)
            self.results.add(row)

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
        evaluator.aggregate_evaluate(server_round, replies)
        for reply in evaluator.last.sound:
            self._write(strategy, job.arm, server_round, split, reply, (trained or {}).get(reply.device_id))
        rates = rates_of(add_counts([reply.metrics for reply in evaluator.last.sound]), self.metrics)
        log.info("arm %s round %d %s: %s", job.arm, server_round, split, rates)
        if silent := sum(not reply.metrics for reply in evaluator.last.sound):
            log.info("%d of %d devices sent no error counts", silent, len(evaluator.last.sound))


def _summary(metrics: dict[str, object]) -> dict[str, object]:
    """The metrics of a round for the log: of those that come layer by layer only the largest, with its layer."""
    layers = {name: value for name, value in metrics.items() if ":" in name and isinstance(value, float)}
    summary = {name: value for name, value in metrics.items() if ":" not in name}
    if layers:
        worst = max(layers, key=lambda name: layers[name])
        summary[f"largest {worst}"] = layers[worst]
    return summary


def rates_of(counts: Mapping[str, Counts], metrics: tuple[str, ...]) -> dict[str, str]:
    """Rates in per cent of some metrics, for the log."""
    rates = {name: counts[name].rate for name in metrics if name in counts}
    return {name: f"{100 * rate:.1f} %" for name, rate in rates.items() if rate is not None}
