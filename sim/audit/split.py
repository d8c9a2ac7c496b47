"""One split of an audit: protect and attack what its run recorded, in every way.

Membership inference needs losses of utterances, in nats, under the models that an attacker can form of the updates.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clients.worker import get_worker
from fl.adapters.files import load_adapter
from fl.adapters.state import load_state
from fl.algorithms.arms import trained_arm
from fl.data.batching import buckets
from fl.privacy.audit.attackers import Floats, Kernels, check_people
from fl.privacy.audit.inference import infer, membership
from fl.privacy.audit.linkage import linkage
from fl.privacy.audit.views import ServerView, make_protection, median_norm
from fl.runs.files import write_whole
from fl.runs.progress import Progress
from fl.settings.config import RunConfig
from fl.tasks.task import Example
from sim.audit.people import Chosen, agreements, attributes, utterances
from sim.audit.record import ARM, RecordedRound, load_round, record, split_config

BASE_ROW, ADAPTER_ROW = "frozen base", "whole adapter"  # rows that are no protections
BATCH_ROWS = 16
Document = dict[str, Any]


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
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in self.found.values()))


class SplitAudit:
    """One split: its recorded run, every protection of its updates, and the losses under models that an attacker can form.

    ``config`` is the audit's, in whose folder the run lies.
    """

    def __init__(self, config: RunConfig, split: str, progress: Progress) -> None:
        self.split, self.progress = split, progress
        self.config = split_config(config, split, Path(config.output) / split.replace("/", "_"))
        arm = trained_arm(ARM, self.config)
        assert arm is not None
        self.gate = arm.gate
        self.worker = get_worker(self.config, Path(self.config.output) / "devices")
        self.initial = {name: tensor.numpy() for name, tensor in self.worker.initial(self.gate).items()}
        task = self.worker.task
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

    def audit(self, rows: AuditRows, protections: Sequence[str]) -> Document:
        """Record, then make the rows that are missing; what travels with this split."""
        self.files = record(self.config, self._trained)
        self.last = load_round(self.files[-1])
        self.bound = median_norm(load_round(path).updates for path in self.files)
        # Under the adapter before any training, which equals the frozen base: it has seen nobody.
        self.reference = self.losses({}, [example for _, _, example in self.chosen])
        rows.need("", BASE_ROW, lambda: self._membership(self.chosen, self.reference, self.reference))
        work = {name: partial(self._protected, name) for name in protections} | {ADAPTER_ROW: self._adapters}
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
        there = [place for place, (person, _, _) in enumerate(self.chosen) if person in self.last.updates]
        chosen = [self.chosen[place] for place in there]
        losses = self.under_view(self.last, view, chosen)
        return row | self._membership(chosen, losses, self.reference[there])

    def _adapters(self) -> Document:
        return self._membership(self.chosen, self.under_adapters(self.chosen), self.reference)

    def _membership(self, chosen: Sequence[Chosen], losses: Floats, reference: Floats) -> Document:
        people, member, _ = zip(*chosen, strict=True)
        found = membership(people, np.array(member), losses, reference, seed=self.config.seed)
        return {"membership": {name: asdict(one) for name, one in found.items()}}

    def losses(self, tensors: Mapping[str, np.ndarray], examples: Sequence[Example]) -> Floats:
        """Mean loss over the labels of each example, in nats ``(examples,)``; tensors that are not given are as at the start."""
        slot = self.worker.slot(self.gate)
        state = {name: torch.from_numpy(np.array(values)) for name, values in (self.initial | dict(tensors)).items()}
        load_state(self.worker.adapted, state, slot)
        found = np.zeros(len(examples))
        with torch.no_grad():
            for chosen in buckets([example.size for example in examples], rows=BATCH_ROWS):
                total, labels = self.worker.task.losses(self.worker.adapted, [examples[place] for place in chosen])
                found[chosen] = (total / labels).float().cpu().numpy()
        return found

    def under_view(self, recorded: RecordedRound, seen: ServerView, chosen: Sequence[Chosen]) -> Floats:
        """Losses under what the server can form for each person: the round's start plus its guess of the update.

        Private tensors are not there, so they are as at the start: gates neutral, a private A or B untrained.
        """

        def tensors(person: str) -> dict[str, np.ndarray]:
            guess = seen.guess(person)
            return {name: value + guess[name] for name, value in recorded.old.items()}

        if seen.mean is not None:  # the same model for everybody
            return self.losses(tensors(""), [example for _, _, example in chosen])
        return self._by_person(chosen, tensors)

    def under_adapters(self, chosen: Sequence[Chosen]) -> Floats:
        """Losses under each person's finished adapter with its private part: what a serving host is sent."""

        def tensors(person: str) -> dict[str, np.ndarray]:
            found, info = load_adapter(self.worker.store.folder(ARM, person) / "adapter")
            info.require_base(self.worker.task.fingerprint)
            return {name: tensor.float().numpy() for name, tensor in found.items()}

        return self._by_person(chosen, tensors)

    def _by_person(self, chosen: Sequence[Chosen], tensors: Callable[[str], Mapping[str, np.ndarray]]) -> Floats:
        """Losses of each person's utterances, which stand together in ``chosen``, under this person's tensors."""
        found = [
            self.losses(tensors(person), [example for _, _, example in rows])
            for person, rows in groupby(chosen, lambda row: row[0])
        ]
        return np.concatenate(found)
