"""The audit itself: train once for each split, then protect and attack the same recorded updates in every way.

All of it lies in one folder: a run folder for each split, with its recorded updates, and ``rows.jsonl`` with a line for each
pair of split and protection that is done, so that an audit that was stopped resumes there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from fl import __version__
from fl.algorithms.arms import trained_arm
from fl.algorithms.personal.gates import Gates
from fl.algorithms.table import chosen
from fl.core.files import PUBLIC
from fl.core.machine import machine
from fl.privacy.audit import attributes as audit_attributes
from fl.privacy.audit import linkage as audit_linkage
from fl.privacy.audit.attackers import CONFIDENCE, SAMPLES, AuditError, Floats, Kernels, check_people
from fl.privacy.audit.attributes import infer
from fl.privacy.audit.linkage import linkage
from fl.privacy.audit.membership import membership
from fl.privacy.audit.views import ServerView, make_protection, median_norm
from fl.runs.files import write_whole
from fl.runs.folder import run_folder
from fl.settings.config import RunConfig, find_key, flat, make_config
from fl.settings.names import EDGE, LAYERS_PREFIX, NONE
from fl.settings.tables import CodecTable, PrivacyTable
from fl.tasks.table import task_kind
from sim.audit.losses import LossMeter
from sim.audit.people import agreements, attributes, utterances
from sim.audit.record import ARM, RecordedRound, federated_rounds, load_round, record, split_config
from strategies.loop import Progress

SPLITS = "all-shared,gates,fedsa,ffa"
ROWS_NAME, RESULT_NAME = "rows.jsonl", "audit.json"
BASE_ROW, ADAPTER_ROW = "frozen base", "whole adapter"  # rows that are no protections
Document = dict[str, Any]


@dataclass(frozen=True)
class AuditPlan:
    """What is audited: ``config`` holds everything but the splits, each of which is one recorded run."""

    config: RunConfig
    splits: tuple[str, ...]
    protections: tuple[str, ...]

    def __post_init__(self) -> None:
        config = self.config
        for name in self.protections:
            make_protection(name)
        if not self.splits or not self.protections:
            raise AuditError("nothing to audit: name at least one split and one protection")
        odd = [split for split in self.splits if split.startswith(LAYERS_PREFIX) and "," in split]
        if odd:
            raise AuditError(f"split {odd[0]!r} has a comma, which separates splits: write the pattern without one")
        protects = (config.privacy, config.codec) != (PrivacyTable(), CodecTable())
        changed = protects or config.federation.aggregation == EDGE or config.attack.name != NONE
        if changed or not isinstance(chosen(config).personal, Gates):
            raise AuditError(
                "the audit protects and attacks plain updates itself: leave out dp, secure-sum, codec and the other settings "
                "of privacy, aggregation = 'edge', attack and other personalizations than gates"
            )
        if not config.data.manifest and task_kind(config.task).takes_manifest:
            check_people(config.data.devices, "an audit")
        if federated_rounds(config) < 2:
            raise AuditError(
                f"rounds = {config.federation.rounds} leaves one round with shared updates: give at least 3"
            )
        for split in self.splits:
            arm = trained_arm(ARM, split_config(config, split, Path()))  # refuses a gate or pattern that does not fit
            if arm is None or not arm.federates:
                raise AuditError(f"split {split!r} shares nothing, so there is nothing to attack: leave it out")


class AuditRows:
    """The finished rows of an audit, one JSON line each; a line that is none was never finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[tuple[str, str], Document] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                self.found[row["split"], row["protection"]] = row

    def need(self, split: str, protection: str, make: Callable[[], Document]) -> None:
        """Make the row and write it, unless it is there."""
        if (split, protection) in self.found:
            return
        self.found[split, protection] = {"split": split, "protection": protection, **make()}
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in self.found.values()), mode=PUBLIC)


def run_audit(plan: AuditPlan, progress: Progress = lambda *_: None) -> Document:
    """All rows and the conditions under which they were measured; both are in the audit's folder too."""
    config = run_folder(plan.config, 0)  # absolute; refuses a folder that was made with other settings
    folder = Path(config.output)
    rows = AuditRows(folder / ROWS_NAME)
    splits: list[Document] = []
    facts: Document = {}
    for split in plan.splits:
        one = SplitAudit(plan, config, split, progress)
        splits.append(one.audit(rows))
        facts = one.facts
    wanted = [(split, name) for split in ("", *plan.splits) for name in (BASE_ROW, *plan.protections, ADAPTER_ROW)]
    document = {
        "schema": 1,
        "conditions": _conditions(config, facts),
        "splits": splits,
        "rows": [rows.found[key] for key in wanted if key in rows.found],
    }
    (folder / RESULT_NAME).write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return document


def _conditions(config: RunConfig, facts: Document) -> Document:
    train = config.train
    return {
        "base": config.base.name,
        "gate": config.gate,
        "rank": config.adapter.rank,
        "sites": config.adapter.sites,
        "rounds": federated_rounds(config),
        "local_steps": train.local_steps,
        "batch_size": train.batch_size,
        "learning_rate": train.learning_rate,
        "seed": config.seed,
        "data_seed": config.data_seed,
        "data": config.data.manifest or f"synthetic {config.data.synthetic.pair}",
        **facts,
        "bootstrap": SAMPLES,
        "permutations": f"{audit_linkage.PERMUTATIONS} to {audit_attributes.PERMUTATIONS}",
        "confidence": CONFIDENCE,
        "machine": machine(),
        "versions": {"idiolect-fl": __version__, **{n: version(n) for n in ("flwr", "numpy", "torch", "transformers")}},
    }


class SplitAudit:
    """One split: its recorded run, and every protection of its updates."""

    def __init__(self, plan: AuditPlan, config: RunConfig, split: str, progress: Progress) -> None:
        self.split, self.protections, self.progress = split, plan.protections, progress
        self.config = split_config(config, split, Path(config.output) / split.replace("/", "_"))
        self.meter = LossMeter(self.config)
        task = self.meter.worker.task
        trained = [name for name in task.device_ids() if not task.is_new(name)]
        check_people(len(trained), "an audit")
        devices = [task.device(name) for name in trained]
        population = getattr(task, "population", None)  # of speech: where its manifest lies
        self.labels, left_out = attributes(devices, None if population is None else population.manifest)
        self.chosen = utterances(trained, task.device, config.seed)
        members = sum(member for _, member, _ in self.chosen)
        self.facts: Document = {
            "people": len(trained),
            "members": members,
            "non_members": len(self.chosen) - members,
            "attributes": {name: sum(labels.values()) for name, labels in self.labels.items()},
            "attributes_left_out": left_out,
            "agreements": agreements(self.labels),
        }

    def audit(self, rows: AuditRows) -> Document:
        """Record, then make the rows that are missing; what travels with this split."""
        self.files = record(self.config, self._trained)
        self.last = load_round(self.files[-1])
        self.bound = median_norm(load_round(path).updates for path in self.files)
        self.reference = self.meter.reference(self.chosen)
        rows.need("", BASE_ROW, lambda: self._membership(self.reference))
        work = {name: partial(self._protected, name) for name in self.protections} | {ADAPTER_ROW: self._adapters}
        for place, (name, make) in enumerate(work.items()):
            self.progress(f"attack: {self.split}", place, len(work))
            rows.need(self.split, name, make)
        self.progress(f"attack: {self.split}", len(work), len(work))
        numbers = sum(value.size for value in self.last.old.values())
        return {
            "split": self.split,
            "rounds": len(self.files),
            "tensors": len(self.last.old),
            "numbers": numbers,
            "clipping_norm": self.bound,
            "noise_to_update": float(np.sqrt(numbers)),  # norm of noise of multiplier 1 over the clipping norm
        }

    def _trained(self, what: str, done: int, total: int) -> None:
        if what == ARM:  # not the evaluation at the end, which has nothing to decode
            self.progress(f"train: {self.split}", done, total)

    def _protected(self, name: str) -> Document:
        protect = make_protection(name)

        def seen(recorded: RecordedRound) -> ServerView:
            return protect(recorded.updates, self.bound, (self.config.seed, "audit", self.split, name, recorded.round))

        view = seen(self.last)
        row: Document = {}
        if view.each:
            earlier = {one.round: seen(one).each for one in map(load_round, self.files[:-1])}
            kernels, seed = Kernels.of({**earlier, self.last.round: view.each}), self.config.seed
            row["linkage"] = {n: asdict(found) for n, found in linkage(kernels, seed=seed).items()}
            row["attributes"] = {n: asdict(infer(kernels, own, n, seed=seed)) for n, own in self.labels.items()}
        there = np.array([person in self.last.updates for person, _, _ in self.chosen])
        chosen = list(compress(self.chosen, there))
        return row | self._membership(self.meter.under_view(self.last, view, chosen), there)

    def _adapters(self) -> Document:
        return self._membership(self.meter.under_adapters(self.chosen))

    def _membership(self, losses: Floats, there: np.ndarray | None = None) -> Document:
        """What is found of the chosen utterances; of those ``there`` alone, whose losses are given."""
        there = np.ones(len(self.chosen), bool) if there is None else there
        people = [person for person, _, _ in compress(self.chosen, there)]
        member = np.array([trained for _, trained, _ in compress(self.chosen, there)])
        found = membership(people, member, losses, self.reference[there], seed=self.config.seed)
        return {"membership": {name: asdict(one) for name, one in found.items()}}


def with_sizes(config: RunConfig, smaller: dict[str, Any], start: RunConfig) -> RunConfig:
    """``config`` with the values of ``smaller`` wherever it still has that of ``start``: what was chosen by hand stays."""
    before, now = flat(start), flat(config)
    keys = {find_key(key): value for key, value in smaller.items()}
    return make_config({key: value for key, value in keys.items() if before[key] == now[key]}, config)
