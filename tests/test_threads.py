"""How OpenMP's threads wait in a process of the command: what its library says itself when torch loads it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fl.core.machine import SPINS

SAY = "from sim.cli.options import set_up_process; set_up_process(); import torch"


def spins(**settings: str) -> str:
    """The number of spins that GNU OpenMP prints for a process with these ``settings``."""
    unset = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"OMP_DISPLAY_ENV": "verbose", **settings}
    said = subprocess.run(
        [sys.executable, "-c", SAY], env=environment, capture_output=True, text=True, check=True
    ).stderr
    (line,) = {line for line in said.splitlines() if "GOMP_SPINCOUNT" in line}
    return line.partition("'")[2].partition("'")[0]


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU OpenMP on Linux alone")
def test_threads_of_a_command_wait_briefly_unless_the_environment_says_otherwise() -> None:
    assert spins() == SPINS
    assert spins(GOMP_SPINCOUNT="77") == "77"
    assert spins(OMP_WAIT_POLICY="passive") == "0"


def test_flower_s_processes_are_told_the_same() -> None:
    settings = (Path(__file__).parent.parent / "flwr.env").read_text(encoding="utf-8")
    assert f'export GOMP_SPINCOUNT="${{GOMP_SPINCOUNT:-{SPINS}}}"' in settings.splitlines()
