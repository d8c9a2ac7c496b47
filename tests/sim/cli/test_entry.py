"""The entry point: a device's commands without what they do not need, all others as before."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(*words, block=()):
    program = (
        f"import sys\nfor name in {list(block)!r}: sys.modules[name] = None\nsys.argv = {['idiolect', *words]!r}\n"
    )
    program += "from sim.cli.entry import main\nmain()\n"
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)


def test_device_works_where_typer_and_torch_are_not_installed():
    done = run("device", "--help", block=["typer", "rich", "torch", "flwr", "transformers", "peft"])
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: idiolect device" in done.stdout


def test_the_exit_code_of_a_device_command_is_that_of_the_process(tmp_path):
    assert run("device", "flush", "--folder", str(tmp_path)).returncode == 1
    assert run("device", "dance").returncode == 2


@pytest.mark.parametrize("words", [("--version",), ("--help",)])
def test_other_commands_are_those_of_typer(words):
    done = run(*words)
    assert done.returncode == 0
    assert "idiolect" in done.stdout
    assert "usage: idiolect device" not in done.stdout
