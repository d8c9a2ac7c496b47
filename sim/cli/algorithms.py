"""``idiolect algorithms``: what there is, what it shares and keeps, where it comes from and what it goes together with."""

import json
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from fl.algorithms.base import Algorithm, Capabilities, Role
from fl.algorithms.table import ALGORITHMS
from sim.cli.options import Json, wide_console

WIDE = 120  # columns of a terminal, below which a table has fewer
ROLES = list(Role)


def composes(can: Capabilities) -> str:
    """What an algorithm goes together with, from its capabilities."""
    parts = (
        ("edge sums", can.sums),
        ("noise and secure sums", can.mean),
        ("codecs", can.encoded),
        ("server optimizers", can.optimizer),
        ("different ranks", bool(can.ranks)),
    )
    return ", ".join(word for word, able in parts if able)


def row(algorithm: type[Algorithm]) -> dict[str, Any]:
    """One algorithm as JSON."""
    about, can = asdict(algorithm.about), asdict(algorithm.can)
    table = f"algorithm.{algorithm.table or algorithm.name}"
    options = [f"{table}.{name.replace('_', '-')}" for name in algorithm.model_fields]
    return {"name": algorithm.name, "role": algorithm.role.value, **about, "can": can, "options": options}


def algorithms(as_json: Json = False) -> None:
    """List the algorithms: what each shares and keeps, its paper, and what it composes with."""
    if as_json:
        print(json.dumps([row(algorithm) for algorithm in ALGORITHMS.values()], ensure_ascii=False))
        return
    console = wide_console(160)
    wide = console.width >= WIDE
    console.print("--algorithm NAME, or several of different roles with commas", highlight=False)
    for role, found in groupby(
        sorted(ALGORITHMS.values(), key=lambda one: ROLES.index(one.role)), lambda one: one.role
    ):
        table = Table(title=f"\n{role.value}", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        for heading in ("name", "devices share", "aggregator keeps", "paper", *(("composes with",) if wide else ())):
            table.add_column(heading, overflow="fold", no_wrap=heading == "name")
        for algorithm in found:
            about = algorithm.about
            paper = f"{about.paper}, arXiv {about.arxiv}"
            more = (composes(algorithm.can),) if wide else ()
            table.add_row(algorithm.name, about.shares, about.keeps, paper, *more)
        console.print(table)
    if not wide:
        console.print(f"A terminal of {WIDE} columns, or --json, shows what each composes with.", highlight=False)
