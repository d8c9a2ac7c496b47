"""The command ``idiolect``: make data, run a comparison, look at it, and use what was trained."""

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer import Argument, Option

from fl import __version__
from fl.core.errors import IdiolectError, RunError
from fl.core.paths import find
from fl.runs.progress import Progress
from fl.settings.config import RunConfig
from fl.settings.names import DEFAULT_TASK
from sim.cli.help import new_app
from sim.cli.late import LateGroup
from sim.cli.options import (
    ERROR_CODE,
    RUN,
    STOPPED_CODE,
    HarmlessConsole,
    Json,
    JsonOfRun,
    facts_table,
    set_up_process,
    wide_console,
    with_settings,
)
from sim.cli.progress import progress_on, started

PURPOSE = "Federated, private, personal speech recognition for people who mix languages in one sentence."
START = """Federated, private, personal speech recognition
for people who mix languages in one sentence.

First:
  idiolect doctor                check this machine, and say what to do
  idiolect demo                  compare all methods on six synthetic people
  idiolect status runs/demo      how far that is, from another terminal

Then, on your own corpus:
  idiolect import --list         which corpora can be read, and how to get them
  idiolect run --manifest FILE   train and compare on it
  idiolect enrol --help          a personal adapter from a few recordings
  idiolect serve --help          transcribe for many people at once

idiolect --help lists all commands, idiolect COMMAND --help the options of one."""

app = new_app(
    name="idiolect",
    cls=LateGroup,
    help=f"{PURPOSE}\n\nStart with [bold]idiolect doctor[/bold] and [bold]idiolect demo[/bold]. "
    "Exit codes: docs/exit-codes.md.",
    invoke_without_command=True,
    add_completion=True,
)
console, errors = wide_console(110), HarmlessConsole(stderr=True)
DEMO: dict[str, object] = {"output": "runs/demo"}  # the default experiment


def progress_bars(quiet: bool = False) -> AbstractContextManager[Progress]:
    """A callback ``(what, done, total)`` that shows on standard error how far each ``what`` is, with the time left."""
    return progress_on(errors, quiet)


def _simulation(workers: int, serial: bool, processes: bool = False, ray_address: str = "") -> Callable[..., Path]:
    """:func:`sim.backends.run.run_simulation` where the options say that it is to happen."""
    from sim.backends.run import run_simulation

    return partial(run_simulation, workers=workers or None, serial=serial, processes=processes, ray_address=ray_address)


def _run_no_op(config: RunConfig, simulate: Callable[..., Path], as_json: bool) -> None:
    from sim.backends.noop import run_no_op

    with progress_bars(as_json) as show:
        summary = run_no_op(config, partial(simulate, progress=started(show)))
    if as_json:
        print(json.dumps(asdict(summary)))
        return
    memory = f"{summary.peak_bytes / 2**30:.2f} GiB at most, all processes" if summary.peak_bytes else "not known"
    rows = {
        "rounds": f"{summary.rounds:,}",
        "devices": f"{summary.devices:,}, {summary.trained / summary.rounds:,.0f} in a round",
        "seconds": f"{summary.seconds:.1f}, {summary.seconds_rounds:.1f} of them in rounds",
        "framework": f"{summary.framework_ms:.2f} ms for each device in a round",
        "memory": memory,
    }
    console.print(facts_table(rows.items(), "Run without training"))


def _run_and_report(config: RunConfig, simulate: Callable[..., Path], as_json: bool) -> None:
    from fl.adapters.correction import FOLDER as CORRECTIONS
    from fl.runs.files import read_privacy
    from fl.runs.schema import DEVICES, SHARED_ADAPTER
    from fl.tasks.table import TASKS
    from sim.report.page import write_report
    from sim.report.table import print_summary

    with progress_bars(as_json) as show:
        TASKS[config.task].prepare(config, lambda done, total: show(config.task, done, total))
        folder = simulate(config, progress=started(show))
    summary = write_report([folder], folder)
    if as_json:
        print(json.dumps(summary, ensure_ascii=False))
    else:
        print_summary(summary, console)
        if (privacy := read_privacy(folder)) is not None:  # what a private run promises, with every assumption
            console.print("\nPrivacy", style="bold")
            console.print(privacy.statement, highlight=False)
        places = {"Report": "report.html", "adapters": DEVICES, "for a new person": SHARED_ADAPTER}
        if (folder / CORRECTIONS).exists():  # a corrected base, on which nobody enrols
            del places["for a new person"]
        told = [f"{what}: {_relative(folder / name)}" for what, name in places.items() if (folder / name).exists()]
        console.print("\n" + "   ".join(told), soft_wrap=True)


def _relative(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


Workers = Annotated[int, Option(help="Nodes side by side; 0: one a core.", min=0, rich_help_panel=RUN)]
Serial = Annotated[bool, Option("--serial", help="One node after the other.", rich_help_panel=RUN, hidden=True)]
Processes = Annotated[
    bool, Option("--processes", help="Nodes are processes on Ray, not threads.", rich_help_panel=RUN, hidden=True)
]
RayAddress = Annotated[
    str, Option(help="Ray cluster to join, host:port or auto.", rich_help_panel=RUN, hidden=True, show_default=False)
]
NoOp = Annotated[
    bool, Option("--no-op", help="Train nothing: measure the framework.", rich_help_panel=RUN, hidden=True)
]


@app.command()
@with_settings
def demo(
    config: RunConfig,
    workers: Workers = 0,
    serial: Serial = False,
    processes: Processes = False,
    as_json: JsonOfRun = False,
    start: Any = DEMO,
) -> None:
    """Train and compare all arms on six synthetic people who mix Korean and English; writes runs/demo/report.html.

    It is the default experiment: 12 rounds of 12 steps. Everything runs on this machine, in 16 to 17 minutes on 2 cores.

    An interrupted demo goes on where it stopped.
    """
    _run_and_report(config, _simulation(workers, serial, processes), as_json)
    if (
        config.task == DEFAULT_TASK
        and not (as_json or config.data.manifest)
        and config.data.synthetic.voices == "espeak"
    ):
        about = "espeak-ng's voices are foreign to the base: much of what was trained is them. Natural ones: --set voices=neural"
        console.print(about, highlight=False)


@app.command()
@with_settings
def run(
    config: RunConfig,
    workers: Workers = 0,
    serial: Serial = False,
    processes: Processes = False,
    ray_address: RayAddress = "",
    no_op: NoOp = False,
    as_json: JsonOfRun = False,
) -> None:
    """Train and compare with your own settings: on a corpus with [bold]--manifest[/bold] FILE, else on synthetic people.

    The run folder (--output, else runs/last) gets the report, results, transcripts and every device's adapter.

    A run that was stopped resumes when it is started again with the same settings.
    """
    from fl.tasks.table import TASKS

    measures = no_op or not TASKS[config.task].learns
    simulate = _simulation(workers, serial, processes or measures, ray_address)
    if measures:
        _run_no_op(config, simulate, as_json)
    else:
        _run_and_report(config.changed({"output": config.output or "runs/last"}), simulate, as_json)


@app.command()
def synth(
    out: Annotated[Path, Option(help="Folder to write.")],
    pair: Annotated[str, Option(help="Languages: ko-en, es-en or ja-en.")] = "ko-en",
    devices: Annotated[int, Option(help="People who take part.", min=1)] = 8,
    new_people: Annotated[int, Option(help="Further people who never train.", min=0)] = 0,
    sentences: Annotated[int, Option(help="Sentences of each person.", min=1)] = 60,
    seed: Annotated[int, Option(help="The same seed gives the same bytes.", min=0)] = 0,
    voices: Annotated[str, Option(help="espeak, or neural for natural voices.")] = "espeak",
    matched: Annotated[bool, Option("--matched", help="Pairs sound alike and spell differently.")] = False,
    traits: Annotated[str, Option(help="accent, numbers, fillers, ...: docs/data.md")] = "",
    new_people_sentences: Annotated[int, Option(help="Sentences of each of those; 0: as many.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Make a synthetic population of people who mix two languages: each with a voice, a room and spelling habits."""
    from fl.data.synthetic import synthesize

    sizes: dict[str, Any] = {"devices": devices, "new_people": new_people, "sentences": sentences, "seed": seed}
    people: dict[str, Any] = {
        "voices": voices,
        "matched": matched,
        "traits": traits,
        "new_people_sentences": new_people_sentences,
    }
    with progress_bars(as_json) as show:
        manifest = synthesize(
            out, pair=pair, progress=lambda done, total: show("speech", done, total), **sizes, **people
        )
    if as_json:
        print(json.dumps({"manifest": str(manifest.resolve())}))
    else:
        text = f"{manifest}\nTrain on it with: idiolect run --manifest {manifest}"
        console.print(text, soft_wrap=True, highlight=False)


@app.command()
def report(
    folders: Annotated[list[Path], Argument(help="Run folders; seeds are pooled.")],
    out: Annotated[Path | None, Option(help="Where the page goes; else the first folder.")] = None,
    as_json: Json = False,
) -> None:
    """Summarize a run: error rates with intervals in the terminal, and one self-contained HTML page."""
    from fl.runs.schema import PREDICTIONS_NAME
    from fl.runs.status import RunState, read_status
    from sim.cli.status import remedy
    from sim.report.page import write_report
    from sim.report.table import print_summary

    target = out or folders[0]
    try:
        with errors.status("resampling for intervals"):
            summary = write_report(folders, target)
    except RunError:
        for run in map(read_status, folders):  # a folder of no run is refused here, with what to give instead
            if run.state is not RunState.FINISHED and not (run.folder / PREDICTIONS_NAME).exists():
                why = f"the run is {run.state} and was not tested yet"
                raise RunError(f"{run.folder}: there is nothing to report, {why}: {remedy(run)}") from None
        raise
    if as_json:
        print(json.dumps(summary, ensure_ascii=False))
    else:
        print_summary(summary, console)
        console.print(f"\nPage: {_relative(target / 'report.html')}", soft_wrap=True)


@app.command()
def transcribe(
    file: Annotated[Path, Argument(help="A recording of any rate and length.")],
    adapter: Annotated[Path | None, Option(help="A person's adapter folder; else the base alone.")] = None,
    base: Annotated[str, Option(help="Base; else the adapter's own.")] = "",
    beams: Annotated[int, Option(min=1, max=16, help="Beam width.")] = 1,
    language: Annotated[str, Option(help="Such as ko; else the adapter's, or detected.")] = "",
    prompt: Annotated[str, Option(help="Text before it, such as names (Whisper only).")] = "",
    correction: Annotated[Path | None, Option(help="Of flora or fedex; else that of the run.")] = None,
    precision: Annotated[str, Option(help="float32, bf16 or auto.")] = "auto",
    as_json: Json = False,
) -> None:
    """Transcribe a file with a person's adapter, of any method. Audio longer than 29 s is split at silence.

    The file is WAV, FLAC, MP3, M4A, OGG, WebM, AAC or AMR. A spelling table beside the adapter is applied.
    """
    from fl.speech.audio import require_recording

    require_recording(find(file))  # before torch is loaded
    from fl.speech.transcribe import transcribe_file

    with errors.status("loading the base and listening"):
        pieces = transcribe_file(
            file,
            base,
            adapter,
            beams=beams,
            language=language,
            prompt=prompt,
            correction=correction,
            precision=precision,
            remark=lambda text: errors.print(f"{file}: {text}", soft_wrap=True, highlight=False),
        )
    if as_json:
        text = " ".join(p.text for p in pieces)
        print(json.dumps({"text": text, "pieces": [asdict(p) for p in pieces]}, ensure_ascii=False))
    else:
        console.print("\n".join(p.text for p in pieces), soft_wrap=True, highlight=False)


@app.command()
def bases(
    as_json: Json = False,
    sizes: Annotated[bool, Option("--sizes", help="The architectures of random:NAME instead, as Markdown.")] = False,
    write: Annotated[Path | None, Option(help="With --sizes: a page to write the table into.")] = None,
) -> None:
    """List the bases that need no model hub. Any Whisper or Wav2Vec2-CTC from a directory or the Hub works as well."""
    from fl.bases.known import known_bases

    if sizes:
        from fl.bases.resolve import sizes_table  # torch
        from sim.section import write_section

        if write is not None:
            write_section(write, "<!-- begin:sizes -->", "<!-- end:sizes -->", sizes_table())
        else:
            print(sizes_table(), end="")
        return
    rows = known_bases()
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    table = Table(title="Pinned bases", box=None)
    for name in ("name", "ready", "download", "licence", "source"):
        table.add_column(name, overflow="fold", no_wrap=name == "name")
    for row in rows:
        size, ready = f"{row.download_bytes / 1e6:.0f} MB", "yes" if row.cached else "at first use"
        table.add_row(row.name, ready, size, row.licence, row.source)
    console.print(table)
    console.print(
        "Also: a directory in transformers' layout, a Hub name such as openai/whisper-small, random:<architecture>."
    )


@app.command()
def info(adapter: Annotated[Path, Argument(help="An adapter folder.")], as_json: Json = False) -> None:
    """Show what an adapter is: its base, its configuration, and how much of it is shared and how much private."""
    from fl.adapters.files import describe, load_adapter

    facts = describe(*load_adapter(adapter))
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    rows = []
    for key, value in facts.items():
        if isinstance(value, dict):
            value = f"{value['tensors']} tensors, {value['parameters']:,} parameters, {value['bytes'] / 1024:,.0f} KiB"
        rows.append((key.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)))
    console.print(facts_table(rows))


def _version(value: bool) -> None:
    if value:
        print(f"idiolect {__version__}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    verbose: Annotated[bool, Option("--verbose", "-v", help="Log every round to standard error.")] = False,
    version: Annotated[bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options of every command."""
    set_up_process(verbose)
    if ctx.invoked_subcommand is None:
        print(START)


def main() -> None:
    """Entry point: errors of the user's making are one line on standard error; exit codes are those of docs/exit-codes.md."""
    try:
        app()
    except IdiolectError as error:
        _say_error(str(error))
        sys.exit(ERROR_CODE)
    except OSError as error:
        _say_error(f"{error}: check the name, the disk, and who may write there")
        sys.exit(ERROR_CODE)
    except SystemExit as end:
        if end.code == STOPPED_CODE:  # what Typer makes of Ctrl-C, without a word
            errors.print("stopped; start the same command again to go on")
        raise


def _say_error(text: str) -> None:
    errors.print("idiolect:", style="bold red", end=" ")
    errors.print(text, soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
