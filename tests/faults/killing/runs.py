"""Runs that are to be killed, each in a fork of this process, which has imported everything; jobs and ends are JSON lines.

{"config": {...}, "folder": ..., "counter": ..., "at": n}   dies at the n-th touch of the disk (0: never)
{"config": {...}, "after": seconds}                         dies after that time, wherever it is
"""

import json
import os
import signal
import sys
import time

import torch
from sitecustomize import arm

from clients.app import app
from fl.settings.config import make_config
from sim.backends.run import run_simulation

torch.set_num_threads(1)
assert app
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        os.dup2(2, 1)  # the run's own words
        try:
            if "counter" in job:
                arm(job["folder"], job["counter"], job["at"] or 1 << 60)
            run_simulation(make_config(job["config"]), serial=True)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if "after" in job:
        time.sleep(job["after"])
        os.kill(child, signal.SIGKILL)  # before its end is fetched, so the id is its own
    _, status = os.waitpid(child, 0)
    print(json.dumps({"end": os.waitstatus_to_exitcode(status)}), flush=True)
