"""Heavy commands are listed without being loaded, and loaded when they are run."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from sim.cli.app import app
from sim.cli.late import LATE


def test_the_list_names_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from sim.cli.app import app; "
        "result = CliRunner().invoke(app, ['--help']); assert result.exit_code == 0, result.output; print(result.output); "
        "heavy = {'torch', 'transformers', 'fastapi', 'ray'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, late in LATE.items():
        assert name in done.stdout
        assert late.help.split()[0] in done.stdout


@pytest.mark.parametrize("name", [name for name, late in LATE.items() if late.place])
def test_a_late_command_has_its_own_help(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "--" in result.output


def test_an_unknown_command_is_refused() -> None:
    result = CliRunner().invoke(app, ["sevre"])
    assert result.exit_code == 2
