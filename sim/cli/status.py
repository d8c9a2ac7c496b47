"""``idiolect status``: how far a run is, whether it still runs, and what to do."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from typer import Argument

from fl.runs.schema import PREDICTIONS_NAME, REPORT_NAME, TOKEN_NAME
from fl.runs.status import RunState, RunStatus, read_status
from sim.cli.options import NO_CODE, Json, facts_table, wide_console
from sim.cli.progress import duration

console = wide_console(110)


def remedy(run: RunStatus) -> str:
    """What to do next."""
    report = f"idiolect report {run.folder}"
    resume = f"idiolect run --config {run.folder}/config.toml"
    if (run.folder / TOKEN_NAME).exists():
        resume = "flwr run, with the same settings"
    if run.state is RunState.FINISHED:
        page = run.folder / REPORT_NAME
        if page.exists():
            return f"open {page}"
        return report if _has_transcripts(run.folder) else "use its adapters: there was no sentence to be tested on"
    if run.state is RunState.RUNNING:
        return f"wait, then {report}"
    if run.state is RunState.ELSEWHERE:
        return "ask on the machine that runs it"
    if run.state is RunState.FAILED:
        return f"mend that, then {resume} (goes on after the last finished round)"
    return f"{resume} (goes on after the last finished round)"


def _has_transcripts(folder: Path) -> bool:
    path = folder / PREDICTIONS_NAME
    return path.exists() and path.stat().st_size > 0


def facts(run: RunStatus) -> Iterator[tuple[str, str]]:
    """What a person wants to know of a run, a line for each."""
    yield (
        "state",
        {
            RunState.RUNNING: f"running, process {run.process}",
            RunState.FINISHED: "finished",
            RunState.FAILED: "failed",
            RunState.STOPPED: "stopped before its end; its process is gone",
            RunState.ELSEWHERE: "written by another machine, so whether it runs is not known here",
        }[run.state],
    )
    if run.error and run.state is RunState.FAILED:
        yield "error", run.error
    if run.state is not RunState.FINISHED and run.current in run.parts:
        part = run.parts[run.current]
        yield (
            "doing" if run.state is RunState.RUNNING else "was doing",
            f"{run.current}, {part.done} of {part.total} done",
        )
    if run.parts:
        yield "in all", f"{run.done} of {run.total} rounds and tests"
    if run.state is RunState.RUNNING:
        left = run.seconds_left
        yield "time left", "not known before the first round" if left is None else f"about {duration(max(left, 1))}"
    if run.last_sign is not None:
        yield "last sign", f"{duration(max(0.0, time.time() - run.last_sign))} ago"


def parts_table(run: RunStatus) -> Table:
    """The parts of a run with their rounds and seconds."""
    table = Table(box=None)
    table.add_column("part")
    for name in ("done", "of", "time here"):
        table.add_column(name, justify="right")
    for name, part in run.parts.items():
        took = duration(part.seconds) if part.measured else ""
        table.add_row(name, str(part.done), str(part.total), took)
    return table


def status(folder: Annotated[Path, Argument(metavar="RUN", help="A run folder.")], as_json: Json = False) -> None:
    """Show how far a run is, whether it still runs, the time left and what to do next.

    Exit code: 0 for one that runs or is finished, 3 for one that failed or stopped before its end.
    """
    run = read_status(folder)
    if as_json:
        values = {**asdict(run), "folder": str(folder), "done": run.done, "total": run.total, "next": remedy(run)}
        print(json.dumps(values, ensure_ascii=False))
    else:
        console.print(facts_table(facts(run), f"Run {folder}"), highlight=False)
        if run.parts:
            console.print(parts_table(run), highlight=False)
        console.print(f"\nNext: {remedy(run)}", soft_wrap=True, highlight=False)
    if run.state in (RunState.FAILED, RunState.STOPPED):
        raise typer.Exit(NO_CODE)
