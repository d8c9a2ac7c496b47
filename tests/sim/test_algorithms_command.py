"""``idiolect algorithms`` lists every algorithm for a person and for a script."""

import json

import pytest
import typer
from typer.testing import CliRunner

from fl.algorithms.table import ALGORITHMS
from fl.settings.config import SETTINGS
from sim.cli.algorithms import algorithms, composes


@pytest.fixture(scope="module")
def run() -> CliRunner:
    return CliRunner()


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    found = typer.Typer()
    found.command()(algorithms)
    return found


def test_the_table_for_a_person_names_every_algorithm(run: CliRunner, app: typer.Typer) -> None:
    printed = run.invoke(app, [])
    assert printed.exit_code == 0
    assert all(name in printed.output for name in ALGORITHMS)


def test_the_rows_for_a_script_say_what_each_shares_can_and_takes(run: CliRunner, app: typer.Typer) -> None:
    found = json.loads(run.invoke(app, ["--json"]).output)
    assert [row["name"] for row in found] == list(ALGORITHMS)
    assert all(row["shares"] and row["keeps"] and row["arxiv"] and row["role"] for row in found)
    assert all(option in SETTINGS for row in found for option in row["options"])
    assert {"algorithm.krum.hostile-share"} == {o for row in found if row["name"] == "bulyan" for o in row["options"]}


def test_what_an_algorithm_composes_with_follows_from_what_it_can() -> None:
    assert composes(ALGORITHMS["fedavg"].can) == (
        "edge sums, noise and secure sums, codecs, server optimizers, different ranks"
    )
    assert composes(ALGORITHMS["krum"].can) == "codecs, server optimizers"
    assert composes(ALGORITHMS["scaffold"].can) == "edge sums, server optimizers"
