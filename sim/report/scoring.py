"""Transcripts to counts: every test utterance of every arm scored once, then pooled, compared and resampled by metric."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

from fl.core.errors import ConfigError, MetricError, RunError
from fl.metrics import (
    Counts,
    Scores,
    corpus_matrix_language,
    paired_difference,
    rate_interval,
    score_utterance,
)
from fl.metrics.intervals import SAMPLES
from fl.runs.schema import PREDICTIONS_NAME, PredictionRow
from fl.settings.names import DEFAULT_TASK
from fl.tasks.kind import TaskKind
from fl.tasks.table import TASKS

ONE_GROUP = ("everybody",)  # all units are drawn from one population


class PooledRate(TypedDict):
    """``errors / reference``; ``None`` without reference tokens."""

    rate: float | None
    errors: int
    reference: int


@dataclass(frozen=True)
class ScoredRow:
    """One transcript and its counts, by metric and by the language that word errors are charged to."""

    row: PredictionRow
    counts: Mapping[str, Counts]
    by_language: Mapping[str, Counts]

    @property
    def utterance(self) -> tuple[str, str]:
        """The device and its utterance, the same in every arm."""
        return self.row.device, self.row.utterance


def score(rows: Sequence[PredictionRow], task: str = DEFAULT_TASK) -> list[ScoredRow]:
    """Every row scored with all metrics of its task. Raises :class:`RunError` that names the row whose annotation is wrong.

    In speech the matrix language is that of most words over all references, as PIER wants it for wholly embedded sentences.
    """
    scorer = kind_of_run(task).score
    spans = {(row.device, row.utterance): row.spans for row in rows}
    matrix = corpus_matrix_language(spans.values())
    known: dict[tuple[object, ...], Scores] = {}
    scored = []
    for row in rows:
        key = (row.reference, row.hypothesis, row.spans, row.loanwords)
        try:
            if key not in known and scorer:
                known[key] = scorer(row.reference, row.hypothesis)
            elif key not in known:
                known[key] = score_utterance(
                    row.reference, row.hypothesis, spans=row.spans, loanwords=row.loanwords, matrix=matrix
                )
        except MetricError as error:
            where = f"{PREDICTIONS_NAME}: utterance {row.utterance!r} of device {row.device!r}"
            raise RunError(f"{where}: {error}") from None
        scored.append(ScoredRow(row, known[key].metrics, known[key].by_language))
    return scored


def kind_of_run(task: str) -> TaskKind:
    """The row of the table of tasks; :class:`RunError` for a run of a task that is not there."""
    try:
        return TASKS.find(task)
    except ConfigError as error:
        raise RunError(f"config.toml: {error}; report the run with the version of Idiolect that wrote it") from None


def grouped(scored: Iterable[ScoredRow], key: Callable[[PredictionRow], str | None]) -> dict[str, list[ScoredRow]]:
    """The rows by ``key``, in the order of their first; those whose key is empty are left out."""
    groups: dict[str, list[ScoredRow]] = {}
    for each in scored:
        if name := key(each.row):
            groups.setdefault(name, []).append(each)
    return groups


def by_device(scored: Iterable[ScoredRow]) -> dict[str, list[ScoredRow]]:
    """The rows of each device."""
    return grouped(scored, lambda row: row.device)


def metrics_of(scored: Sequence[ScoredRow]) -> list[str]:
    """The metrics that every row has, in their order."""
    return list(scored[0].counts) if scored else []


def pooled(counts: Iterable[Counts]) -> PooledRate:
    """Summed errors over summed reference."""
    total = sum(counts, Counts())
    return {"rate": total.rate, "errors": total.errors, "reference": total.reference}


def by_metric(scored: Sequence[ScoredRow]) -> dict[str, PooledRate]:
    """The pooled rate of each metric."""
    return {metric: pooled(each.counts[metric] for each in scored) for metric in metrics_of(scored)}


def worst_tenth(scored: Sequence[ScoredRow], metric: str) -> float | None:
    """The pooled rate over the tenth of the devices (rounded up, so at least one) with the highest rates."""
    totals = [sum((each.counts[metric] for each in rows), Counts()) for rows in by_device(scored).values()]
    totals.sort(key=lambda total: -1.0 if total.rate is None else total.rate, reverse=True)
    return pooled(totals[: math.ceil(len(totals) / 10)])["rate"]


def intervals(scored: Sequence[ScoredRow], seed: int, samples: int = SAMPLES) -> dict[str, dict[str, Any]]:
    """The fields of :class:`fl.metrics.intervals.Interval` of each metric, people resampled; of a single one the sentences."""
    units = _units(scored)
    result = {}
    for metric in metrics_of(scored):
        counts = [sum((each.counts[metric] for each in unit), Counts()) for unit in units]
        errors, reference = [one.errors for one in counts], [one.reference for one in counts]
        result[metric] = asdict(rate_interval(errors, reference, ONE_GROUP * len(units), seed=seed, samples=samples))
    return result


def _units(scored: Sequence[ScoredRow]) -> list[list[ScoredRow]]:
    """What chance draws: whole people, or the sentences of one who is alone."""
    people = [*by_device(scored).values()]
    return people if len(people) > 1 else [[each] for each in scored]


def compare(
    a: Sequence[ScoredRow], b: Sequence[ScoredRow], seed: int, samples: int = SAMPLES
) -> dict[str, dict[str, Any]]:
    """The paired difference of arm ``a`` from arm ``b`` by metric, people resampled: negative where ``a`` makes fewer errors.

    Both arms must have transcribed the same utterances; :class:`RunError` names one that only one of them has.
    """
    others = {each.utterance: each for each in b}
    lonely = sorted({each.utterance for each in a} ^ set(others))
    if lonely:
        device, utterance = lonely[0]
        raise RunError(
            f"{PREDICTIONS_NAME}: arms {a[0].row.arm!r} and {b[0].row.arm!r} do not cover the same utterances "
            f"({utterance!r} of device {device!r} is in one only); resume the run so that its evaluation is complete"
        )
    units = _units(a)
    result = {}
    for metric in metrics_of(a):
        left = [sum(each.counts[metric].errors for each in unit) for unit in units]
        right = [sum(others[each.utterance].counts[metric].errors for each in unit) for unit in units]
        reference = [sum(each.counts[metric].reference for each in unit) for unit in units]
        result[metric] = asdict(
            paired_difference(left, right, reference, ONE_GROUP * len(units), seed=seed, samples=samples)
        )
    return result
