"""Pieces of HTML that several sections of the page share. Text goes in raw and comes out escaped."""

from collections.abc import Iterable, Sequence
from html import escape

from sim.report.charts import Axis, percent
from sim.report.rows import ARMS
from sim.report.words import ARM_MEANINGS


def slug(arm: str) -> str:
    """The arm as a CSS class."""
    return arm.replace("+", "-") if arm in ARMS else "other"


def section(identifier: str, heading: str, body: Iterable[str], lead: str = "") -> str:
    """A section with a heading that can be linked to and an introduction in plain words."""
    intro = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return (
        f'<section id="{identifier}" aria-labelledby="{identifier}-h"><h2 id="{identifier}-h">{escape(heading)}</h2>'
        f"{intro}{''.join(body)}</section>"
    )


def paragraph(text: str, css: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{css}">{escape(text)}</p>' if css else f"<p>{escape(text)}</p>"


def figure(body: str, caption: str, css: str, right: int) -> str:
    """A chart with its caption; ``right`` pixels beside it stay free for names."""
    return f'<figure class="{css}" style="--right:{right}px">{body}<figcaption>{escape(caption)}</figcaption></figure>'


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], css: str = "") -> str:
    """A table whose first column names the row. Cells are HTML, header and caption are text."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    labels = [escape(name) for name in header[1:]]
    body = ""
    for first, *rest in rows:
        cells = "".join(f'<td data-label="{label}">{cell}</td>' for label, cell in zip(labels, rest, strict=True))
        body += f'<tr><th scope="row">{first}</th>{cells}</tr>'
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="{css}">'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def arm_name(arm: str, *, meaning: bool = False) -> str:
    """The arm's name with its swatch, and on request what it means."""
    what = f'<span class="meaning">{escape(ARM_MEANINGS.get(arm, ""))}</span>' if meaning else ""
    return f'<span class="arm arm-{slug(arm)}"><i class="swatch" aria-hidden="true"></i>{escape(arm)}</span>{what}'


def bars(title: str, rates: Sequence[tuple[str, float | None]], axis: Axis) -> str:
    """A group of horizontal bars, one an arm, each with its name and its number; all groups share ``axis``."""
    items = []
    for arm, rate in rates:
        width = 0.0 if rate is None else axis.share(rate)
        over = " over" if rate is not None and rate > axis.top else ""
        items.append(
            f'<li class="arm-{slug(arm)}"><span class="bar-name">{escape(arm)}</span>'
            f'<span class="bar-track" aria-hidden="true"><i class="bar{over}" style="width:{width:.1f}%"></i></span>'
            f'<span class="bar-value">{percent(rate)}</span></li>'
        )
    return f'<div class="bars"><h3>{escape(title)}</h3><ul>{"".join(items)}</ul></div>'


def shared_axis(rates: Iterable[tuple[str, float | None]]) -> Axis:
    """An axis for all arms; an untrained base that is far off does not squeeze the others into a corner."""
    known = [(arm, rate) for arm, rate in rates if rate is not None]
    trained = [rate for arm, rate in known if arm != "zero-shot"]
    highest = max((rate for _, rate in known), default=0.0)
    return Axis.to(min(highest, 2 * max(trained)) if trained and max(trained) > 0 else highest)


def tiles(entries: Iterable[tuple[str, str, str]]) -> str:
    """Key figures: (label, figure, note)."""
    body = "".join(
        f"<div><dt>{escape(label)}</dt><dd><strong>{escape(value)}</strong><span>{escape(note)}</span></dd></div>"
        for label, value, note in entries
    )
    return f'<dl class="tiles">{body}</dl>'


def details(summary: str, body: str) -> str:
    """Something to open."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"
