"""The report as one self-contained HTML file: nothing in it is fetched, not even a font.

Computes what the page shows; ``templates`` say how, with every text escaped.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fl.core.files import PUBLIC
from fl.runs.files import read_run, write_whole
from fl.runs.schema import REPORT_NAME, SUMMARY_NAME, PredictionRow
from fl.settings.names import ARMS
from sim.report import charts, diff, samples, words
from sim.report.charts import Axis, Points, Slope, percent
from sim.report.samples import MAX_AUDIO_BYTES, Sample, choose, embed_audio
from sim.report.summary import RunSummary, pool, summarize, transcripts_of, write_summary
from sim.report.words import comparison, label, main_metric, noun, people, rate_of, sentences_compared

MAX_LABELLED_DEVICES = 24
NAVIGATION = {
    "arms": "Arms",
    "curves": "Learning",
    "devices": "People",
    "by-level": "Switches",
    "new-people": "Held-out people",
    "costs": "Costs",
    "samples": "Samples",
    "conditions": "Conditions",
}
Groups = dict[str, list[tuple[str, float | None]]]


def write_report(folders: Sequence[Path], target: Path) -> RunSummary:
    """Write ``summary.json`` and ``report.html`` of one run, or of several seeds of one, into ``target``.

    Raises :class:`~fl.core.errors.RunError` for folders that cannot be read or pooled, and where nothing can be written.
    """
    runs = pool([read_run(folder) for folder in folders])
    summary = summarize(runs)
    write_summary(summary, target / SUMMARY_NAME)
    write_page(target, summary, transcripts_of(runs))
    return summary


def write_page(
    run_dir: Path, summary: RunSummary, transcripts: Sequence[PredictionRow], out: Path | None = None
) -> Path:
    """Writes the page to ``out`` (default ``run_dir/report.html``) and returns its path.

    ``transcripts`` are the rows the summary was made of. Below 8 MiB whatever the run: at most 24 sentences with 5 MiB
    of sound. Raises :class:`~fl.core.errors.RunError` if the file cannot be written; an older page is then intact.
    """
    path = run_dir / REPORT_NAME if out is None else out
    write_whole(path, render(summary, transcripts), mode=PUBLIC)
    return path


@cache
def templates() -> Environment:
    """The templates, with all the functions that they call."""
    found = Environment(
        loader=PackageLoader("sim.report"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    known = [item for space in (charts, diff, samples, words) for item in vars(space).items()]
    found.globals |= {name: value for name, value in [*known, *globals().items()] if callable(value) or name.isupper()}
    found.filters |= {"pct": "{:.2f}%".format, "px": "{:.1f}".format, "pretty": _pretty}
    return found


def render(summary: RunSummary, transcripts: Sequence[PredictionRow]) -> str:
    """The page as text."""
    metric, script = main_metric(summary), _source("page.js")
    worst_title = f"{label(summary, metric)} of the worst tenth of the devices"
    view = {
        "summary": summary,
        "metric": metric,
        "measures": summary["run"]["measures"],
        "compared": words.comparisons(summary, words.KEY_COMPARISONS),
        "compared_held_out": words.comparisons(summary, words.HELD_OUT_COMPARISONS, held_out=True),
        "curves": _curves(summary, metric),
        "slopes": _slopes(summary, metric),
        "levels": _by_group(
            (arm, level, rates[metric]) for arm, found in summary["by_level"].items() for level, rates in found.items()
        ),
        "languages": _by_group(
            (arm, words.language(code), rate)
            for arm, found in summary["by_language"].items()
            for code, rate in found.items()
        ),
        "worst": {worst_title: [(arm, rates[metric]) for arm, rates in summary["worst_tenth"].items()]},
        "cards": _cards(choose(transcripts, summary["run"]["task"])),
        "conditions": _conditions(summary),
        "style": _source("page.css"),
        "script": script,
        # No script but ours runs, whatever a transcript may hold.
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    return templates().get_template("page.html").render(view)


def _source(name: str) -> Markup:
    loader = templates().loader
    assert loader is not None
    return Markup(loader.get_source(templates(), name)[0])


def _pretty(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def slug(arm: str) -> str:
    """The arm as a CSS class."""
    return arm.replace("+", "-") if arm in ARMS else "other"


def axis_of(rates: Mapping[str, Mapping[str, Any]], metric: str) -> Axis:
    """The axis for the intervals of all arms."""
    return charts.shared_axis((arm, found[metric]["high"] or found[metric]["rate"]) for arm, found in rates.items())


def beyond(rates: Mapping[str, Mapping[str, Any]], metric: str) -> bool:
    """Whether a rate lies beyond that axis."""
    return any((found[metric]["rate"] or 0.0) > axis_of(rates, metric).top for found in rates.values())


def headline(summary: RunSummary) -> str:
    """The finding in one sentence, claimed only as far as the interval goes."""
    found = summary["comparisons"].get("personalized_vs_global", {}).get(main_metric(summary))
    if found is None or found["difference"] is None:
        return f"{noun(summary, 'field')} for {people(summary)}"
    models = noun(summary, "model", 2)
    if not found["excludes_zero"]:
        return f"No significant difference between personal {models} and one model for all in this run"
    amount = "" if found["relative"] is None else f"{abs(100 * found['relative']):.0f} % "
    if found["difference"] > 0:
        return f"In this run personal {models} make {amount}more errors than one model for all"
    return f"Personal {models} make {amount}fewer errors than one model for all"


def standfirst(summary: RunSummary) -> str:
    """What was run and compared, and with which result, in three sentences."""
    run, costs, arms = summary["run"], summary["costs"], summary["arms"]
    text = [
        f"{people(summary)} trained {costs['base']} together for {run['rounds']} rounds; only the shared part of "
        f"each adapter left a device. Compared on {sentences_compared(summary)} {noun(summary, 'example', 2)} that nobody trained on."
    ]
    if {"personalized", "global"} <= arms.keys():
        metric = main_metric(summary)
        text.append(
            f"{label(summary, metric)}, with 95 % intervals: {rate_of(arms, 'personalized', metric)} personalized, "
            f"{rate_of(arms, 'global', metric)} global."
        )
    return " ".join([*text, words.sentence(comparison(summary, "personalized", "local"))]).strip()


def key_figures(summary: RunSummary) -> list[tuple[str, str, str]]:
    """The strip of figures under the headline: name, figure, note."""
    arms, costs, metric = summary["arms"], summary["costs"], main_metric(summary)
    name, held_out = label(summary, metric), summary["new_people"]
    entries = []
    if "personalized" in arms:
        note = (
            f"global: {percent(arms['global'][metric]['rate'])}"
            if "global" in arms
            else summary["run"]["measures"][metric]["meaning"]
        )
        entries.append((f"Personalized {name}", percent(arms["personalized"][metric]["rate"]), note))
    for baseline in ("global", "local"):
        found = summary["comparisons"].get(f"personalized_vs_{baseline}", {}).get(metric)
        if found and found["relative"] is not None:
            change = f"{100 * found['relative']:+.0f}\u202f%".replace("-", "−")
            entries.append((f"Versus {baseline}", change, f"errors ({words.relative_range(found)})"))
    if "neutral" in held_out:
        note = f"global: {percent(held_out['global'][metric]['rate'])}" if "global" in held_out else "before enrolment"
        entries.append((f"Held-out {name}", percent(held_out["neutral"][metric]["rate"]), note))
    if summary["harmed"]["share"] is not None:
        harmed = summary["harmed"]
        entries.append(("Made worse", f"{len(harmed['devices'])} of {harmed['of']}", "against global"))
    share = f"{percent(costs['adapter_share_of_base'], 2)} of the base"
    return [*entries, ("Adapter", words.size(costs["adapter_bytes"]), share)]


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


def _by_group(rates: Iterable[tuple[str, str, Mapping[str, Any]]]) -> Groups:
    groups: Groups = {}
    for arm, group, found in rates:
        groups.setdefault(group, []).append((arm, found["rate"]))
    return groups


def _cards(chosen: Sequence[Sample], audio_bytes: int = MAX_AUDIO_BYTES) -> list[tuple[Sample, str | None]]:
    """The samples with their sound, embedded until ``audio_bytes`` are used."""
    cards, left = [], audio_bytes
    for sample in chosen:
        sound = embed_audio(sample.row.audio, sample.row.seconds_audio, left, sample.row.start)
        left -= 3 * len(sound or "") // 4
        cards.append((sample, sound))
    return cards


def _conditions(summary: RunSummary) -> dict[str, Mapping[str, Any]]:
    run, costs, examples = summary["run"], summary["costs"], noun(summary, "example", 2)
    audio = f" ({run['test_seconds'] / 60:.1f} min)" if run["test_seconds"] else ""
    settings = {
        "base": costs["base"],
        "seeds": ", ".join(str(seed) for seed in run["seeds"]),
        "devices": run["devices"],
        "held-out people": run["new_people"],
        "rounds": costs["rounds"],
        "local steps": costs["local_steps"],
        "batch size": costs["batch_size"],
        f"test {examples}": f"{run['test_utterances']}{audio}",
        "intervals": f"95 %, percentile bootstrap, {run['bootstrap_samples']} resamples of {examples} within devices",
    }
    return {"Run": settings, "Machine": costs["machine"], "Versions": costs["versions"]}
