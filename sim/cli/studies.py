"""``idiolect study NAME``: the studies, each of which prints its tables and can write them into a page."""

from __future__ import annotations

import typer

from sim.network.command import network
from sim.study.catalog import PLANS
from sim.study.command import run_all, study_command, tables

app = typer.Typer(
    name="study",
    help="Run a study and print its tables; --write puts them into a page of the documentation.",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _plan in PLANS.values():
    app.command(_plan.name, help=study_command(_plan).__doc__)(study_command(_plan))
app.command("all")(run_all)
app.command("tables")(tables)
app.command()(network)


@app.callback()
def studies() -> None:
    """Every study is a table of runs that differ in a few settings, and can be cut to minutes by --smoke."""
