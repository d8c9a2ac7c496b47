"""``idiolect study NAME``: the studies, each of which prints its tables and can write them into a page."""

from __future__ import annotations

import typer

from sim.study_network import network

app = typer.Typer(
    name="study",
    help="Run a study and print its tables; --write puts them into a page of the documentation.",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(network)


@app.callback()
def studies() -> None:
    """A group, also while it has one command."""
