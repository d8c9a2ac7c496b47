"""The report as one self-contained HTML file: nothing in it is fetched, not even a font."""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from sim.report import sections
from sim.report.cards import samples
from sim.report.charts import percent
from sim.report.markup import details, section, table
from sim.report.rows import TranscriptRow
from sim.report.samples import choose
from sim.report.summary import Summary, write_whole
from sim.report.words import comparison, label, main_metric, noun, people, rate_of, sentences_compared

_NAVIGATION = (
    ("arms", "Arms"),
    ("curves", "Learning"),
    ("devices", "People"),
    ("by-level", "Switches"),
    ("new-people", "New people"),
    ("costs", "Costs"),
    ("samples", "Samples"),
    ("conditions", "Conditions"),
)


def write_page(run_dir: Path, summary: Summary, transcripts: Sequence[TranscriptRow], out: Path | None = None) -> Path:
    """Writes the page to ``out`` (default ``run_dir/report.html``) and returns its path.

    ``transcripts`` are the rows the summary was made of. Below 8 MiB whatever the run: at most 24 sentences with 5 MiB
    of sound. Raises :class:`~fl.core.errors.RunError` if the file cannot be written; an older page is then intact.
    """
    path = run_dir / "report.html" if out is None else out
    write_whole(path, render(summary, transcripts))
    return path


def render(summary: Summary, transcripts: Sequence[TranscriptRow]) -> str:
    """The page as text."""
    css, script = _resource("page.css"), _resource("page.js")
    body = "".join(
        [
            sections.arms(summary),
            sections.curves(summary),
            sections.devices(summary),
            sections.breakdowns(summary),
            sections.new_people(summary),
            sections.worst(summary),
            sections.costs(summary),
            samples(choose(transcripts, summary["run"]["task"]), example=noun(summary, "example", 2)),
            _conditions(summary),
        ]
    )
    title = f"{', '.join(summary['run']['names'])} · Idiolect"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{css}</style></head>\n<body>"
        f"{_header(summary, body)}<main>{body}</main>{_footer()}<script>{script}</script></body></html>\n"
    )


def _resource(name: str) -> str:
    return files("sim.report").joinpath(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Nothing is loaded from anywhere and no script but ours runs, whatever a transcript may hold."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; media-src data:; img-src data:"
    )


def _header(summary: Summary, body: str) -> str:
    run = summary["run"]
    links = "".join(f'<a href="#{name}">{label}</a>' for name, label in _NAVIGATION if f'id="{name}"' in body)
    return (
        f'<header class="top"><p class="kicker">Idiolect · {escape(", ".join(run["names"]))}</p>'
        f"<h1>{escape(headline(summary))}</h1><p class='stand'>{escape(_standfirst(summary))}</p>"
        f"{sections.key_figures(summary)}<nav aria-label='Sections'>{links}</nav></header>"
    )


def headline(summary: Summary) -> str:
    """The finding in one sentence, claimed only as far as the interval goes."""
    found = summary["comparisons"].get("personalized_vs_global", {}).get(main_metric(summary))
    if found is None or found["difference"] is None:
        return f"{noun(summary, 'field')} for {people(summary)}"
    if not found["excludes_zero"]:
        return f"A personal {noun(summary, 'model')} and one model for all cannot be told apart in this run"
    amount = "" if found["relative"] is None else f"{abs(100 * found['relative']):.0f} % "
    if found["difference"] > 0:
        return f"In this run personal {noun(summary, 'model', 2)} make {amount}more errors than one model for all"
    return f"Personal {noun(summary, 'model', 2)} make {amount}fewer errors than one model for all"


def _standfirst(summary: Summary) -> str:
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
    local = comparison(summary, "personalized", "local")
    return " ".join([*text, f"{local[0].upper()}{local[1:]}." if local else ""]).strip()


def _conditions(summary: Summary) -> str:
    run, costs, examples = summary["run"], summary["costs"], noun(summary, "example", 2)
    heard = f" ({run['test_seconds'] / 60:.1f} min)" if run["test_seconds"] else ""
    settings = {
        "base": costs["base"],
        "seeds": ", ".join(str(seed) for seed in run["seeds"]),
        "devices": run["devices"],
        "new people": run["new_people"],
        "rounds": costs["rounds"],
        "local steps": costs["local_steps"],
        "batch size": costs["batch_size"],
        f"test {examples}": f"{run['test_utterances']}{heard}",
        "intervals": f"95 %, percentile bootstrap, {run['bootstrap_samples']} resamples of {examples} within devices",
    }
    facts = [("Run", settings), ("Machine", costs["machine"]), ("Versions", costs["versions"])]
    tables = "".join(
        table(name, ["", ""], [[escape(str(k)), _value(v)] for k, v in d.items()], "facts") for name, d in facts
    )
    config = json.dumps(run["config"], ensure_ascii=False, indent=2)
    shown = details("Configuration", f"<pre>{escape(config)}</pre>") if run["config"] else ""
    return section("conditions", "Conditions", [f'<div class="conditions">{tables}</div>', shown])


def _value(value: Any) -> str:
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _footer() -> str:
    return (
        "<footer><p>Rates are summed errors over summed reference tokens, never means of rates. "
        f"An interval that holds zero decides nothing. {percent(0.0, 0)} is perfect.</p></footer>"
    )
