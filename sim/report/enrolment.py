"""The enrolment curve: errors of held-out speakers against how many sentences of their own they enrolled with.

Knows the rows that ``idiolect study enrol --runs RUN`` leaves in a run folder. A run without them has no curve.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fl.core.rng import derive_seed
from fl.metrics.intervals import rate_interval
from fl.runs.files import RunFiles
from sim.report.charts import Points
from sim.study.enrol.rows import ROWS, EnrolRow, pooled, read_rows

MAX_CURVES = 4


def enrolment_curve(runs: Sequence[RunFiles], metric: str, samples: int) -> dict[str, Any]:
    """By method its rate and interval for each number of sentences, 0 being the shared part alone; empty without rows.

    Only rows of a run's own seed count. Every point of a method is over the same people: those who have all its numbers of sentences.
    Intervals resample people, or couples who share a voice.
    """
    rows = [
        row for run in runs for row in read_rows(run.folder / ROWS) if row.seed == run.seed and metric in row.counts
    ]
    shared = [row for row in rows if row.sentences == 0]
    methods: dict[str, list[dict[str, Any]]] = {}
    for name in dict.fromkeys(row.method for row in rows if row.sentences):
        own = [*shared, *(row for row in rows if row.method == name and row.sentences)]
        sizes = sorted({row.sentences for row in own})
        groups = {size: {(row.seed, row.person): row for row in own if row.sentences == size} for size in sizes}
        people = sorted(set.intersection(*(set(group) for group in groups.values())))
        if people and len(sizes) > 1:
            methods[name] = [
                _point(
                    size, [groups[size][who] for who in people], metric, derive_seed(runs[0].seed, "enrolment"), samples
                )
                for size in sizes
            ]
    return {"methods": methods} if methods else {}


def _point(size: int, rows: Sequence[EnrolRow], metric: str, seed: int, samples: int) -> dict[str, Any]:
    errors, reference = pooled(rows, metric)
    found = rate_interval(errors, reference, ["everybody"] * len(errors), seed=seed, samples=samples)
    return {"sentences": size, "people": len(rows), "rate": found.rate, "low": found.low, "high": found.high}


def curves_of(enrolment: Mapping[str, Any]) -> tuple[dict[str, Points], list[tuple[float, str]]]:
    """The curves of the methods with the fewest errors at most sentences, best first, and the ticks of their axis.

    Numbers of sentences stand at even distances: most is gained with the first few.
    """
    methods: Mapping[str, Sequence[Mapping[str, Any]]] = enrolment.get("methods", {})
    sizes = sorted({point["sentences"] for points in methods.values() for point in points})
    known = {
        name: [(float(sizes.index(p["sentences"])), p["rate"]) for p in points if p["rate"] is not None]
        for name, points in methods.items()
    }
    best = sorted((name for name in known if known[name]), key=lambda name: known[name][-1][1])[:MAX_CURVES]
    return {name: known[name] for name in best}, [(float(place), str(size)) for place, size in enumerate(sizes)]
