"""Small runs in this one process whose disk fails at random; a job ``{"config": ..., "fail": n}`` and an end on each line."""

import errno
import json
import os
import sys
from typing import Any

import torch

from fl.core import files
from fl.core.errors import IdiolectError
from fl.settings.config import make_config
from sim.backends.run import run_simulation


class FailingDisk:
    """``os`` for the seam of all writes: the n-th sync, rename or write fails."""

    def __init__(self, nth: int) -> None:
        self.left = nth

    def __getattr__(self, name: str) -> Any:
        if name in ("write", "fsync", "replace"):
            self.left -= 1
            if self.left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return getattr(os, name)


torch.set_num_threads(1)
out, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    job = json.loads(line)
    files.os = FailingDisk(job["fail"])  # type: ignore[assignment]
    said = ""
    try:
        run_simulation(make_config(job["config"]), serial=True)
    except IdiolectError as error:
        said = str(error)
    finally:
        files.os = os
    run_simulation(make_config(job["config"]), serial=True)
    print(json.dumps({"said": said}), file=out, flush=True)
