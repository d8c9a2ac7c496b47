"""pfl-research's users spread over several processes by torchrun, as its documentation has it for one machine.

:mod:`benchmarks.peers.pfl_round` starts it; each process trains its share of the users and pfl sums the differences.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from fl.settings.config import RunConfig, flat, make_config


def run_processes(config: RunConfig, rounds: int, processes: int, threads: int) -> list[float]:
    """Seconds of ``rounds`` rounds, after one that is not measured, in ``processes`` of ``threads`` threads each."""
    with tempfile.TemporaryDirectory() as folder:
        settings, result = Path(folder) / "settings.json", Path(folder) / "seconds.json"
        settings.write_text(json.dumps(flat(config)), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += ["-m", "benchmarks.peers.pfl_workers", str(settings), str(result)]
        command += ["--rounds", str(rounds), "--threads", str(threads)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        seconds: list[float] = json.loads(result.read_text(encoding="utf-8"))
    return seconds


def main() -> None:
    """One of the processes; the first writes the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    from benchmarks.peers.pfl_round import PflSide, Setting

    side = PflSide(Setting(make_config(json.loads(arguments.settings.read_text(encoding="utf-8")))))
    seconds = []
    for _ in range(arguments.rounds + 1):
        started = time.perf_counter()
        side.round()
        seconds.append(time.perf_counter() - started)
    if os.environ.get("RANK", "0") == "0":
        arguments.result.write_text(json.dumps(seconds[1:]), encoding="utf-8")


if __name__ == "__main__":
    main()
