"""Runs of studies side by side, each in a process with cores of its own.

A run of two threads is hardly faster than one of one thread where its operations are small, so a study ends sooner if each
core has a run to itself. Rates are the same to the bit only where sums do not depend on the number of threads; they are the
same within rounding everywhere. Nothing is shared but the mapped base and the caches on disk, which lock.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import Queue

from fl.core.errors import ConfigError, RunError
from fl.core.machine import available_cores
from sim.cli.app import set_up_process
from sim.study.run import CellRun, Progress


def core_groups(jobs: int) -> list[list[int]]:
    """The cores of this process in ``jobs`` groups. Raises :class:`ConfigError` if there are fewer."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(available_cores()))
    if jobs > len(cores):
        raise ConfigError(f"{jobs} runs side by side on {len(cores)} cores: at most one on each")
    return [cores[place::jobs] for place in range(jobs)]


def carry_out_side_by_side(runs: Sequence[CellRun], jobs: int, progress: Progress) -> None:
    """Carry out ``runs``, ``jobs`` of them at a time.

    When one raises, those under way are finished (they are kept), no other is begun, and what it raised is raised.
    :class:`RunError` if a process ends without an answer, which is mostly for want of memory.
    """
    groups = core_groups(jobs)
    context = multiprocessing.get_context("spawn")  # a fork after torch's threads have started hangs
    free = context.Queue()
    for group in groups:
        free.put(group)
    progress("runs", 0, len(runs))
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(free,)) as pool:
        waiting = [pool.submit(run.carry_out) for run in runs]
        try:
            for done, one in enumerate(as_completed(waiting), start=1):
                one.result()
                progress("runs", done, len(runs))
        except BrokenProcessPool as error:
            raise RunError(
                f"a run ended without an answer, perhaps for want of memory: fewer than {jobs} side by side need less"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(free: Queue[list[int]]) -> None:
    """A new process: take a group of cores, and log as the command does."""
    import torch

    cores = free.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    set_up_process()
