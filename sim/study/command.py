"""``idiolect study NAME``: a command for each study of the catalogue, ``network`` and ``pairs``, and ``all`` and ``tables`` over them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from typer import Option

from fl.core.errors import ConfigError
from sim.cli.app import errors, progress_bars
from sim.cli.help import new_app
from sim.cli.late import Late, LateGroup
from sim.cli.options import Json, wide_console, with_fields
from sim.study.catalog import STUDIES
from sim.study.page import PAGES, STORE, rewrite, store, stored_at, write_study
from sim.study.plan import SIZES, SMOKE, Study
from sim.study.rows import StudyResult
from sim.study.run import CellRun, StudyRun, carry_out_side_by_side
from sim.study.table import print_result

ROOT = Path("runs/studies")
WORKERS = "Nodes of a run side by side; 0: one after the other."
console = wide_console(200)


class StudyGroup(LateGroup):
    """The studies; those with commands of their own are imported when they are run."""

    late: ClassVar[Mapping[str, Late]] = {
        "enrol": Late("What held-out speakers gain from 1 to 40 sentences.", "sim.study.enrol.command:enrol"),
        "network": Late("Ask a server, or hold the base on the device?", "sim.study.network.command:network"),
        "pairs": Late("Differences between two methods of enrolment, of stored rows.", "sim.study.enrol.command:pairs"),
    }


app = new_app(
    name="study",
    cls=StudyGroup,
    help="Run a study and print its tables; --write puts them into its page of the documentation.",
    no_args_is_help=True,
)


@app.callback()
def studies() -> None:
    """Every study is a table of runs that differ in a few settings, and can be cut to minutes by --smoke."""


@dataclass(frozen=True)
class StudyOptions:
    """The options of every study, and of ``all``."""

    smoke: Annotated[bool, Option("--smoke", help="Minutes: that it runs, not what it finds.")] = False
    size: Annotated[str, Option(help=", ".join(SIZES))] = "full"
    runs: Annotated[Path, Option(help="Where runs are kept, and reused.")] = ROOT
    workers: Annotated[int, Option(help=WORKERS, min=0)] = 0
    jobs: Annotated[int, Option(help="Runs side by side, 2 GiB each.", min=1)] = 1
    write: Annotated[Path | None, Option(help=f"Folder of pages to write the tables into, such as {PAGES}.")] = None


def make_run(study: Study, options: StudyOptions, cells: str = "") -> StudyRun:
    """What the options of a command ask for; ``cells`` are names with ``;`` between."""
    size = SMOKE.name if options.smoke else options.size
    if size not in SIZES:
        raise ConfigError(f"size {size!r} is unknown: {', '.join(SIZES)}")
    names = tuple(name.strip() for name in cells.split(";") if name.strip())
    return StudyRun(study, SIZES[size], options.runs / size, names, options.workers)


def run_ahead(runs: list[StudyRun], jobs: int, *, quiet: bool = False) -> None:
    """Carry out what ``runs`` need, ``jobs`` side by side; with one job each study does so itself."""
    if jobs == 1:
        return
    if any(run.workers for run in runs):
        raise ConfigError("jobs and workers are two ways to use the cores: give one of them")
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


def add_command(study: Study) -> None:
    """Give ``app`` the command of one study."""
    text = (
        f"{study.question}\n\n{len(study.cells)} cells; arms {', '.join(study.arms)}. "
        "A study that was stopped goes on where it stopped."
    )

    @app.command(study.name, help=text)
    @with_fields
    def command(
        options: StudyOptions,
        cells: Annotated[str, Option(help="Names with ';' between; else all.")] = "",
        as_json: Json = False,
    ) -> None:
        run = make_run(study, options, cells)
        run_ahead([run], options.jobs, quiet=as_json)
        result = run_study(run, write=options.write, quiet=as_json)
        if as_json:
            print(json.dumps(asdict(result), ensure_ascii=False))
        else:
            print_result(result, console)


for _study in STUDIES.values():
    add_command(_study)


@app.command("all")
@with_fields
def run_all(options: StudyOptions, as_json: Json = False) -> None:
    """Run every study of the catalogue whose data are there; runs that two of them have in common are made once."""
    for study in STUDIES.values():
        if study.missing:
            errors.print(f"study {study.name} is left out: there is no {study.missing} (docs/corpora.md)")
    each = [make_run(study, options) for study in STUDIES.values() if not study.missing]
    run_ahead(each, options.jobs, quiet=as_json)
    results = []
    for run in each:
        results.append(run_study(run, write=options.write, quiet=as_json))
        if not as_json:
            print_result(results[-1], console)
    if as_json:
        print(json.dumps([asdict(result) for result in results], ensure_ascii=False))


@app.command()
def tables(
    pages: Annotated[Path, Option(help="The folder of pages.")] = PAGES,
    rows: Annotated[Path, Option(help="The folder of stored rows.")] = STORE,
    as_json: Json = False,
) -> None:
    """Write the tables and plots of all pages of studies again from the stored rows; nothing is run."""
    from sim.study.enrol.command import write_pages  # torch

    written = [*rewrite(pages, rows), *write_pages(pages, rows)]
    if as_json:
        print(json.dumps([str(page) for page in written]))
        return
    for page in written:
        print(f"written: {page}")
