"""``idiolect algorithms``: what there is, what it shares and keeps, where it comes from and what it goes together with."""

import json
from dataclasses import asdict
from typing import Any

from rich.table import Table

from fl.algorithms.base import Algorithm, Capabilities
from fl.algorithms.table import ALGORITHMS
from sim.cli.options import Json, wide_console


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
    table = Table(title="Algorithms: --algorithm NAME, or several of different roles with commas", title_justify="left")
    for heading in ("name", "role", "devices share", "aggregator keeps", "paper", "composes with"):
        table.add_column(heading, overflow="fold")
    for name, algorithm in ALGORITHMS.items():
        about = algorithm.about
        paper = f"{about.paper}, arXiv {about.arxiv}"
        table.add_row(name, algorithm.role.value, about.shares, about.keeps, paper, composes(algorithm.can))
    wide_console(160).print(table)
