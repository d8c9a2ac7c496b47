"""Run the cells of a study and keep a row of each: one run after the other, or side by side in processes with cores of their own.

A study that was stopped resumes. A run of two threads is hardly faster than one of one thread where its operations are small,
so a study ends sooner if each core has a run to itself. Rates are the same to the bit only where sums do not depend on the
number of threads; they are the same within rounding everywhere. Nothing is shared but the mapped base and the caches on disk,
which lock.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from fl.algorithms.arms import trained_arm
from fl.core.errors import AggregationError, ConfigError, IdiolectError, RunError
from fl.core.machine import available_cores, installed_versions, machine
from fl.runs.files import is_finished, write_whole
from fl.runs.progress import Progress, as_one
from fl.runs.schema import CHECKPOINTS, DEVICES
from fl.settings.config import RunConfig, flat
from sim.backends.run import run_simulation
from sim.cli.options import set_up_process
from sim.study.plan import Study, StudyCell, StudySize
from sim.study.rows import StudyResult, StudyRow
from sim.study.scores import CellScores

log = logging.getLogger("idiolect.study")
FAILURE = "failed.txt"  # in the folder of a run


@dataclass(frozen=True)
class CellRun:
    """One run of a study: of a cell and a seed."""

    title: str
    short: str  # within its study
    config: RunConfig
    folder: Path

    @property
    def failure(self) -> str:
        """Why the run ended without a model, which is a result; empty if it did not."""
        path = self.folder / FAILURE
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return is_finished(self.folder) or (self.folder / FAILURE).exists()

    def carry_out(self, workers: int = 0, progress: Progress | None = None) -> None:
        """Begin or go on, in this process or with ``workers`` that train side by side. What it raises names the cell."""
        try:
            run_simulation(self.config, serial=not workers, workers=workers or None, progress=progress)
        except AggregationError as error:  # which is a result: the attack or the noise won
            log.warning("%s: %s", self.title, error)
            write_whole(self.folder / FAILURE, str(error))
            return
        except IdiolectError as error:
            raise type(error)(f"{self.title}: {error}") from error
        for name in (CHECKPOINTS, DEVICES):  # it is only read: its rounds need not be kept, its private parts neither
            shutil.rmtree(self.folder / name, ignore_errors=True)


def steps_of(config: RunConfig) -> int:
    """Rounds and tests of a run, which its progress counts."""
    arms = filter(None, (trained_arm(name, config) for name in config.arms))
    return sum(arm.schedule.rounds for arm in arms) + len(config.arms)


@dataclass(frozen=True)
class StudyRun:
    """One study at one size under ``root``; ``cells`` are names, all of the size's unless given."""

    study: Study
    size: StudySize
    root: Path
    cells: tuple[str, ...] = ()
    workers: int = 0  # 0 stays in this process, which loads the base once

    def folder(self, cell: StudyCell, seed: int) -> Path:
        """Where one run lives: by what it is, so that studies with the same run share it."""
        config = self.study.config(cell, self.size, seed, "")
        digest = hashlib.sha256(json.dumps(flat(config), sort_keys=True).encode()).hexdigest()[:8]
        slug = re.sub(r"[^a-z0-9.]+", "-", f"{self.study.name}-{cell.name}".lower()).strip("-")
        shared = sorted(self.root.glob(f"*-seed{seed}-{digest}"))
        return shared[0] if shared else self.root / f"{slug}-seed{seed}-{digest}"

    def pending(self) -> dict[str, CellRun]:
        """The runs that :meth:`run` would carry out, by their settings: what cells and studies have in common is there once."""
        found: dict[str, CellRun] = {}
        for cell in self._chosen():
            for run in self._runs(cell):
                if not run.finished:
                    found.setdefault(json.dumps({**flat(run.config), "output": ""}, sort_keys=True), run)
        return found

    def _chosen(self) -> tuple[StudyCell, ...]:
        """The cells to run: the baseline too, since the others are compared with it."""
        return self.study.chosen(self.size, (*self.cells, self.study.baseline) if self.cells else ())

    def _runs(self, cell: StudyCell) -> list[CellRun]:
        """The runs of a cell, one for each seed."""
        found = []
        for seed in self.size.seeds:
            folder = self.folder(cell, seed)
            title, short = f"study {self.study.name}, cell {cell.name!r}, seed {seed}", f"{cell.name}, seed {seed}"
            found.append(CellRun(title, short, self.study.config(cell, self.size, seed, str(folder)), folder))
        return found

    def run(self, progress: Progress = lambda what, done, total: None) -> StudyResult:
        """All cells; what is finished already is read and not run again."""
        cells = self._chosen()
        for cell in cells:
            self._runs(cell)  # makes every configuration, so that a wrong one is refused before the first hour
        scores: dict[str, CellScores | str] = {}
        for run in self.pending().values():
            progress(run.short, 0, steps_of(run.config))
        for cell in cells:
            scores[cell.name] = self._cell(cell, progress)
        rows = [row for cell in cells for row in self._rows(cell, scores)]
        baseline = scores[self.study.baseline]
        metric = baseline.metric if isinstance(baseline, CellScores) else "mer"
        conditions = self._conditions(scores)
        return StudyResult(self.study.name, self.study.question, self.size.name, metric, tuple(rows), conditions)

    def _cell(self, cell: StudyCell, progress: Progress) -> CellScores | str:
        """The scores of one cell, or why there are none."""
        runs = self._runs(cell)
        for run in runs:
            if not run.finished:
                run.carry_out(self.workers, as_one(run.short, progress))
            if run.failure:
                return run.failure
        return CellScores.read([run.folder for run in runs], seeds=self.size.seeds, new_people=cell.new_people)

    def _rows(self, cell: StudyCell, scores: dict[str, CellScores | str]) -> list[StudyRow]:
        """The rows of one cell: of each compared arm, and of each slice of the sentences that the study wants."""
        own, baseline = scores[cell.name], scores[self.study.baseline]
        if isinstance(baseline, CellScores) and baseline.new_people != cell.new_people:  # compared on the same people
            baseline = CellScores.of(baseline.runs, cell.new_people)
        trained = self.study.config(cell, self.size, self.size.seeds[0], "").arms  # a small size may leave some out
        arms = [arm for arm in cell.compared or self.study.compared if arm in trained]
        if isinstance(own, str):
            failed = StudyRow(cell.name, "", dict(cell.settings), self.size.seeds, failed=own, machine=machine())
            return [replace(failed, arm=arm) for arm in arms]
        beside = None if isinstance(baseline, str) or cell.name == self.study.baseline else baseline
        rows = [self._row(cell.name, cell, arm, own, beside) for arm in arms]
        for kind in self.study.slices:
            for name, part in own.sliced(kind).items():
                rows += [self._row(name, cell, arm, part, None) for arm in arms]
        return rows

    def _row(self, name: str, cell: StudyCell, arm: str, own: CellScores, beside: CellScores | None) -> StudyRow:
        if arm not in own.arms:
            raise RunError(f"cell {cell.name!r} of study {self.study.name!r} has no arm {arm!r}: add it to its arms")
        known = beside.arms if beside is not None else {}
        other = known.get(arm, known.get(self.study.compared[-1]))
        everyone = own.arms.get("global", known.get("global")) if arm != "global" else None
        return StudyRow(
            name,
            arm,
            dict(cell.settings),
            self.size.seeds,
            metric=own.metric,
            rates=own.rates(arm),
            against_baseline=own.difference(arm, other) if other else None,
            against_global=own.difference(arm, everyone) if everyone else None,
            costs=own.costs(arm),
            facts=own.facts(arm, everyone),
            people=own.people(arm),
            machine=own.machine,
        )

    def _conditions(self, scores: dict[str, CellScores | str]) -> dict[str, Any]:
        baseline_first = (scores[self.study.baseline], *scores.values())
        found = next((one for one in baseline_first if isinstance(one, CellScores)), None)
        conditions: dict[str, Any] = {
            "seeds": list(self.size.seeds),
            "versions": installed_versions("flwr", "torch", "transformers", "peft", "jiwer"),
            "baseline": self.study.baseline,
            "drawn": self.study.drawn,
            "repeated": self.study.repeated,
        }
        if found is not None:
            costs = asdict(found.runs[0].costs)
            facts = ("versions", "base", "devices", "rounds", "local_steps", "batch_size")
            conditions |= {name: costs[name] for name in facts}
            sentences = {(each.row.device, each.row.utterance) for rows in found.arms.values() for each in rows}
            conditions["sentences"] = len(sentences)
        return conditions


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
