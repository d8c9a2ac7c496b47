"""From finished runs to the numbers of a study's rows: pooled over seeds, with intervals, and paired with other runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from fl.core.rng import derive_seed
from fl.metrics import Counts, macro_rate
from fl.runs.files import RunFiles, read_run
from sim.report.scoring import (
    ScoredRow,
    by_device,
    by_metric,
    compare,
    intervals,
    kind_of_run,
    pooled,
    score,
    worst_tenth,
)
from sim.report.summary import pool


def _level(scored: ScoredRow) -> str:
    return f"switch of a {scored.row.level}" if scored.row.level else ""


def _mixing(scored: ScoredRow) -> str:
    """By the share of words that are not in the sentence's most frequent language."""
    languages = [language for _, language in scored.row.spans]
    if not languages:
        return ""
    share = 1 - max(languages.count(one) for one in set(languages)) / len(languages)
    amount = "none" if share == 0 else "up to a quarter" if share <= 0.25 else "above a quarter"
    return f"embedded words: {amount}"


SLICES: Mapping[str, Callable[[ScoredRow], str]] = {"level": _level, "mixing": _mixing}


@dataclass(frozen=True)
class CellScores:
    """The test sentences of one cell by arm, of devices that took part or else of ``new_people``, named ``seed<k>/<device>``."""

    runs: tuple[RunFiles, ...]
    arms: Mapping[str, tuple[ScoredRow, ...]]
    metric: str  # the main one of the task
    new_people: bool = False

    @classmethod
    def read(
        cls, folders: Sequence[Path], *, seeds: Sequence[int] | None = None, new_people: bool = False
    ) -> CellScores:
        """The runs of all seeds of a cell. ``seeds`` name their devices, so that a repetition of a run has the same ones."""
        runs = [read_run(folder) for folder in folders]
        if len(runs) > 1:
            pool(runs)  # refuses what does not belong together
        names = seeds or [run.seed for run in runs]
        return cls.of(tuple(run.renamed(f"seed{name}/") for run, name in zip(runs, names, strict=True)), new_people)

    @classmethod
    def of(cls, runs: tuple[RunFiles, ...], new_people: bool) -> CellScores:
        """The scores of runs whose devices have names of their own."""
        arms: dict[str, list[ScoredRow]] = {}
        task = runs[0].task
        tested = [row for run in runs for row in run.transcripts if row.new_person == new_people]
        for each in score(tested, task):
            arms.setdefault(each.row.arm, []).append(each)
        return cls(runs, {arm: tuple(rows) for arm, rows in arms.items()}, kind_of_run(task).main, new_people)

    def sliced(self, kind: str) -> dict[str, CellScores]:
        """The same for parts of the sentences: by ``level`` of the switch, or by ``mixing``, thirds of how much is embedded."""
        name_of = SLICES[kind]
        names = sorted({name for rows in self.arms.values() for each in rows if (name := name_of(each))})
        parts = {}
        for name in names:
            arms = {arm: tuple(each for each in rows if name_of(each) == name) for arm, rows in self.arms.items()}
            parts[name] = replace(self, arms=arms)
        return parts

    @property
    def seed(self) -> int:
        """Of the resampling: a function of the runs' seeds."""
        return derive_seed(*(run.seed for run in self.runs), "study")

    @property
    def machine(self) -> dict[str, Any]:
        """What the runs were carried out on; where they differ, all of it with ``or`` between."""
        found = [run.costs.machine for run in self.runs]
        names = dict.fromkeys(name for one in found for name in one)
        return {name: " or ".join(sorted({str(one.get(name, "none")) for one in found})) for name in names}

    def rates(self, arm: str) -> dict[str, dict[str, Any]]:
        """Pooled rates with intervals, by metric."""
        return {metric: dict(found) for metric, found in intervals(self.arms[arm], self.seed).items()}

    def people(self, arm: str) -> dict[str, dict[str, list[int]]]:
        """Errors and reference of each person, by metric."""
        each = {name: by_metric(rows) for name, rows in by_device(self.arms[arm]).items()}
        return {
            name: {metric: [rate["errors"], rate["reference"]] for metric, rate in rates.items()}
            for name, rates in each.items()
        }

    def difference(self, arm: str, others: Sequence[ScoredRow]) -> dict[str, Any] | None:
        """The paired difference of the main metric from ``others``; None if those are other sentences."""
        own = self.arms[arm]
        if _sentences(own) != _sentences(others):
            return None
        return compare(own, others, self.seed)[self.metric]

    def facts(self, arm: str, everyone: Sequence[ScoredRow] | None = None) -> dict[str, Any]:
        """What a pooled rate hides: means over people and sentences, the worst tenth, insertions, devices harmed beside ``everyone``."""
        rows = self.arms[arm]
        counts = [each.counts[self.metric] for each in rows]
        errors, reference = [c.errors for c in counts], [c.reference for c in counts]
        devices = _errors(rows, self.metric)
        words = sum((each.counts["wer"] for each in rows if "wer" in each.counts), Counts())
        facts: dict[str, Any] = {
            "macro_devices": macro_rate(errors, reference, [each.row.device for each in rows]),
            "macro_sentences": macro_rate(errors, reference),
            "worst_tenth": worst_tenth(rows, self.metric),
            "insertions_per_word": words.insertions / words.reference if words.reference else None,
        }
        if everyone:
            others = _errors(everyone, self.metric)
            if others.keys() == devices.keys():
                facts["harmed"] = sum(devices[name] > others[name] for name in devices) / len(devices)
        return facts

    def costs(self, arm: str) -> dict[str, float]:
        """Means over the runs: parameters, bytes, seconds of training and of decoding, seconds of audio decoded in one second."""
        each = [self._costs(run, arm) for run in self.runs]
        return {name: fmean(one[name] for one in each) for name in each[0]}

    def _costs(self, run: RunFiles, arm: str) -> dict[str, float]:
        own = [row for row in run.results if row.arm == arm]
        trained = [row for row in own if row.steps]
        tested = [row for row in own if row.split == "test" and row.new_person == self.new_people]
        decoded = [row for row in run.transcripts if row.arm == arm and row.new_person == self.new_people]
        audio = math.fsum(row.seconds_audio for row in decoded)
        decoding = math.fsum(row.seconds_evaluate for row in tested)
        size = run.costs.arms.get(arm)  # the frozen base has none
        return {
            "parameters": float(size.parameters if size else 0),
            "private_bytes": float(run.costs.private_bytes if arm == "personalized" else 0),
            "bytes_up": float(max((row.bytes_up for row in trained), default=0)),
            "seconds_train": math.fsum(row.seconds_train for row in trained),
            "seconds_test": decoding,
            "audio_per_second": audio / decoding if decoding else 0.0,
        }


def _sentences(rows: Sequence[ScoredRow]) -> set[tuple[str, str, str]]:
    return {(each.row.device, each.row.utterance, each.row.reference) for each in rows}


def _errors(rows: Sequence[ScoredRow], metric: str) -> dict[str, int]:
    return {name: pooled(each.counts[metric] for each in own)["errors"] for name, own in by_device(rows).items()}
