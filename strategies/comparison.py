"""All arms of one run, one after the other, on the same roster: trained, evaluated, and what they cost."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from fl.adapters.blend import require_room
from fl.adapters.correction import FOLDER, corrected_fingerprint, save_correction
from fl.adapters.directions import save_directions
from fl.adapters.files import AdapterInfo, save_adapter
from fl.adapters.split import make_split, tensor_kind
from fl.adapters.state import State, size_of, tensors_digest
from fl.algorithms.arms import EVERYONE, HELD_OUT, REPORTED, Arm, evaluated_as, trained_arm, untrained_arm
from fl.algorithms.base import Algorithm
from fl.core.errors import ConfigError
from fl.core.machine import installed_versions, machine
from fl.methods.lora import peft_config
from fl.methods.recipes import fresh_state, make_recipe
from fl.methods.table import METHODS
from fl.privacy.plan import PrivacyPlan, make_plan
from fl.protocol.reply import bounded_mean
from fl.protocol.wire import Job, from_arrays, to_arrays
from fl.runs.schema import SHARED_ADAPTER
from fl.settings.config import RunConfig
from fl.settings.names import PERSONALIZED
from fl.tasks.task import Task
from strategies.account import Account
from strategies.arm import ArmStrategy, check_population
from strategies.checkpoint import Checkpoint, checkpointed_rounds, load_checkpoint
from strategies.loop import CommonRounds, RoundLoop
from strategies.private import PrivateMean
from strategies.roster import Roster


@dataclass
class Comparison:
    """All arms of one run, one after the other, on the same roster."""

    config: RunConfig
    grid: Grid
    roster: Roster
    task: Task
    loop: RoundLoop
    plan: PrivacyPlan | None = None
    account: Account | None = None
    token: str = ""  # of a run with deployed devices

    def open_account(self, folder: Path) -> None:
        """Fix the numbers of a private run and open its account; refuse what its budget cannot pay for."""
        self.plan = make_plan(self.config, len(self.roster.training), self.paid_rounds())
        if self.plan is not None:
            self.account = Account.opened(folder, self.config, self.plan, simulated=self.roster.simulated)
            self.loop.ledger = self.account.ledger

    def paid_rounds(self) -> int:
        """Rounds in which updates are sent, of all arms: those that count for two arms are paid once."""
        arms = [arm for name in self.config.arms if (arm := trained_arm(name, self.config)) is not None]
        common = sum(min(both.rounds, self.config.federation.rounds) for both in self._common_rounds().values())
        return sum(arm.schedule.federated_rounds for arm in arms) - common

    def strategy(self, arm: Arm, devices: tuple[str, ...]) -> ArmStrategy:
        """The strategy of an arm; a private mean where the settings ask for one and its devices federate."""
        account = self.account
        private = arm.federates and bounded_mean(self.config)
        kind: Any = PrivateMean if private else ArmStrategy
        strategy: ArmStrategy = kind(
            self.config,
            arm,
            self.roster.with_everyone() if devices == (EVERYONE,) else self.roster,
            Job(arm=arm.name, round=0, devices=devices, run=self.token),
            plan=self.plan,
            # What does not federate is not protected, and its rounds cost nothing: no update of a person travels.
            charge=account.charge if account is not None and arm.federates else lambda *_: None,
            timeout=self.config.federation.round_timeout,
        )
        start = trained_arm(arm.starts_from, self.config)
        if start is not None and (found := self._checkpoint(start)) is not None:  # its corrections decode here too
            strategy.aggregator = start.aggregation.aggregator()
            strategy.restore(found.state)
        return strategy

    def _checkpoint(self, arm: Arm) -> Checkpoint | None:
        return load_checkpoint(self.loop.checkpoints, arm.name, self.task.fingerprint)

    def _tensors(self, arm: Arm) -> tuple[State, State, State]:
        """A fresh adapter for an arm: all of it, what is shared and what is private."""
        fresh = fresh_state(self.config, self.task, arm.gate)
        split = make_split(arm.split, fresh)
        return fresh, {n: fresh[n] for n in split.shared}, {n: fresh[n] for n in split.private}

    def _shared(self, arm: Arm) -> State:
        return self._tensors(arm)[1]

    def check(self) -> None:
        """Refuse a strategy that cannot work with what an arm shares or with how many take part, before the first round."""
        check_population(self.config, self.roster)
        for name in self.config.arms:
            arm = trained_arm(name, self.config)
            if arm is not None and arm.devices == EVERYONE and not self.roster.simulated:
                raise ConfigError(
                    f"arm {name!r} needs everybody's data in one place, and some of these nodes are deployed: leave it out of arms"
                )
            if arm is not None and arm.federates:
                self.strategy(arm, self.roster.training).require_fit(self._shared_shapes(arm))
                if (second := arm.personal.second) is not None:
                    require_room(arm.personal.name, second.ranks, self._tensors(arm)[0])

    def run(self) -> None:
        """Train what has to be trained, then evaluate every arm on test data."""
        finished: dict[str, ArrayRecord] = {}
        config, training = self.config, self.roster.training
        self.loop.common = self._common_rounds()
        self._announce()
        for name in config.arms:
            arm = trained_arm(name, config)
            if arm is None:
                continue
            start = finished[arm.starts_from] if arm.starts_from else to_arrays(self._shared(arm))
            devices = (EVERYONE,) if arm.devices == EVERYONE else training
            strategy = self.strategy(arm, devices)
            every = config.federation.evaluate_every
            finished[name] = self.loop.train(strategy, start, arm.schedule.rounds, every, training)
            self.loop.results.flush()
            if name == "global" or (name == PERSONALIZED and "global" not in config.arms):
                self._keep_shared(strategy, finished[name])
        for name in config.arms if self.task.learns else ():
            self._evaluate(name, finished)
            self.loop.results.flush()

    def _keep_shared(self, strategy: ArmStrategy, arrays: ArrayRecord) -> None:
        """Write an arm's shared adapter for people who took no part, with what their enrolments are drawn to. None where A or B is a
        device's own."""
        config, task, arm = self.config, self.task, strategy.arm
        fresh, shared, private = self._tensors(arm)
        gates_alone = all(tensor_kind(name) == "gate" for name in private)
        if not (arm.federates and gates_alone and METHODS[config.adapter.method].low_rank):
            return
        folder = self.loop.checkpoints.parent / SHARED_ADAPTER
        facts = task.base_name, corrected_fingerprint(task.fingerprint, strategy.corrections()), arm.split
        info = AdapterInfo(*facts, peft_config(make_recipe(config, task, arm.gate)), **task.adapter_facts)
        tensors = {name: values for name, values in from_arrays(arrays).items() if name in shared}
        save_adapter(folder, {**fresh, **tensors}, info)
        save_directions(folder, strategy.directions)

    def _announce(self) -> None:
        """Tell the progress of every part before the first begins, with what an earlier process has done of it."""
        for name in self.config.arms:
            if (arm := trained_arm(name, self.config)) is not None:
                self.loop.tell(name, checkpointed_rounds(self.loop.checkpoints, name), arm.schedule.rounds)
        for name in self.config.arms if self.task.learns else ():
            self.loop.progress(f"test: {name}", 0, 1)

    def _common_rounds(self) -> dict[str, CommonRounds]:
        """``personalized`` begins as ``global`` does while gates are neutral, if both share the same tensors.

        Not where a device keeps something of one arm beside its adapter: a second adapter, a correction, what a codec lost. If
        it enrols after them, all rounds are common, and nothing that it keeps of them is used again.
        """
        arms = [trained_arm(name, self.config) for name in ("global", PERSONALIZED) if name in self.config.arms]
        if len(arms) < 2:
            return {}
        one, other = arms
        assert one is not None
        assert other is not None
        if one.shared is None or other.shared is None:
            return {}
        rounds = other.schedule.neutral_rounds
        second = other.personal.second
        trained = (
            second is not None or type(other.shared).begin is not Algorithm.begin or self.config.codec.error_feedback
        )
        keeps = trained and not (second is not None and second.afterwards)
        same = one.shared == other.shared and self._shared_shapes(one) == self._shared_shapes(other)
        return (
            {"global": CommonRounds(PERSONALIZED, rounds)}
            if rounds and same and not keeps and not other.personal.aggregates
            else {}
        )

    def _shared_shapes(self, arm: Arm) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._shared(arm).items()}

    def _evaluate(self, name: str, finished: dict[str, ArrayRecord]) -> None:
        """The final evaluation of one arm on test data, of participants and, where it means something, of new people."""
        self.loop.progress(f"test: {name}", 0, 1)
        arm, _ = evaluated_as(name, self.config)
        arrays = finished[arm.name] if arm is not None and self._shared(arm) else ArrayRecord()
        devices = self.roster.training + (self.roster.new_people if name in HELD_OUT else ())
        template = arm or untrained_arm(name, self.config)
        rounds = 1 if template.starts_from else self.config.federation.rounds
        started = time.perf_counter()
        strategy = self.strategy(template, devices)
        found = self._checkpoint(template)
        strategy.restore(found.state if found else {})  # which may say what to send to whom
        if corrections := strategy.corrections():
            file = self.loop.checkpoints.parent / FOLDER / f"{tensors_digest(corrections)}.safetensors"
            save_correction(file, corrections, self.task.fingerprint)
        self.loop.evaluate(strategy, arrays, rounds, self.config.federation.final_split, devices, arm=name, final=True)
        self.loop.seconds[name] = self.loop.seconds.get(name, 0.0) + time.perf_counter() - started
        self.loop.progress(f"test: {name}", 1, 1)

    def _sizes(self, arm: Arm) -> dict[str, int]:
        """What one device trains in an arm, and what of it travels."""
        whole, shared, _ = map(size_of, self._tensors(arm))
        return {"parameters": whole.parameters, "bytes": whole.bytes, "shared_bytes": shared.bytes}

    def costs(self) -> dict[str, Any]:
        """Bytes, sizes and seconds of the run, with what is needed to read them."""
        config, task = self.config, self.task
        reported = next((name for name in REPORTED if name in config.arms), REPORTED[-1])
        personal = trained_arm(reported, config)
        assert personal is not None
        fresh, *parts = self._tensors(personal)
        whole, shared, private = map(size_of, (fresh, *parts))
        second = personal.personal.second
        base = list(task.model.parameters())
        last = personal.schedule.federated_rounds or personal.schedule.rounds  # what comes after them is sent once
        rows = [r for r in self.loop.results.rows() if r["arm"] == personal.name and r["steps"] and r["round"] <= last]
        return {
            "base": task.base_name,
            "base_fingerprint": task.fingerprint,
            "base_parameters": sum(p.numel() for p in base),
            "base_bytes": sum(p.numel() * p.element_size() for p in base),
            "method": config.adapter.method,
            "arms": {
                name: self._sizes(arm) for name in config.arms if (arm := evaluated_as(name, config)[0]) is not None
            },
            "adapter_parameters": whole.parameters,
            "adapter_bytes": whole.bytes,
            "shared_bytes": shared.bytes,
            "private_bytes": second.kept_bytes(second.start(fresh, 0)) if second else private.bytes,
            "bytes_up_per_device_round": max((r["bytes_up"] for r in rows), default=0),
            "bytes_down_per_device_round": max((r["bytes_down"] for r in rows), default=0),
            "seconds": {name: round(value, 2) for name, value in self.loop.seconds.items()},
            "rounds": config.federation.rounds,
            "local_steps": config.train.local_steps,
            "batch_size": config.train.batch_size,
            "devices": len(self.roster.training),
            "new_people": len(self.roster.new_people),
            "seed": config.seed,
            "machine": {**machine(), "precision": config.base.precision},
            "versions": installed_versions("flwr", "torch", "transformers", "peft", "ray", "jiwer"),
        }
