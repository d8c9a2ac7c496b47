"""Heavy commands are listed without being loaded, and loaded when they are run."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from sim.cli.app import app
from sim.cli.late import LATE


@pytest.mark.parametrize(
    "words", [["--help"], ["synth", "--help"], ["run", "--help"], ["token", "--help"], ["algorithms"]]
)
def test_what_needs_no_torch_loads_nothing_heavy(words: list[str]) -> None:
    heavy = {"torch", "transformers", "peft", "flwr", "ray", "fastapi", "scipy", "jiwer"}
    code = (
        "import sys; from typer.testing import CliRunner; from sim.cli.app import app; "
        f"result = CliRunner().invoke(app, {words!r}); assert result.exit_code == 0, result.output; print(result.output); "
        f"loaded = {heavy!r} & set(sys.modules); assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if words == ["--help"]:
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
