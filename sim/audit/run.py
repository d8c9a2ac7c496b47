"""The audit itself: train once for each split, then protect and attack the same recorded updates in every way.

All of it lies in one folder: a run folder for each split, with its recorded updates, and ``rows.jsonl`` with a line for each
pair of split and protection that is done, so that an audit that was stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from fl import __version__
from fl.privacy.audit import attributes as audit_attributes
from fl.privacy.audit import linkage as audit_linkage
from fl.privacy.audit.attackers import CONFIDENCE, SAMPLES, AuditError, Floats, check_people
from fl.privacy.audit.attributes import infer
from fl.privacy.audit.kernels import Kernels
from fl.privacy.audit.linkage import linkage
from fl.privacy.audit.membership import Losses, membership
from fl.privacy.audit.views import Seen, View, make_view, median_norm
from fl.settings.config import PrivacyConfig, RunConfig, flat, make_config
from fl.settings.names import EDGE, LAYERS_PREFIX, NONE, SPEECH
from sim.audit.losses import Chosen, LossMeter
from sim.audit.people import Labels, agreements, attributes, utterances
from sim.audit.record import ARM, federated_rounds, load_round, record, split_config
from strategies.app import machine
from strategies.folder import run_folder
from strategies.loop import Progress

SPLITS = "all-shared,gates,fedsa,ffa"
ROWS_NAME, RESULT_NAME = "rows.jsonl", "audit.json"
BASE_ROW, ADAPTER_ROW = "frozen base", "whole adapter"  # rows that are no protections
Document = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is audited: ``config`` holds everything but the splits, each of which is one recorded run."""

    config: RunConfig
    splits: tuple[str, ...]
    protections: tuple[str, ...]

    def __post_init__(self) -> None:
        config = self.config
        for name in self.protections:
            make_view(name)
        if not self.splits or not self.protections:
            raise AuditError("nothing to audit: name at least one split and one protection")
        if "all-private" in self.splits:
            raise AuditError("split 'all-private' shares nothing, so there is nothing to attack: leave it out")
        odd = [split for split in self.splits if split.startswith(LAYERS_PREFIX) and "," in split]
        if odd:
            raise AuditError(f"split {odd[0]!r} has a comma, which separates splits: write the pattern without one")
        changed = config.privacy != PrivacyConfig() or config.federation.aggregation == EDGE
        if changed or config.federation.attack != NONE or config.personal.personalization != "gates":
            raise AuditError(
                "the audit protects and attacks plain updates itself: leave out dp, secure-sum, codec and the other settings "
                "of privacy, aggregation = 'edge', attack and personalization"
            )
        if not config.data.manifest and config.data.task == SPEECH:
            check_people(config.data.devices, "an audit")
        if federated_rounds(config) < 2:
            raise AuditError(f"rounds = {config.train.rounds} leaves one round with shared updates: give at least 3")
        for split in self.splits:
            make_config({}, split_config(config, split, Path()))  # refuses a gate or pattern that does not fit


class Rows:
    """The finished rows of an audit, one JSON line each; a line that a crash cut off was never finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[tuple[str, str], Document] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                row = json.loads(line)
                self.found[row["split"], row["protection"]] = row
            except (ValueError, KeyError, TypeError):
                continue

    def need(self, split: str, protection: str, make: Callable[[], Document]) -> Document:
        """The row as it stands, or made and written now."""
        key = split, protection
        if key not in self.found:
            self.found[key] = {"split": split, "protection": protection, **make()}
            try:
                before = self.path.read_text(encoding="utf-8") if self.path.is_file() else "\n"
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(("" if before.endswith("\n") else "\n") + json.dumps(self.found[key]) + "\n")
            except OSError as error:
                raise AuditError(f"{self.path} cannot be written: {error}; free some space and start again") from error
        return self.found[key]


def run_audit(plan: Plan, progress: Progress = lambda *_: None) -> Document:
    """All rows and the conditions under which they were measured; both are in the audit's folder too."""
    config = run_folder(plan.config, 0)  # absolute; refuses a folder that was made with other settings
    folder = Path(config.output)
    rows = Rows(folder / ROWS_NAME)
    splits: list[Document] = []
    facts: Document = {}
    for split in plan.splits:
        one = _Split(config, split, folder / split.replace("/", "_"), plan, progress)
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
        "base": config.base.base,
        "gate": config.adapter.gate,
        "rank": config.adapter.rank,
        "sites": config.adapter.sites,
        "rounds": federated_rounds(config),
        "local_steps": train.local_steps,
        "batch_size": train.batch_size,
        "learning_rate": train.learning_rate,
        "seed": config.seed,
        "data_seed": config.data_seed,
        "data": config.data.manifest or f"synthetic {config.data.pair}",
        **facts,
        "bootstrap": SAMPLES,
        "permutations": f"{audit_linkage.PERMUTATIONS} to {audit_attributes.PERMUTATIONS}",
        "confidence": CONFIDENCE,
        "machine": machine(),
        "versions": {"idiolect-fl": __version__, **{n: version(n) for n in ("flwr", "numpy", "torch", "transformers")}},
    }


class _Split:
    """One split: its recorded run, and every protection of its updates."""

    def __init__(self, config: RunConfig, split: str, folder: Path, plan: Plan, progress: Progress) -> None:
        self.split, self.plan, self.progress = split, plan, progress
        self.config = split_config(config, split, folder)
        self.meter = LossMeter(self.config)
        task = self.meter.worker.task
        trained = [name for name in task.device_ids() if not task.is_new(name)]
        check_people(len(trained), "an audit")
        devices = [task.device(name) for name in trained]
        population = getattr(task, "population", None)  # of speech: where its manifest lies
        self.labels, left_out = attributes(devices, None if population is None else population.manifest)
        self.chosen: Chosen = utterances(trained, task.device, config.seed)
        members = sum(member for _, member, _ in self.chosen)
        self.facts: Document = {
            "people": len(trained),
            "members": members,
            "non_members": len(self.chosen) - members,
            "attributes": {name: sum(labels.values()) for name, labels in self.labels.items()},
            "attributes_left_out": left_out,
            "agreements": agreements(self.labels),
        }

    def audit(self, rows: Rows) -> Document:
        """Record, then make the rows that are missing; what travels with this split."""
        self.files = record(self.config, self._trained)
        first, last = load_round(self.files[0]), load_round(self.files[-1])
        self.bound = median_norm(load_round(path).updates for path in self.files)
        self.last = last
        reference = self.meter.reference(self.chosen)
        rows.need("", BASE_ROW, lambda: {"membership": self._members(self._base(reference))})
        names = self.plan.protections
        for place, name in enumerate(names):
            self.progress(f"attack: {self.split}", place, len(names) + 1)
            rows.need(self.split, name, lambda name=name: self._protected(name, reference))  # type: ignore[misc]
        self.progress(f"attack: {self.split}", len(names), len(names) + 1)
        rows.need(self.split, ADAPTER_ROW, lambda: self._adapters(reference))
        self.progress(f"attack: {self.split}", len(names) + 1, len(names) + 1)
        numbers = sum(value.size for value in first.old.values())
        return {
            "split": self.split,
            "rounds": len(self.files),
            "tensors": len(first.old),
            "numbers": numbers,
            "clipping_norm": self.bound,
            "noise_to_update": float(np.sqrt(numbers)),  # norm of noise of multiplier 1 over the clipping norm
        }

    def _trained(self, what: str, done: int, total: int) -> None:
        if what == ARM:  # not the evaluation at the end, which has nothing to decode
            self.progress(f"train: {self.split}", done, total)

    def _seen(self, view: View, name: str, path: Path) -> tuple[int, Seen]:
        recorded = load_round(path)
        seed = (self.config.seed, "audit", self.split, name, recorded.round)
        return recorded.round, view(recorded.updates, self.bound, seed)

    def _protected(self, name: str, reference: Floats) -> Document:
        view = make_view(name)
        number, seen = self._seen(view, name, self.files[-1])
        row: Document = {}
        if seen.linkable:
            earlier = (self._seen(view, name, path) for path in self.files[:-1])
            kernels = Kernels.of({**{r: one.each for r, one in earlier}, number: seen.each})
            row["linkage"] = {n: asdict(found) for n, found in linkage(kernels, seed=self.config.seed).items()}
            row["attributes"] = {n: self._inferred(kernels, n, labels) for n, labels in self.labels.items()}
        there = [place for place, (person, _, _) in enumerate(self.chosen) if person in self.last.updates]
        chosen = [self.chosen[place] for place in there]
        row["membership"] = self._members(self.meter.under_views(self.last, seen, chosen, reference[there]))
        return row

    def _inferred(self, kernels: Kernels, name: str, labels: Labels) -> Document:
        return asdict(infer(kernels, labels, name, seed=self.config.seed))

    def _members(self, losses: Losses) -> Document:
        return {name: asdict(found) for name, found in membership(losses, seed=self.config.seed).items()}

    def _base(self, reference: Floats) -> Losses:
        members = np.array([member for _, member, _ in self.chosen])
        return Losses(tuple(person for person, _, _ in self.chosen), members, reference, reference)

    def _adapters(self, reference: Floats) -> Document:
        return {"membership": self._members(self.meter.under_adapters(self.chosen, reference))}


def with_sizes(config: RunConfig, smaller: dict[str, Any], start: RunConfig) -> RunConfig:
    """``config`` with the values of ``smaller`` wherever it still has that of ``start``: what was chosen by hand stays."""
    before, now = flat(start), flat(config)
    keys = {key: key.replace("_", "-") for key in smaller}
    return make_config({key: smaller[key] for key, flag in keys.items() if before[flag] == now[flag]}, config)


def parse_words(text: str) -> tuple[str, ...]:
    """Words with commas between, each once."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
