"""``idiolect study NAME``: one command for each study of the catalogue, and ``all`` and ``tables`` over them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fl.core.errors import ConfigError
from sim.cli.app import progress_bars
from sim.study.catalog import STUDIES
from sim.study.page import PAGE, STORE, rewrite, store, stored_at, write_study
from sim.study.plan import SIZES, Study
from sim.study.rows import StudyResult
from sim.study.run import CellRun, StudyRun
from sim.study.side_by_side import carry_out_side_by_side
from sim.study.table import print_result

ROOT = Path("runs/studies")
Smoke = Annotated[bool, typer.Option("--smoke", help="Minutes on 2 cores: shows that it runs, not what it finds.")]
SizeName = Annotated[str, typer.Option("--size", help=f"How large the runs are: {', '.join(SIZES)}.")]
Root = Annotated[
    Path, typer.Option("--runs", help="Where the runs are kept; those that are finished are not run again.")
]
Cells = Annotated[str, typer.Option("--cells", help="Names of cells with ';' between; all by default.")]
Workers = Annotated[
    int,
    typer.Option(help="Processes in which the devices of a run train side by side; 0 trains in the run's own.", min=0),
]
Jobs = Annotated[
    int, typer.Option(help="Runs side by side, each with its share of the cores and 2 GiB of memory or more.", min=1)
]
Write = Annotated[
    Path | None, typer.Option(help=f"Markdown page whose section is to be replaced, {PAGE}; rows go to {STORE}.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of text for a person.")]


def console() -> Console:
    """Wide enough for the tables where there is no window."""
    return Console(width=None if sys.stdout.isatty() else 200)


def make_run(study: Study, *, size: str, root: Path, cells: str = "", workers: int = 0) -> StudyRun:
    """What the options of a command ask for."""
    if size not in SIZES:
        raise ConfigError(f"size {size!r} is unknown: {', '.join(SIZES)}")
    names = tuple(name.strip() for name in cells.split(";") if name.strip())
    return StudyRun(study, SIZES[size], root / size, names, workers)


def run_ahead(runs: list[StudyRun], jobs: int, *, quiet: bool = False) -> None:
    """Carry out what ``studies`` need, ``jobs`` runs side by side; with one job each study does so itself."""
    if jobs == 1:
        return
    if any(run.workers for run in runs):
        raise ConfigError("jobs and workers are two ways to use the cores: give one of them")
    for run in runs:
        run.check()
    pending: dict[str, CellRun] = {}
    for run in runs:
        pending |= run.pending()
    if pending:
        with progress_bars(quiet) as show:
            carry_out_side_by_side(list(pending.values()), jobs, show)


def run_study(run: StudyRun, *, write: Path | None, quiet: bool = False) -> StudyResult:
    """Run or resume one study, and store it where ``write`` says."""
    study = run.study
    with progress_bars(quiet) as show:
        result = run.run(show)
    if write is not None:
        stored = stored_at(study.name, result.size, STORE)
        if run.cells and stored.is_file():
            again = study.baseline if study.baseline not in run.cells else ""
            result = result.merged(StudyResult.read(stored), keep=again).ordered([cell.name for cell in study.cells])
        write_study(result, write, STORE)
    else:
        store(result, run.root)
    return result


def study_command(study: Study) -> Callable[..., None]:
    """The command of one study."""

    def command(
        smoke: Smoke = False,
        size: SizeName = "full",
        runs: Root = ROOT,
        cells: Cells = "",
        workers: Workers = 0,
        jobs: Jobs = 1,
        write: Write = None,
        as_json: Json = False,
    ) -> None:
        run = make_run(study, size="smoke" if smoke else size, root=runs, cells=cells, workers=workers)
        run_ahead([run], jobs, quiet=as_json)
        result = run_study(run, write=write, quiet=as_json)
        if as_json:
            print(json.dumps(asdict(result), ensure_ascii=False))
        else:
            print_result(result, console())

    command.__doc__ = (
        f"{study.question}\n\n{len(study.cells)} cells; arms {', '.join(study.arms)}. "
        "A study that was stopped goes on where it stopped."
    )
    return command


def run_all(
    smoke: Smoke = False,
    size: SizeName = "full",
    runs: Root = ROOT,
    workers: Workers = 0,
    jobs: Jobs = 1,
    write: Write = None,
) -> None:
    """Run every study of the catalogue; runs that two of them have in common are made once."""
    size = "smoke" if smoke else size
    each = [make_run(study, size=size, root=runs, workers=workers) for study in STUDIES.values()]
    run_ahead(each, jobs)
    for run in each:
        print_result(run_study(run, write=write), console())


def tables(
    page: Annotated[Path, typer.Option(help="The page.")] = PAGE,
    rows: Annotated[Path, typer.Option(help="The folder of stored rows.")] = STORE,
) -> None:
    """Write every table and plot of the page again from the stored rows; nothing is run."""
    for name in rewrite(page, rows):
        print(f"{name}: written into {page}")
