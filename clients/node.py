"""Which devices live on a node. The ids of a population are listed once in a process, whatever the number of messages."""

from pathlib import Path

from clients.training.enrol_method import method_of
from clients.worker import Worker, get_worker
from fl.algorithms.arms import Arm, evaluated_as
from fl.algorithms.personal.enrolment import EnrolledPart
from fl.algorithms.plan import Phase
from fl.core.errors import ConfigError, DemandError
from fl.protocol.node import NodeConfig
from fl.protocol.wire import Job
from fl.settings.config import RunConfig
from fl.settings.fields import words
from fl.settings.names import OWN_MANIFEST
from fl.tasks.table import TASKS, is_own_base

RUNS_DATA = "run"  # as the manifest of a node-config: what the run names


def node_worker(config: RunConfig, node: NodeConfig, run: str = "") -> Worker:
    """The worker of a node; :class:`ConfigError` if it has no place for private state.

    A simulation keeps it beside the run. A deployed device says itself where: the run's settings come from the aggregator, who has
    no say over paths of other people's disks.
    """
    if not node.store and node.deployed:
        raise ConfigError(
            "no place for private state: start the SuperNode with --node-config \"device-id='...' store='/path/to/private/state'\""
        )
    if not node.store and not config.output:
        raise ConfigError("no place for private state: set output in the run-config, or store in the node-config")
    root = node.store or str(Path(config.output) / "devices")
    if node.deployed:
        _check_base(config, node)
    return get_worker(_with_own_data(config, node), Path(root), run)


def _check_base(config: RunConfig, node: NodeConfig) -> None:
    """Raise :class:`DemandError` unless the base is one that the owner allows; by default the project's own, pinned by their hashes."""
    asked = TASKS[config.task].base_of(config)
    if not (asked in words(node.bases) if node.bases else is_own_base(asked)):
        raise DemandError(
            f"base = {asked!r} is none that this device loads: use a base that `idiolect bases` lists, or let the owner start the "
            "SuperNode with it in --node-config \"bases='...'\""
        )


def check_job(job: Job, config: RunConfig, node: NodeConfig, *, training: bool) -> None:
    """Raise :class:`DemandError` for a job that no run of these settings has, or with more work than a deployed device's owner allows."""
    if not node.deployed:
        return
    arm, _ = evaluated_as(job.arm, config)
    rounds = config.federation.rounds if arm is None else max(config.federation.rounds, arm.schedule.rounds)
    if job.round > rounds:
        raise DemandError(f"round {job.round} is none of a run of {rounds} rounds: it takes no part")
    work = 0 if arm is None or not training else _examples_of(arm, job)
    if work > node.max_examples:
        raise DemandError(
            f"a message would train on {work:,} examples (steps times batch-size), and this device allows {node.max_examples:,}: lower "
            'local-steps or batch-size, or let the owner start the SuperNode with a larger --node-config "max-examples=..."'
        )


def _examples_of(arm: Arm, job: Job) -> int:
    """How many examples a device trains on in a message, each as often as it comes."""
    part, plan = arm.personal, arm.schedule.plan(job.round)
    if isinstance(part, EnrolledPart) and job.phase is Phase.PERSONALIZE:
        return method_of(part).examples
    return (plan.steps + plan.private_steps) * plan.batch_size


def _with_own_data(config: RunConfig, node: NodeConfig) -> RunConfig:
    """What a node learns from. A deployed one: what its owner says, and nobody in there is held out."""
    if node.deployed and not node.manifest:
        raise DemandError(
            "no data: start the SuperNode with --node-config \"device-id='...' store='...' manifest='/path/to/manifest.jsonl'\"; "
            f"manifest={RUNS_DATA!r} takes the manifest that the run names"
        )
    if node.deployed and node.manifest != RUNS_DATA:
        return config.changed({"data.manifest": node.manifest, "data.new-people": 0})
    if config.data.manifest == OWN_MANIFEST:
        raise ConfigError(
            f"manifest = {OWN_MANIFEST!r} is for deployed devices, each of which names its own: start the SuperNode with --node-config "
            "\"device-id='...' store='...' manifest='/path/to/manifest.jsonl'\""
        )
    return config


class Hosting:
    """The devices of one node: the one that a deployed node names, or every N-th of a simulation with N nodes."""

    def __init__(self, worker: Worker, node: NodeConfig) -> None:
        self._places, self.worker, self.node = worker.places, worker, node
        if node.deployed and node.device_id not in self._places:
            known = ", ".join(list(self._places)[:10])
            lost = [row for row in worker.task.left_out if row.device == node.device_id]
            why = f"none of its {len(lost)} examples can be used; the first: {lost[0]}" if lost else ""
            raise ConfigError(f"device-id {node.device_id!r} has no data here: {why or f'known devices are {known}'}")
        if not node.deployed and not node.partitions:
            raise ConfigError("this node has no device: start the SuperNode with --node-config \"device-id='...'\"")

    def __contains__(self, device_id: str) -> bool:
        if self.node.deployed:
            return device_id == self.node.device_id
        return (
            device_id in self._places
        )  # in a simulation all nodes see all data and private state, and any may train any device

    def ids(self) -> tuple[str, ...]:
        """All of them, in the order of the population."""
        if self.node.deployed:
            return (self.node.device_id,)
        return tuple(self._places)[self.node.partition :: self.node.partitions]
