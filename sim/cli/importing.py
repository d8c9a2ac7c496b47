"""``idiolect import``: a corpus of others, checked and turned into a manifest."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from rich.table import Table
from typer import Argument, Option

from fl.core.errors import ConfigError
from fl.data.checked import CheckText
from fl.data.importers.build import ImportPlan, ImportSummary, import_corpus
from fl.data.importers.devices import SPEAKERS, DevicesBy, Splits
from fl.data.importers.records import FIELDS, Options, Transcript
from fl.data.importers.table import IMPORTERS
from sim.cli.app import progress_bars
from sim.cli.options import facts_table, wide_console

OUTPUT, CORPUS, DEVICES, TEXTS = "What is written", "Corpus", "Devices and splits", "Texts"
console = wide_console(140)


def _facts(summary: ImportSummary) -> Iterator[tuple[str, str]]:
    """What an import did, for a person."""
    yield "utterances", f"{summary.utterances:,}, {summary.hours:.2f} hours"
    yield "devices", _devices(summary)
    yield "languages", ", ".join(f"{name} {count:,}" for name, count in summary.languages.items())
    splits = ", ".join(f"{name} {count:,}" for name, count in summary.splits.items())
    yield "split", summary.splits_are + (f" ({splits})" if splits else "")
    yield "loanwords", f"{summary.loanwords:,} pairs of spellings"
    if summary.shared_texts:
        yield "shared", f"{summary.shared_texts:,} texts are said on several devices; a split keeps each in one part"
    for reason, count in summary.left_out.items():
        yield "left out", f"{count:,}: {reason}, first in {summary.examples[reason]}"
    for note in summary.notes:
        yield "note", note


def _devices(summary: ImportSummary) -> str:
    counts = [int(entry["utterances"]) for entry in summary.devices.values()]
    spread = f"{min(counts):,} to {max(counts):,} utterances each, median {statistics.median(counts):,.0f}"
    if summary.devices_are == SPEAKERS:
        return f"{len(counts):,} {SPEAKERS}; {spread}"
    return f"{len(counts):,} {summary.devices_are}: nobody's own speech, so gains of personalization are not shown by them; {spread}"


def _fields(given: list[str]) -> dict[str, str]:
    found = {}
    for pair in given:
        field, between, name = pair.partition("=")
        if not between or not name or field not in FIELDS:
            raise ConfigError(f"--field {pair!r}: write FIELD=NAME, where FIELD is one of {', '.join(FIELDS)}")
        found[field] = name
    return found


def import_command(
    form: Annotated[str, Argument(metavar="FORMAT", help="Name of an importer; --list shows them.")] = "",
    source: Annotated[Path | None, Argument(metavar="SOURCE", help="Folder, file or archive of the corpus.")] = None,
    listing: Annotated[
        bool, Option("--list", help="List the importers and how to get each corpus.", rich_help_panel=OUTPUT)
    ] = False,
    out: Annotated[Path | None, Option(help="Folder to write; without: check only.", rich_help_panel=OUTPUT)] = None,
    copy: Annotated[bool, Option("--copy", help="Write the audio there too, as FLAC.", rich_help_panel=OUTPUT)] = False,
    as_json: Annotated[bool, Option("--json", help="Print JSON for a script.", rich_help_panel=OUTPUT)] = False,
    audio: Annotated[Path | None, Option(help="Another folder with the audio.", rich_help_panel=CORPUS)] = None,
    encoding: Annotated[str, Option(help="Of label files: cp949, utf-16.", rich_help_panel=CORPUS)] = "",
    part: Annotated[
        list[str] | None, Option(help="Only this split or folder. Repeatable.", rich_help_panel=CORPUS)
    ] = None,
    field: Annotated[
        list[str] | None,
        Option(metavar="FIELD=NAME", help="What the corpus calls FIELD. Repeatable.", rich_help_panel=CORPUS),
    ] = None,
    local_speakers: Annotated[
        bool, Option("--local-speakers", help="Each file numbers its speakers (aihub).", rich_help_panel=CORPUS)
    ] = False,
    quoted: Annotated[bool, Option("--quoted", help="Quotation marks enclose cells.", rich_help_panel=CORPUS)] = False,
    devices_by: Annotated[
        DevicesBy, Option(metavar="BY", help="auto, speaker, topic or session", rich_help_panel=DEVICES)
    ] = "auto",
    splits: Annotated[Splits, Option(metavar="WHICH", help="auto, official or own", rich_help_panel=DEVICES)] = "auto",
    drop_leaking: Annotated[
        bool, Option("--drop-leaking", help="Leave out training texts of held-out parts.", rich_help_panel=DEVICES)
    ] = False,
    drop_bad: Annotated[
        bool, Option("--drop-bad", help="Leave out broken utterances.", rich_help_panel=DEVICES)
    ] = False,
    order: Annotated[
        Literal["spelling-first", "pronunciation-first"] | None,
        Option(metavar="WHICH", help="Of (A)/(B): spelling-first, pronunciation-first", rich_help_panel=TEXTS),
    ] = None,
    transcript: Annotated[
        Transcript, Option(metavar="WHICH", help="spelling or pronunciation", rich_help_panel=TEXTS)
    ] = "spelling",
    keep_events: Annotated[
        bool, Option("--keep-events", help="Keep marks of noise and hesitation.", rich_help_panel=TEXTS)
    ] = False,
    plain: Annotated[bool, Option("--plain", help="No punctuation, in lower case.", rich_help_panel=TEXTS)] = False,
    check_base: Annotated[
        str, Option(metavar="BASE", help="Refuse texts that BASE cannot write.", rich_help_panel=TEXTS)
    ] = "",
) -> None:
    """Turn a corpus into a manifest: idiolect import FORMAT SOURCE --out DIR. Speakers become devices."""
    if listing:
        _print_formats(as_json)
        return
    if not form or source is None:
        raise ConfigError(
            "give FORMAT and SOURCE, as in `idiolect import hike HiKE/ --out data/hike`; --list shows the formats"
        )
    options = Options(
        encoding=encoding,
        audio=audio,
        fields=_fields(field or []),
        parts=tuple(part or ()),
        order=order or "",
        transcript=transcript,
        events="keep" if keep_events else "remove",
        local_speakers=local_speakers,
        quoted=quoted,
    )
    plan = ImportPlan(
        out=out, copy=copy, plain=plain, devices=devices_by, splits=splits, drop_leaking=drop_leaking, drop_bad=drop_bad
    )
    check_text: CheckText | None = None
    if check_base:
        from fl.bases.resolve import load_speech_base  # it loads torch

        check_text = load_speech_base(check_base).check_text
    with progress_bars(as_json) as show:
        summary = import_corpus(form, source, options, plan, check_text=check_text, progress=show)
    if as_json:
        print(json.dumps(asdict(summary), ensure_ascii=False))
        return
    console.print(facts_table(_facts(summary), f"{summary.format}: {summary.source}"))
    if summary.manifest:
        text = f"\nTrain on it with: idiolect run --manifest {summary.manifest}"
        console.print(text, soft_wrap=True, highlight=False)
    else:
        console.print("\nNothing was written; --out DIR writes the manifest.")


def _print_formats(as_json: bool) -> None:
    columns = ("title", "layout", "speakers", "licence", "get")
    rows = [{"name": name, **{key: getattr(form, key) for key in columns}} for name, form in IMPORTERS.items()]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    table = Table(title="Importers: idiolect import NAME SOURCE --out DIR", title_justify="left")
    for heading in ("name", "corpus", "layout", "devices", "licence", "how to get it"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    console.print(table)
