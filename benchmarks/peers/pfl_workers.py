"""Users spread over several processes by torchrun, as pfl-research's documentation has it for one machine; our cohorts likewise.

:mod:`benchmarks.peers.pfl_round` starts it; each process trains its share of the users, and pfl sums the differences. A cohort's
process takes the weighted mean of its own users, and all of them add theirs up.
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
from typing import TYPE_CHECKING

import torch

from fl.settings.config import RunConfig, flat, make_config

if TYPE_CHECKING:
    from benchmarks.peers.pfl_round import Cohort, Setting


def run_processes(side: str, config: RunConfig, rounds: int, processes: int, threads: int) -> list[float]:
    """Seconds of ``rounds`` rounds of ``pfl`` or ``cohort``, after one not measured, in ``processes`` of ``threads`` threads each."""
    with tempfile.TemporaryDirectory() as folder:
        settings, result = Path(folder) / "settings.json", Path(folder) / "seconds.json"
        settings.write_text(json.dumps(flat(config)), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += ["-m", "benchmarks.peers.pfl_workers", side, str(settings), str(result)]
        command += ["--rounds", str(rounds), "--threads", str(threads)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        seconds: list[float] = json.loads(result.read_text(encoding="utf-8"))
    return seconds


def shared_cohort(setting: Setting) -> Cohort:
    """A cohort of this process's users, whose mean is that of all processes."""
    from torch import distributed
    from torch.nn.utils import parameters_to_vector, vector_to_parameters

    from benchmarks.peers.pfl_round import Cohort

    class Shared(Cohort):
        def round(self) -> None:
            super().round()
            mean = share * parameters_to_vector(self.shared.values())
            distributed.all_reduce(mean)
            vector_to_parameters(mean, self.shared.values())

    if not distributed.is_initialized():  # pfl does it when it is imported
        distributed.init_process_group("gloo")
    everybody = sum(len(device.train) for device in setting.devices)
    setting.devices = setting.devices[distributed.get_rank() :: distributed.get_world_size()]
    share = sum(len(device.train) for device in setting.devices) / everybody
    return Shared(setting)


def main() -> None:
    """One of the processes; the first writes the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=("pfl", "cohort"))
    parser.add_argument("settings", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    from benchmarks.peers.pfl_round import PflSide, Setting

    setting = Setting(make_config(json.loads(arguments.settings.read_text(encoding="utf-8"))))
    side = PflSide(setting) if arguments.side == "pfl" else shared_cohort(setting)
    seconds = []
    for _ in range(arguments.rounds + 1):
        started = time.perf_counter()
        side.round()
        seconds.append(time.perf_counter() - started)
    if os.environ.get("RANK", "0") == "0":
        arguments.result.write_text(json.dumps(seconds[1:]), encoding="utf-8")


if __name__ == "__main__":
    main()
