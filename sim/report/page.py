"""The report as one self-contained HTML file: nothing in it is fetched, not even a font.

Computes what the page shows; ``templates`` say how, with every text escaped.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fl.core.errors import RunError
from fl.runs.files import RunFiles, is_finished, read_run, write_whole
from fl.runs.schema import CONFIG_NAME, REPORT_NAME, SUMMARY_NAME
from fl.runs.unfinished import read_unfinished
from sim.report import charts, diff, enrolment, samples, words
from sim.report.charts import Axis, Points, Slope
from sim.report.samples import MAX_AUDIO_BYTES, Sample, choose, embed_audio, spotlight
from sim.report.summary import RunSummary, pool, summarize, write_summary
from sim.report.words import label, main_metric

TEMPLATES = Path(__file__).parent / "templates"
MAX_LABELLED_DEVICES = 24


def write_report(folders: Sequence[Path], target: Path) -> RunSummary:
    """Write ``summary.json`` and ``report.html`` of one run, or of several seeds of one, into ``target``.

    A run that is not finished is reported as far as it came, and said to be so; it is not pooled.
    Raises :class:`~fl.core.errors.RunError` for folders that cannot be read or pooled, a ``target`` that is another run's, and where
    nothing can be written.
    """
    if (target / CONFIG_NAME).exists() and target.resolve() not in {folder.resolve() for folder in folders}:
        raise RunError(f"{target} holds a run with a report of its own: give --out another folder")
    so_far = len(folders) == 1 and not is_finished(folders[0]) and (folders[0] / CONFIG_NAME).is_file()
    runs = [read_unfinished(folders[0])] if so_far else pool([read_run(folder) for folder in folders])
    summary = summarize(runs)
    write_summary(summary, target / SUMMARY_NAME)
    write_page(target, summary, runs)
    return summary


def write_page(folder: Path, summary: RunSummary, runs: Sequence[RunFiles]) -> Path:
    """Writes ``report.html`` into ``folder`` and returns its path.

    ``runs`` are those the summary was made of. Below 8 MiB whatever the run: at most 24 sentences with 5 MiB
    of sound. Raises :class:`~fl.core.errors.RunError` if the file cannot be written; an older page is then intact.
    """
    path = folder / REPORT_NAME
    write_whole(path, render(summary, runs))
    return path


@cache
def templates() -> Environment:
    """The templates, with all the functions that they call."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    known = [item for space in (charts, diff, enrolment, samples, words) for item in vars(space).items()]
    found.globals |= {name: value for name, value in [*known, *globals().items()] if callable(value) or name.isupper()}
    pretty = partial(json.dumps, ensure_ascii=False)
    found.filters |= {"pct": "{:.2f}%".format, "px": "{:.1f}".format, "pretty": pretty}
    return found


def render(summary: RunSummary, runs: Sequence[RunFiles]) -> str:
    """The page as text."""
    metric = main_metric(summary)
    style, script = (Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    chosen = choose([row for run in runs for row in run.transcripts], summary["run"]["task"])
    first = spotlight(chosen)
    cards = _cards([*first, *(sample for sample in chosen if sample not in first)])
    worst_title = f"{label(summary, metric)} of the worst tenth of the devices"
    view = {
        "summary": summary,
        "metric": metric,
        "curves": _curves(summary, metric),
        "slopes": _slopes(summary, metric),
        "levels": _by_group(summary["by_level"], lambda rates: rates[metric]["rate"]),
        "languages": _by_group(summary["by_language"], lambda found: found["rate"]),
        "worst": {worst_title: [(arm, rates[metric]) for arm, rates in summary["worst_tenth"].items()]},
        "first": cards[: len(first)],
        "cards": cards[len(first) :],
        "enrolment": enrolment.curves_of(summary["enrolment"]),
        "style": style,
        "script": script,
        # No script but ours runs, whatever a transcript may hold.
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    return templates().get_template("page.html").render(view)


def axis_of(rates: Mapping[str, Mapping[str, Any]], metric: str) -> Axis:
    """The axis for the intervals of all arms."""
    return charts.shared_axis((arm, found[metric]["high"] or found[metric]["rate"]) for arm, found in rates.items())


def _curves(summary: RunSummary, metric: str) -> dict[str, Points]:
    """The main metric on validation data over rounds, by arm."""
    curves = {
        arm: [(float(point["round"]), point[metric]) for point in points if point.get(metric) is not None]
        for arm, points in summary["curves"].items()
    }
    return {arm: points for arm, points in curves.items() if points}


def _slopes(summary: RunSummary, metric: str) -> dict[str, Slope]:
    """From global to personalized, with local beside it, of every device that has both."""
    slopes = {}
    for name, device in summary["devices"].items():
        before, after, dot = (
            device["arms"][arm][metric]["rate"] if arm in device["arms"] else None
            for arm in ("global", "personalized", "local")
        )
        if not device["new_person"] and before is not None and after is not None:
            slopes[name] = Slope(before, after, dot)
    return slopes


def _by_group(
    arms: Mapping[str, Mapping[str, Any]], rate: Callable[[Any], float | None]
) -> dict[str, list[tuple[str, float | None]]]:
    groups: dict[str, list[tuple[str, float | None]]] = {}
    for arm, found in arms.items():
        for group, value in found.items():
            groups.setdefault(words.language(group), []).append((arm, rate(value)))
    return {name: rates for name, rates in groups.items() if any(found is not None for _, found in rates)}


def _cards(chosen: Sequence[Sample], audio_bytes: int = MAX_AUDIO_BYTES) -> list[tuple[Sample, str | None]]:
    """The samples with their sound, embedded until ``audio_bytes`` are used."""
    cards, left = [], audio_bytes
    for sample in chosen:
        sound = embed_audio(sample.row.audio, sample.row.seconds_audio, left, sample.row.start)
        left -= 3 * len(sound or "") // 4
        cards.append((sample, sound))
    return cards
