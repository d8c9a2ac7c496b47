"""The Flower ServerApp: one run trains and evaluates every arm of a comparison, over whatever nodes there are."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from fl.adapters import make_split
from fl.adapters.blend import make_blend, own_bytes, require_room
from fl.adapters.state import State, size_of
from fl.algorithms.arms import BY_GATES, EVERYONE, Arm, evaluated_as, federates, trained_arm
from fl.algorithms.attacks import attackers
from fl.core.errors import ConfigError, PopulationError, RunError
from fl.core.machine import available_cores, processor
from fl.methods import fresh_state
from fl.metrics import Counts
from fl.privacy.plan import Plan, make_plan
from fl.protocol.wire import FEDERATE, FINETUNE, SETTINGS_RECORD, Job, add_counts, settings_record, to_arrays
from fl.runs.predictions import PREDICTIONS_NAME
from fl.settings.config import RunConfig, make_config
from fl.settings.names import NONE
from fl.tasks.table import load_task, task_kind
from fl.tasks.task import Task
from strategies.account import Account
from strategies.base import Roster, SharedFedAvg
from strategies.checkpoint import load_checkpoint
from strategies.folder import freed_if_empty, run_folder
from strategies.loop import Progress, RoundLoop, Twin
from strategies.node import UnreadableError, read_node
from strategies.registry import check_strategy, make_attacker, make_strategy
from strategies.replies import DeviceReply
from strategies.results import RESULTS_NAME, ResultsFile, gather_predictions, make_row, write_costs

log = logging.getLogger("idiolect.server")
NODE_WAIT_SECONDS = 120.0
NEW_PEOPLE_ARMS = ("zero-shot", "global", "neutral", "centralized")


def ask_roster(grid: Grid, config: RunConfig, wait: float = NODE_WAIT_SECONDS) -> Roster:
    """Ask every node which devices it hosts. Raises :class:`RunError` if there is no node, or no device that can train."""
    deadline = time.monotonic() + wait
    while not (node_ids := sorted(grid.get_node_ids())):
        if time.monotonic() > deadline:
            raise RunError(
                f"no node came up within {wait:.0f} s: start SuperNodes, or set num-supernodes of the simulation"
            )
        time.sleep(1.0)
    content = RecordDict({SETTINGS_RECORD: settings_record(config)})
    messages = [Message(content, dst_node_id=n, message_type=MessageType.QUERY) for n in node_ids]
    nodes: dict[str, int] = {}
    examples: dict[str, int] = {}
    errors: list[str] = []
    simulated = [
        _register(reply, nodes, examples, errors)
        for reply in grid.send_and_receive(messages, timeout=config.federation.round_timeout)
    ]
    roster = Roster(nodes, examples, all(simulated))
    if not roster.training:
        detail = f" ({errors[0]})" if errors else ""
        raise RunError(
            f"none of {len(node_ids)} nodes hosts a device with training data{detail}: check the manifest and the nodes' configuration"
        )
    return roster


def _register(reply: Message, nodes: dict[str, int], examples: dict[str, int], errors: list[str]) -> bool:
    """Enter the devices of one node; what is left out goes to ``errors``, a device that is there already raises.

    Returns whether the node says of all of them that they are simulated.
    """
    node = reply.metadata.src_node_id
    try:
        if reply.has_error():
            raise UnreadableError(reply.error.reason)
        answers = read_node(f"node {node}", reply.content, None, False).answers
    except UnreadableError as error:
        errors.append(f"node {node}: {error}")
        log.warning("left out with all its devices: %s", errors[-1])
        return True
    for device_id, answer in answers:
        if isinstance(answer, str):
            errors.append(f"device {device_id}: its data cannot be read; its own log has the reason")
            log.warning("left out: %s", errors[-1])
        elif nodes.get(device_id) == node:
            raise PopulationError(f"node {node} lists device {device_id!r} twice: give each device an id of its own")
        elif device_id in nodes:
            raise RunError(f"two nodes say that they host device {device_id!r}: give each SuperNode its own device-id")
        else:
            nodes[device_id], examples[device_id] = node, int(answer.examples)
    return all(answer.numbers.get("simulated") for _, answer in answers if not isinstance(answer, str))


@dataclass
class Comparison:
    """All arms of one run, one after the other, on the same roster."""

    config: RunConfig
    grid: Grid
    roster: Roster
    task: Task
    loop: RoundLoop
    results: ResultsFile
    plan: Plan | None = None
    account: Account | None = None

    def promise(self, folder: Path) -> None:
        """Fix the numbers of a private run and open its account; refuse what its budget cannot pay for."""
        self.plan = make_plan(self.config, len(self.roster.training), self.paid_rounds())
        if self.plan is not None:
            self.account = Account.opened(folder, self.config, self.plan, simulated=self.roster.simulated)

    def paid_rounds(self) -> int:
        """Rounds in which shared updates are sent, of all arms: those that count for two arms are paid once."""
        arms = [arm for name in self.config.arms if (arm := trained_arm(name, self.config)) and federates(arm)]
        twins = sum(min(twin.rounds, self.config.train.rounds) for twin in self._twins().values())
        return sum(self._shared_rounds(arm) for arm in arms) - twins

    def _shared_rounds(self, arm: Arm) -> int:
        train = self.config.train
        return train.rounds - train.private_rounds if self._has_private_phase(arm) else train.rounds

    def strategy(self, arm: Arm, devices: tuple[str, ...], *, phase: str = FEDERATE) -> SharedFedAvg:
        """The strategy of an arm."""
        roster = self.roster
        if devices == (EVERYONE,):
            total = sum(roster.examples[d] for d in roster.training)
            home = roster.nodes[roster.training[0]]
            roster = Roster({**roster.nodes, EVERYONE: home}, {**roster.examples, EVERYONE: total})
        train = self.config.train
        account = self.account
        return make_strategy(
            self.config,
            arm,
            plan=self.plan,
            charge=account.charge if account is not None else lambda *_: None,
            attacker=make_attacker(self.config, self.roster.training) if federates(arm) else None,
            roster=roster,
            settings=settings_record(self.config),
            job=Job(arm=arm.name, round=0, devices=devices, phase=phase),
            seed=self.config.seed,
            sample=self.config.federation.sample,
            rests_from=train.rounds - train.private_rounds + 1 if self._has_private_phase(arm) else 0,
        )

    def _has_private_phase(self, arm: Arm) -> bool:
        return arm.gate != "none" and not arm.joint and self.config.train.private_rounds > 0

    def fresh(self, arm: Arm) -> State:
        """A fresh adapter for an arm."""
        return fresh_state(self.config, self.task, arm.gate)

    def check(self) -> None:
        """Refuse a strategy that cannot work with what an arm shares or with how many take part, before the first round."""
        federation = self.config.federation
        if federation.attack != NONE:
            if not self.roster.simulated:
                raise ConfigError(
                    f"attack = {federation.attack!r} is for simulations, and some of these nodes are deployed"
                )
            hostile = attackers(self.roster.training, federation.attacker_share, self.config.seed)
            log.warning(
                "STUDY OF HOSTILE DEVICES: attack = %s, %d of %d devices are hostile: %s",
                federation.attack,
                len(hostile),
                len(self.roster.training),
                ", ".join(sorted(hostile)[:20]),
            )
        for name in self.config.arms:
            arm = trained_arm(name, self.config)
            if arm is not None and arm.devices == EVERYONE and not self.roster.simulated:
                raise ConfigError(
                    f"arm {name!r} needs everybody's data in one place, and some of these nodes are deployed: leave it out of arms"
                )
            if arm is not None and federates(arm):
                fresh = self.fresh(arm)
                shapes = {n: tuple(fresh[n].shape) for n in make_split(arm.split, fresh).shared}
                self.strategy(arm, self.roster.training).require_fit(shapes)
                if blend := make_blend(arm.personal):
                    require_room(arm.personal, blend, fresh)

    def run(self) -> None:
        """Train what has to be trained, then evaluate every arm on test data."""
        finished: dict[str, ArrayRecord] = {}
        config, training = self.config, self.roster.training
        self.loop.twins = self._twins()
        for name in config.arms:
            arm = trained_arm(name, config)
            if arm is None:
                continue
            if arm.starts_from:
                start, rounds, phase = finished[arm.starts_from], 1, FINETUNE
            else:
                fresh = self.fresh(arm)
                shared = make_split(arm.split, fresh).shared
                start = to_arrays({n: fresh[n] for n in shared}) if shared else ArrayRecord()
                rounds, phase = config.train.rounds, FEDERATE
                if self._has_private_phase(arm):  # the private rounds are one, of as many steps
                    rounds += 1 - config.train.private_rounds
            devices = (EVERYONE,) if arm.devices == EVERYONE else training
            strategy = self.strategy(arm, devices, phase=phase)
            every = config.federation.evaluate_every
            finished[name] = self.loop.train(strategy, start, rounds, every, training)
            self.results.flush()
        for name in config.arms if self.task.learns else ():
            self._evaluate(name, finished)
            self.results.flush()

    def _twins(self) -> dict[str, Twin]:
        """``personalized`` begins as ``global`` does while gates are neutral, if both share the same tensors."""
        arms = [trained_arm(name, self.config) for name in ("global", "personalized") if name in self.config.arms]
        rounds = self.config.train.neutral_rounds
        # What error feedback keeps on a device belongs to one arm.
        if len(arms) < 2 or not rounds or self.config.privacy.error_feedback:
            return {}
        other = any(arm is not None and arm.personal != BY_GATES for arm in arms)
        if other or self.config.federation.strategy == "scaffold":
            return {}  # so does all that a device has beside its adapter
        shared = [self._shared_shapes(arm) for arm in arms if arm is not None]
        return {"global": Twin("personalized", rounds)} if shared[0] == shared[1] else {}

    def _shared_shapes(self, arm: Arm) -> dict[str, tuple[int, ...]]:
        fresh = self.fresh(arm)
        return {name: tuple(fresh[name].shape) for name in make_split(arm.split, fresh).shared}

    def _evaluate(self, name: str, finished: dict[str, ArrayRecord]) -> None:
        """The final evaluation of one arm on test data, of participants and, where it means something, of new people."""
        self.loop.progress(f"test: {name}", 0, 1)
        arm, _ = evaluated_as(name, self.config)
        arrays = ArrayRecord() if arm is None else finished[arm.name]
        if arm is not None and not make_split(arm.split, self.fresh(arm)).shared:
            arrays = ArrayRecord()
        devices = self.roster.training + (self.roster.new_people if name in NEW_PEOPLE_ARMS else ())
        template = arm or Arm(name, gate="none", split="all-shared")
        rounds = 1 if arm is not None and arm.starts_from else self.config.train.rounds
        started = time.perf_counter()
        strategy = self.strategy(template, devices)
        found = load_checkpoint(self.loop.checkpoints, template.name, self.task.fingerprint)
        strategy.restore(found.state if found else {})  # which may say what to send to whom
        self.loop.evaluate(
            strategy,
            arrays,
            rounds,
            self.config.federation.final_split,
            devices,
            arm=name,
            final=True,
        )
        self.loop.seconds[name] = self.loop.seconds.get(name, 0.0) + time.perf_counter() - started
        self.loop.progress(f"test: {name}", 1, 1)

    def _sizes(self, arm: Arm) -> dict[str, int]:
        """What one device trains in an arm, and what of it travels."""
        fresh = self.fresh(arm)
        whole, shared = size_of(fresh), size_of(fresh, make_split(arm.split, fresh).shared)
        return {"parameters": whole.parameters, "bytes": whole.bytes, "shared_bytes": shared.bytes}

    def costs(self) -> dict[str, Any]:
        """Bytes, sizes and seconds of the run, with what is needed to read them."""
        config, task = self.config, self.task
        reported = next(
            (name for name in ("personalized", "global", "local", "centralized") if name in config.arms), ""
        )
        personal = trained_arm(reported or "centralized", config)
        assert personal is not None
        fresh = self.fresh(personal)
        split = make_split(personal.split, fresh)
        whole, shared, private = size_of(fresh), size_of(fresh, split.shared), size_of(fresh, split.private)
        blend = make_blend(personal.personal)
        base = list(task.model.parameters())
        rows = [r for r in self.results.rows() if r["arm"] == personal.name and r["steps"]]
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
            "private_bytes": own_bytes(blend, fresh) if blend else private.bytes,
            "bytes_up_per_device_round": max((r["bytes_up"] for r in rows), default=0),
            "bytes_down_per_device_round": max((r["bytes_down"] for r in rows), default=0),
            "seconds": {name: round(value, 2) for name, value in self.loop.seconds.items()},
            "rounds": config.train.rounds,
            "local_steps": config.train.local_steps,
            "batch_size": config.train.batch_size,
            "devices": len(self.roster.training),
            "new_people": len(self.roster.new_people),
            "seed": config.seed,
            "machine": machine(),
            "versions": {n: version(n) for n in ("flwr", "torch", "transformers", "peft", "ray", "jiwer")},
        }


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, and system, without the machine's name."""
    return {
        "processor": processor(),
        "cores": available_cores(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def run_server(grid: Grid, config: RunConfig, run_id: int, progress: Progress | None = None) -> Path:
    """A whole run over ``grid``; returns the run folder, with everything but the report in it."""
    check_strategy(config)
    config = run_folder(config, run_id)
    folder = Path(config.output)
    with freed_if_empty(folder):
        task = load_task(config)
        roster = ask_roster(grid, config)
        log.info(
            "%d devices train, %d new people, %d nodes",
            len(roster.training),
            len(roster.new_people),
            len(set(roster.nodes.values())),
        )
        results = ResultsFile(folder)
        new_people = frozenset(roster.new_people)

        def write_row(arm: str, server_round: int, split: str, reply: DeviceReply, trained: DeviceReply | None) -> None:
            results.add(make_row(arm, server_round, split, reply, trained, reply.device_id in new_people))

        loop = RoundLoop(
            grid,
            folder / "checkpoints",
            task.fingerprint,
            write_row,
            config.federation.round_timeout,
            progress or (lambda *_: None),
            flush=results.flush,
            metrics=task_kind(config.data.task).logged,
        )
        comparison = Comparison(config, grid, roster, task, loop, results)
        comparison.promise(folder)
        comparison.check()
    try:
        comparison.run()
    finally:  # what was spent is said of a run that stopped too
        if comparison.account is not None:
            comparison.account.write(folder)
    gather_predictions(folder, config.arms, roster.nodes)
    write_costs(folder, comparison.costs())
    log.info("run finished: %s", folder)
    return folder


def final_rates(rows: list[dict[str, Any]], split: str, metrics: tuple[str, ...]) -> dict[str, str]:
    """The pooled error rates of each arm's final evaluation, participants and new people apart, in words for the log."""
    texts: dict[str, str] = {}
    last = {row["arm"]: row["round"] for row in sorted(rows, key=lambda row: row["round"]) if row["split"] == split}
    for new_person in (False, True):
        totals: dict[str, dict[str, Counts]] = {}
        for row in rows:
            if row["split"] == split and row["round"] == last[row["arm"]] and row["new_person"] == new_person:
                counts = {name: Counts.from_dict(c) for name, c in row["metrics"].items()}
                totals[row["arm"]] = add_counts([totals.get(row["arm"], {}), counts])
        for arm, total in totals.items():
            rates = {name: total[name].rate for name in metrics if name in total}
            text = ", ".join(f"{name.upper()} {100 * rate:.1f} %" for name, rate in rates.items() if rate is not None)
            texts[arm] = f"{texts[arm]}; new people {text}" if arm in texts else text
    return texts


def make_server_app(config: RunConfig, done: Callable[[Path], None], progress: Progress | None = None) -> ServerApp:
    """A ServerApp with a configuration of its own, for ``idiolect run``, which also wants the folder and the progress."""
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        done(run_server(grid, config, context.run_id, progress))

    return server


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """What ``flwr run`` starts: the configuration comes from ``[tool.flwr.app.config]`` and ``--run-config``."""
    flower = logging.getLogger("flwr")
    log.handlers, log.propagate = flower.handlers, False  # --stream shows what Flower's own logger prints
    log.setLevel(logging.INFO)
    config = make_config(dict(context.run_config))
    folder = run_server(grid, config, context.run_id)
    metrics = task_kind(config.data.task).logged
    for arm, rates in final_rates(ResultsFile(folder).rows(), config.federation.final_split, metrics).items():
        log.info("%-16s %s", arm, rates)
    if (folder / PREDICTIONS_NAME).stat().st_size:
        log.info("report: idiolect report %s", folder)
    else:
        log.info("counts of each device: %s; what they predicted stays with them", folder / RESULTS_NAME)
