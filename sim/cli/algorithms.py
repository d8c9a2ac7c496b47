"""``idiolect algorithms``: what there is, what it shares and keeps, where it comes from and what it goes together with."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fl.algorithms.base import Algorithm, Capabilities
from fl.algorithms.table import ALGORITHMS


def composes(can: Capabilities) -> str:
    """What an algorithm goes together with, from its capabilities."""
    parts = (
        ("edge sums", can.sums),
        ("noise and secure sums", can.mean),
        ("codecs", can.encoded),
        ("server optimizers", can.optimizer),
        ("cohorts", can.cohorts),
        ("different ranks", bool(can.ranks)),
    )
    return ", ".join(word for word, able in parts if able)


def row(algorithm: type[Algorithm]) -> dict[str, Any]:
    """One algorithm as JSON."""
    about, can = asdict(algorithm.about), asdict(algorithm.can)
    options = [f"algorithm.{algorithm.table or algorithm.name}.{n.replace('_', '-')}" for n in algorithm.model_fields]
    return {"name": algorithm.name, "role": algorithm.role.value, **about, "can": can, "options": options}


def algorithms_table() -> Table:
    """All algorithms as a table for a person."""
    table = Table(title="Algorithms: --algorithm NAME, or several of different roles with commas", title_justify="left")
    for heading in ("name", "role", "devices share", "aggregator keeps", "paper", "composes with"):
        table.add_column(heading, overflow="fold")
    for algorithm in ALGORITHMS.values():
        about = algorithm.about
        paper = f"{about.paper}, arXiv {about.arxiv}"
        table.add_row(algorithm.name, algorithm.role.value, about.shares, about.keeps, paper, composes(algorithm.can))
    return table


def algorithms(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for a script instead of text for a person.")
    ] = False,
) -> None:
    """List the algorithms: what each shares and keeps, its paper, and what it composes with."""
    if as_json:
        print(json.dumps([row(algorithm) for algorithm in ALGORITHMS.values()], ensure_ascii=False))
        return
    Console(width=None if sys.stdout.isatty() else 160).print(algorithms_table())
