"""``idiolect study NAME``: the studies, each of which prints its tables and can write them into a page."""

from __future__ import annotations

from collections.abc import Callable

import typer

from sim.study.catalog import STUDIES
from sim.study.command import run_all, study_command, tables
from sim.study.network.command import network

app = typer.Typer(
    name="study",
    help="Run a study and print its tables; --write puts them into a page of the documentation.",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS: dict[str, Callable[..., None]] = {
    **{study.name: study_command(study) for study in STUDIES.values()},
    "network": network,
    "all": run_all,
    "tables": tables,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


@app.callback()
def studies() -> None:
    """Every study is a table of runs that differ in a few settings, and can be cut to minutes by --smoke."""
