"""``idiolect strategies``: what there is, what it shares and keeps, where it comes from and what it goes together with."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from strategies.registry import ENTRIES, Entry


def row(entry: Entry) -> dict[str, Any]:
    """One strategy as JSON."""
    return {
        "name": entry.name,
        "kind": entry.kind,
        "setting": entry.setting,
        "shares": entry.shares,
        "keeps": entry.keeps,
        "paper": entry.paper,
        "arxiv": entry.arxiv,
        "composes_with": entry.composes,
        "class": f"{entry.cls.__module__}.{entry.cls.__name__}" if entry.cls else "",
    }


def strategies_table() -> Table:
    """All strategies as a table for a person."""
    table = Table(title="Strategies: --strategy NAME, unless the kind says otherwise", title_justify="left")
    for heading in ("name", "kind", "devices share", "aggregator keeps", "paper", "composes with"):
        table.add_column(heading, overflow="fold")
    for entry in ENTRIES:
        kind = entry.kind if entry.setting == "strategy" else f"{entry.kind}: --{entry.setting}"
        paper = f"{entry.paper}, arXiv {entry.arxiv}"
        table.add_row(entry.name, kind, entry.shares, entry.keeps, paper, entry.composes)
    return table


def strategies(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for a script instead of text for a person.")
    ] = False,
) -> None:
    """List the strategies: what each shares and keeps, its paper, and what it composes with."""
    if as_json:
        print(json.dumps([row(entry) for entry in ENTRIES], ensure_ascii=False))
        return
    Console(width=None if sys.stdout.isatty() else 160).print(strategies_table())
