"""The Flower ServerApp: one run trains and evaluates every arm of a comparison, over whatever nodes there are."""

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fl.core.errors import IdiolectError, PackageError, RunError
from fl.core.printing import first_of
from fl.metrics import Counts
from fl.protocol.wire import add_counts
from fl.runs.files import note_left_out, write_costs
from fl.runs.folder import freed_if_empty, run_folder, run_token
from fl.runs.kept import kept_progress
from fl.runs.progress import Progress, both
from fl.runs.results import ResultsFile, gather_predictions
from fl.runs.schema import CHECKPOINTS, LEFT_OUT_NAME, PREDICTIONS_NAME, RESULTS_NAME
from fl.settings.config import RunConfig, make_config
from fl.tasks.table import TASKS, load_task
from fl.tasks.task import Task
from idiolect import shadow
from strategies.comparison import Comparison
from strategies.keys import remember
from strategies.loop import RoundLoop, rates_of
from strategies.roster import ask_roster

log = logging.getLogger("idiolect.server")


def run_server(grid: Grid, config: RunConfig, run_id: int, progress: Progress | None = None) -> Path:
    """A whole run over ``grid``; returns the run folder, with everything but the report in it."""
    config = run_folder(config, run_id)
    folder = Path(config.output)
    with kept_progress(folder) as kept:
        comparison = _prepared(grid, config, both(kept, progress))
        try:
            comparison.run()
        finally:  # what was spent is said of a run that stopped too
            if comparison.account is not None:
                comparison.account.write(folder)
        gather_predictions(folder, config.arms, comparison.roster.nodes)
        write_costs(folder, comparison.costs())
    log.info("run finished: %s", folder)
    return folder


def _prepared(grid: Grid, config: RunConfig, progress: Progress) -> Comparison:
    """The comparison over ``grid``, checked: whatever is refused is refused here, before the first round."""
    folder = Path(config.output)
    with freed_if_empty(folder):
        task = load_task(config)
        _tell(task, folder)
        roster = ask_roster(grid, config)
        counts = len(roster.training), len(roster.new_people), len(set(roster.nodes.values()))
        log.info("%d devices train, %d new people, %d nodes", *counts)
        loop = RoundLoop(
            grid,
            folder / CHECKPOINTS,
            task.fingerprint,
            ResultsFile(folder),
            config.federation.round_timeout,
            progress,
            metrics=TASKS[config.task].logged,
        )
        comparison = Comparison(config, grid, roster, task, loop)
        comparison.open_account(folder)
        comparison.check()
        if not roster.simulated:
            comparison.token = run_token(folder)
    remember(folder, roster.keys)
    note_left_out(folder, task.left_out)
    return comparison


def _tell(task: Task, folder: Path) -> None:
    """What a person should know of the data: what no device learns from, and who is left with nothing."""
    rows, lines = task.left_out, list(task.notes)
    if rows:
        lines.append(f"{len(rows)} examples cannot be used and are left out; {folder / LEFT_OUT_NAME} has them:")
    for line in (*lines, *first_of(rows)):
        log.warning("%s", line)
    counts = Counter(row.device for row in rows)
    for device_id in sorted(counts.keys() - set(task.device_ids())):
        log.warning("%s takes no part: none of %d examples can be used", device_id, counts[device_id])


def final_rates(rows: list[dict[str, Any]], split: str, metrics: tuple[str, ...]) -> dict[str, str]:
    """The pooled error rates of each arm's final evaluation, participants and new people apart, in words for the log."""
    texts: dict[str, str] = {}
    rows = [row for row in rows if row["split"] == split]
    last = {row["arm"]: row["round"] for row in sorted(rows, key=lambda row: row["round"])}
    for new_person in (False, True):
        totals: dict[str, dict[str, Counts]] = {}
        for row in rows:
            if row["round"] == last[row["arm"]] and row["new_person"] == new_person:
                counts = {name: Counts(**c) for name, c in row["metrics"].items()}
                totals[row["arm"]] = add_counts([totals.get(row["arm"], {}), counts])
        for arm, total in totals.items():
            text = ", ".join(f"{name.upper()} {rate}" for name, rate in rates_of(total, metrics).items())
            texts[arm] = f"{texts[arm]}; new people {text}" if arm in texts else text
    return texts


def make_server_app(
    config: RunConfig, done: Callable[[Path | IdiolectError], None], progress: Progress | None, ended: Event
) -> ServerApp:
    """A ServerApp with a configuration of its own, for ``idiolect run``: ``done`` is told the folder, or why there is none.

    Once the simulation has ``ended`` nobody answers any more, and waiting raises :class:`RunError`.
    """
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        def unless_ended(ask: Callable[..., Any]) -> Callable[..., Any]:
            def asked(*arguments: Any) -> Any:
                if ended.is_set():
                    raise RunError("the simulation ended before its nodes answered; its log is above")
                return ask(*arguments)

            return asked

        for name in ("get_node_ids", "pull_messages"):  # what Flower's grid and the roster wait with
            setattr(grid, name, unless_ended(getattr(grid, name)))
        try:
            done(run_server(grid, config, context.run_id, progress))
        except IdiolectError as error:
            done(error)
            raise

    return server


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """What ``flwr run`` starts: the configuration comes from ``[tool.flwr.app.config]`` and ``--run-config``."""
    from flwr.superlink.grid import InMemoryGrid  # loaded where it is used, else half a second

    in_clone = Path("idiolect.py").exists()  # of this project, whose packages are the same
    if isinstance(grid, InMemoryGrid) and not in_clone and (found := shadow([os.getcwd(), *sys.path])):
        raise PackageError(f"simulated nodes look first in the folder where the SuperLink was started, and {found}")
    flower = logging.getLogger("flwr")
    log.handlers, log.propagate = flower.handlers, False  # --stream shows what Flower's own logger prints
    log.setLevel(logging.INFO)
    config = make_config(dict(context.run_config))
    folder = run_server(grid, config, context.run_id)
    metrics = TASKS[config.task].logged
    for arm, rates in final_rates(ResultsFile(folder).rows(), config.federation.final_split, metrics).items():
        log.info("%-16s %s", arm, rates)
    if (folder / PREDICTIONS_NAME).stat().st_size:
        log.info("report: idiolect report %s", folder)
    else:
        log.info("counts of each device: %s; what they predicted stays with them", folder / RESULTS_NAME)
