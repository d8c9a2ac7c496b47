"""``idiolect import``: a corpus of others, checked and turned into a manifest."""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fl.core.errors import ConfigError
from fl.data.importers.build import ImportPlan, ImportSummary, import_corpus
from fl.data.importers.devices import SPEAKERS, DevicesBy, Splits
from fl.data.importers.gather import Rewriting
from fl.data.importers.records import FIELDS, Options, Transcript
from fl.data.importers.table import IMPORTERS
from sim.cli.app import progress_bars

console = Console(width=None if sys.stdout.isatty() else 140)


COLUMNS = ("title", "layout", "speakers", "licence", "get")  # of an importer, in the list


def formats_table() -> Table:
    """The importers as a table for a person."""
    table = Table(title="Importers: idiolect import NAME SOURCE --out DIR", title_justify="left")
    for heading in ("name", "corpus", "layout", "devices", "licence", "how to get it"):
        table.add_column(heading, overflow="fold")
    for row in _importers():
        table.add_row(*row.values())
    return table


def _importers() -> list[dict[str, str]]:
    return [{"name": name, **{key: getattr(form, key) for key in COLUMNS}} for name, form in IMPORTERS.items()]


def summary_table(summary: ImportSummary) -> Table:
    """What an import did, as a table for a person."""
    table = Table(
        title=escape(f"{summary.format}: {summary.source}"), box=None, show_header=False, title_justify="left"
    )
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("utterances", f"{summary.utterances:,}, {summary.hours:.2f} hours")
    table.add_row("devices", _devices(summary))
    table.add_row("languages", ", ".join(f"{name} {count:,}" for name, count in summary.languages.items()))
    splits = ", ".join(f"{name} {count:,}" for name, count in summary.splits.items())
    table.add_row("split", summary.splits_are + (f" ({splits})" if splits else ""))
    table.add_row("loanwords", f"{summary.loanwords:,} pairs of spellings")
    if summary.shared_texts:
        table.add_row(
            "shared", f"{summary.shared_texts:,} texts are said on several devices; a split keeps each in one part"
        )
    for reason, count in summary.left_out.items():
        table.add_row("left out", escape(f"{count:,}: {reason}, first in {summary.examples[reason]}"))
    for note in summary.notes:
        table.add_row("note", escape(note))
    return table


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
    form: Annotated[str, typer.Argument(metavar="[FORMAT]", help="Name of an importer; --list shows them.")] = "",
    source: Annotated[
        Path | None, typer.Argument(metavar="[SOURCE]", help="Folder, file or archive (.zip, .tar.gz) of the corpus.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the importers and how to get each corpus.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for manifest.jsonl and import.json; without it the corpus is only checked."),
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Write all audio to --out (16 kHz mono FLAC) instead of naming it in place.")
    ] = False,
    audio: Annotated[Path | None, typer.Option(help="A further folder in which the audio may lie.")] = None,
    encoding: Annotated[
        str, typer.Option(help="Encoding of the label files: cp949, utf-16, ...; by default UTF-8.")
    ] = "",
    part: Annotated[
        list[str] | None, typer.Option(help="Only this split, list or folder of the corpus; repeatable.")
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=NAME", help=f"What a field is called in the corpus; FIELD: {', '.join(FIELDS)}."),
    ] = None,
    devices_by: Annotated[
        DevicesBy, typer.Option(help="What becomes a device; auto: speakers, else topics, else sessions.")
    ] = "auto",
    local_speakers: Annotated[
        bool, typer.Option("--local-speakers", help="Speakers are numbered anew in each label file (aihub).")
    ] = False,
    splits: Annotated[
        Splits,
        typer.Option(help="Keep the official split, or divide each device; auto: official where every device trains."),
    ] = "auto",
    order: Annotated[
        Literal["spelling-first", "pronunciation-first"] | None,
        typer.Option(help="Which half of (A)/(B) comes first; never guessed."),
    ] = None,
    transcript: Annotated[Transcript, typer.Option(help="Which half becomes the text.")] = "spelling",
    keep_events: Annotated[
        bool, typer.Option("--keep-events", help="Keep marks of noise and hesitation in the text.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Write texts without punctuation and in lower case, as they are scored.")
    ] = False,
    drop_leaking: Annotated[
        bool, typer.Option("--drop-leaking", help="Leave out training utterances whose text a held-out split has.")
    ] = False,
    drop_bad: Annotated[
        bool, typer.Option("--drop-bad", help="Leave out utterances that are broken instead of refusing the corpus.")
    ] = False,
    check_base: Annotated[
        str, typer.Option(metavar="NAME", help="Refuse texts with letters that this base cannot write.")
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for a script instead of text for a person.")
    ] = False,
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
    )
    plan = ImportPlan(
        out=out,
        copy=copy,
        plain=plain,
        devices=devices_by,
        splits=splits,
        drop_leaking=drop_leaking,
        drop_bad=drop_bad,
    )
    rewrite = _rewriting(check_base) if check_base else None
    with progress_bars(as_json) as show:
        summary = import_corpus(form, source, options, plan, rewrite=rewrite, base=check_base, progress=show)
    if as_json:
        print(json.dumps(asdict(summary), ensure_ascii=False))
        return
    console.print(summary_table(summary))
    if summary.manifest:
        console.print(
            f"\nTrain on it with: idiolect run --manifest {summary.manifest}", soft_wrap=True, highlight=False
        )
    else:
        console.print("\nNothing was written; --out DIR writes the manifest.")


def _rewriting(name: str) -> Rewriting:
    """Text to ids and back in base ``name``: by a Whisper's tokenizer, or the vocabulary of a CTC head."""
    from fl.bases.resolve import load_base  # it loads torch

    base: Any = load_base(name)
    writer = getattr(base, "tokenizer", None) or base.vocabulary
    return lambda text: str(writer.decode(writer.encode(text)))


def _print_formats(as_json: bool) -> None:
    if as_json:
        print(json.dumps(_importers(), ensure_ascii=False))
        return
    console.print(formats_table())
