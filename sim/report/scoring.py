"""Transcripts to counts: every test utterance of every arm scored once, then pooled, compared and resampled by metric."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

from fl.core.errors import ConfigError, MetricError, RunError
from fl.metrics import METRICS, Counts, Scores, matrix_language, paired_difference, rate_interval, score_utterance
from fl.settings.names import SPEECH
from fl.tasks.table import TaskKind, task_kind
from sim.report.rows import TranscriptRow


class Rate(TypedDict):
    """A pooled rate, ``errors / reference``; ``None`` without reference tokens."""

    rate: float | None
    errors: int
    reference: int


class RateInterval(Rate):
    """A pooled rate with its 95 % interval."""

    low: float | None
    high: float | None


@dataclass(frozen=True)
class Scored:
    """One transcript and its counts, by metric and by the language that word errors are charged to."""

    row: TranscriptRow
    counts: Mapping[str, Counts]
    by_language: Mapping[str, Counts]


def score(rows: Sequence[TranscriptRow], task: str = SPEECH) -> list[Scored]:
    """Every row scored with all metrics of its task. Raises :class:`RunError` that names the row whose annotation is wrong.

    In speech the matrix language is that of most words over all references, as PIER wants it for wholly embedded sentences.
    """
    scorer = kind_of_run(task).score
    matrix = matrix_of(rows) if scorer is None else None
    known: dict[tuple[object, ...], Scored] = {}
    scored = []
    for row in rows:
        key = (row.reference, row.hypothesis, row.spans, row.loanwords)
        if key not in known:
            known[key] = _score(row, matrix) if scorer is None else _scored(row, scorer(row.reference, row.hypothesis))
        scored.append(Scored(row, known[key].counts, known[key].by_language))
    return scored


def matrix_of(rows: Iterable[TranscriptRow]) -> str | None:
    """The language of most annotated words over the distinct references; ``None`` where nothing is annotated."""
    spans = {(row.device, row.utterance): row.spans for row in rows}
    return matrix_language([language for words in spans.values() for _, language in words])


def _score(row: TranscriptRow, matrix: str | None) -> Scored:
    try:
        scores = score_utterance(
            row.reference, row.hypothesis, spans=row.spans, loanwords=row.loanwords, matrix=matrix, metrics=METRICS
        )
    except MetricError as error:
        raise RunError(f"transcripts.jsonl: utterance {row.utterance!r} of device {row.device!r}: {error}") from None
    return _scored(row, scores)


def _scored(row: TranscriptRow, scores: Scores) -> Scored:
    return Scored(row, scores.metrics, scores.by_language)


def kind_of_run(task: str) -> TaskKind:
    """The row of the table of tasks; :class:`RunError` for a run of a task that is not there."""
    try:
        return task_kind(task)
    except ConfigError as error:
        raise RunError(f"config.toml: {error}; report the run with the version of Idiolect that wrote it") from None


def metrics_of(scored: Sequence[Scored]) -> list[str]:
    """The metrics that every row has, in their order."""
    return list(scored[0].counts) if scored else []


def pooled(counts: Iterable[Counts]) -> Rate:
    """Summed errors over summed reference."""
    total = sum(counts, Counts())
    return {"rate": total.rate, "errors": total.errors, "reference": total.reference}


def by_metric(scored: Sequence[Scored]) -> dict[str, Rate]:
    """The pooled rate of each metric."""
    return {metric: pooled(each.counts[metric] for each in scored) for metric in metrics_of(scored)}


def intervals(scored: Sequence[Scored], seed: int, samples: int) -> dict[str, RateInterval]:
    """The pooled rate of each metric with its bootstrap interval, utterances resampled within devices."""
    groups = [each.row.device for each in scored]
    result: dict[str, RateInterval] = {}
    for metric in metrics_of(scored):
        counts = [each.counts[metric] for each in scored]
        errors, reference = [one.errors for one in counts], [one.reference for one in counts]
        interval = rate_interval(errors, reference, groups, seed=seed, samples=samples)
        result[metric] = {
            "rate": interval.rate,
            "low": interval.low,
            "high": interval.high,
            "errors": interval.errors,
            "reference": interval.reference,
        }
    return result


def compare(a: Sequence[Scored], b: Sequence[Scored], seed: int, samples: int) -> dict[str, dict[str, Any]]:
    """The paired difference of arm ``a`` from arm ``b`` by metric: negative where ``a`` makes fewer errors.

    Both arms must have transcribed the same utterances; :class:`RunError` names one that only one of them has.
    """
    others = {_key(each): each for each in b}
    lonely = sorted({_key(each) for each in a} ^ set(others))
    if lonely:
        device, utterance = lonely[0]
        raise RunError(
            f"transcripts.jsonl: arms {a[0].row.arm!r} and {b[0].row.arm!r} do not cover the same utterances "
            f"({utterance!r} of device {device!r} is in one only); resume the run so that its evaluation is complete"
        )
    groups = [each.row.device for each in a]
    result = {}
    for metric in metrics_of(a):
        left = [each.counts[metric].errors for each in a]
        right = [others[_key(each)].counts[metric].errors for each in a]
        reference = [each.counts[metric].reference for each in a]
        difference = paired_difference(left, right, reference, groups, seed=seed, samples=samples)
        result[metric] = asdict(difference) | {"excludes_zero": difference.excludes_zero}
    return result


def _key(scored: Scored) -> tuple[str, str]:
    return scored.row.device, scored.row.utterance
