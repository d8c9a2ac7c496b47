"""``idiolect study enrol``: what held-out speakers gain from 1 to 40 sentences, by method, and ``pairs`` of methods."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from fl.core.errors import ConfigError
from fl.core.files import PUBLIC, write_atomically
from fl.settings.config import RunConfig, make_config
from sim.cli.app import errors, progress_bars
from sim.cli.options import Json, wide_console, with_settings
from sim.section import markdown_tables, print_tables, write_section
from sim.study.enrol.contenders import (
    CONTENDERS,
    FEDERATED,
    HEADLINE,
    NEUTRAL,
    Contender,
    searched,
    searched_federated,
    small,
)
from sim.study.enrol.rows import ROWS, append_rows, read_rows
from sim.study.enrol.table import (
    HELD_OUT,
    PARTICIPANTS,
    conditions,
    headline,
    pair_conditions,
    pair_tables,
    people,
    tables,
)
from sim.study.page import PAGES, STORE, image, page_of

ROOT = Path("runs/studies/enrol")
SEARCH_ROWS, PARTICIPANT_ROWS = "enrol-search.jsonl", "enrol-participants.jsonl"
FEDERATED_ROWS, FEDERATED_SEARCH_ROWS = "enrol-federated.jsonl", "enrol-federated-search.jsonl"
BASELINE_ROWS, METHOD_ROWS, TRAIT_ROWS = "enrol-baselines.jsonl", "enrol-methods.jsonl", "enrol-traits.jsonl"
WRITTEN = {
    ROWS: "enrol",
    PARTICIPANT_ROWS: "participants",
    BASELINE_ROWS: "enrol-baselines",
    METHOD_ROWS: "enrol-methods",
    FEDERATED_ROWS: "federated",
    TRAIT_ROWS: "traits",
}  # the page of each file of rows
OF_PARTICIPANTS = (PARTICIPANT_ROWS, FEDERATED_ROWS)
PARTICIPANT_SIZES = (0, 75)  # of 120, less those for validation and tests
SEEDS, SIZES = (1, 2, 3), (0, 1, 5, 10, 20, 40)
SEARCH_SEEDS, SEARCH_SIZES = (100,), (0, 5, 20)  # people whom no result is about
HEADLINE_START = "<!-- study enrol headline: made by idiolect study enrol -->"
HEADLINE_END = "<!-- end of study enrol headline -->"
START, END = "<!-- study enrol: made by idiolect study enrol -->", "<!-- end of study enrol -->"
FULL: dict[str, object] = {
    "devices": 24,
    "new-people": 12,
    "new-people-sentences": 60,
    "test-share": 0.2,
    "new-people-tests": 100_000,
    "arms": "global",
}
SMOKE: dict[str, object] = {
    "base": "random:whisper-nano",
    "devices": 3,
    "new-people": 3,
    "sentences": 12,
    "new-people-sentences": 12,
    "test-share": 0.3,
    "rounds": 2,
    "local-steps": 2,
    "rank": 2,
}
SMOKE_SIZES = (0, 1, 3)
console = wide_console(200)


def _numbers(text: str, what: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(f"{what} = {text!r}: give whole numbers with commas between")
    return tuple(map(int, parts))


def _chosen(names: str, every: Mapping[str, Contender]) -> dict[str, Contender]:
    """The contenders that are named, with neutral, which all are compared with; all of them for an empty text."""
    wanted = [name.strip() for name in names.split(";") if name.strip()]
    unknown = [name for name in wanted if name not in every]
    if unknown:
        raise ConfigError(f"method {unknown[0]!r} is unknown: known are {'; '.join(every)}")
    return {name: one for name, one in every.items() if not wanted or name in (NEUTRAL, *wanted)}


def write_pages(pages: Path, store: Path) -> list[Path]:
    """Replace the study's section of every page whose rows are stored, with their plot, and the README's headline."""
    from sim.study.enrol.plot import curves_svg  # matplotlib

    written = []
    for file, name in WRITTEN.items():
        if not (rows := read_rows(store / file)):
            continue
        page, shown, who = page_of(name, pages), "", PARTICIPANTS if file in OF_PARTICIPANTS else HELD_OUT
        if len({row.sentences for row in rows}) > 2:
            plot = (store / file).with_suffix(".svg")
            write_atomically(plot, curves_svg(rows).encode(), mode=PUBLIC)
            shown = image(f"MER of {who.lower()} by sentences", plot, page) + "\n"
        write_section(page, START, END, f"{shown}{markdown_tables(tables(rows, who), conditions(rows, who))}")
        readme = page.resolve().parents[2] / "README.md"
        if file == ROWS and readme.is_file():
            told = markdown_tables([headline(rows, HEADLINE)], people(rows, who))
            write_section(readme, HEADLINE_START, HEADLINE_END, told)
        written.append(page)
    return written


@with_settings
def enrol(
    config: RunConfig,
    seeds: Annotated[str, Option(help="Of people and runs; 100 for a search.")] = "1,2,3",
    sizes: Annotated[str, Option(help="Sentences: 0,1,5,10,20,40, for a search 0,5,20.")] = "",
    methods: Annotated[str, Option(help="Names with ';' between; else all.")] = "",
    search: Annotated[bool, Option("--search", help="Search rates, on other people.")] = False,
    participants: Annotated[bool, Option("--participants", help="Those who trained, with 75 sentences.")] = False,
    smoke: Annotated[bool, Option("--smoke", help="A minute: that it runs, not what it finds.")] = False,
    runs: Annotated[Path, Option(help="Where all is kept, and reused.")] = ROOT,
    write: Annotated[Path | None, Option(help=f"Folder of pages, such as {PAGES}.")] = None,
    as_json: Json = False,
    start: Any = FULL,
) -> None:
    """What a person who took no part in training gains from a few sentences: every method of enrolment, tuned alike.

    The shared part is that of the arm global, trained once for each seed. A study that was stopped goes on where it stopped.

    [bold]--write[/bold] replaces the study's sections of the pages in that folder and adds the rows to those of docs/studies.
    """
    from sim.study.enrol.run import EnrolStudy  # torch

    asked = _numbers(sizes, "sizes") or (PARTICIPANT_SIZES if participants else SEARCH_SIZES if search else SIZES)
    chosen = _numbers(seeds, "seeds") or (SEARCH_SEEDS if search else SEEDS)
    known = {**CONTENDERS, **FEDERATED} if participants and methods else CONTENDERS  # whole runs, and not unless named
    if search:
        known = searched_federated() if participants else searched()
    contenders = _chosen(methods, known)
    if smoke:
        if write is not None:
            raise ConfigError("--smoke shows only that the study runs: leave --write out")
        config, asked, chosen, runs = make_config(SMOKE, config), SMOKE_SIZES, chosen[:1], runs / "smoke"
        contenders = {name: small(one) for name, one in contenders.items()}
    if any(one.federated for one in contenders.values()):
        file = FEDERATED_SEARCH_ROWS if search else FEDERATED_ROWS
    else:
        file = SEARCH_ROWS if search else PARTICIPANT_ROWS if participants else ROWS
    path, digests, who = runs / file, set(), PARTICIPANTS if participants else HELD_OUT
    with progress_bars(as_json) as show:
        for seed in chosen:
            study = EnrolStudy(config.changed({"seed": seed}), runs, path, show, participants)
            study.run(contenders, asked)
            digests |= {study.digest(one) for one in contenders.values()}
    rows = [row for row in read_rows(path) if row.digest in digests and row.sentences in (0, *asked)]
    there = {row.sentences for row in rows}
    if few := ", ".join(str(size) for size in asked if size and size not in there):
        errors.print(
            f"no rows with {few} sentences: nobody has as many, or the methods take all that there are", highlight=False
        )
    if write is not None:
        append_rows(STORE / file, rows)
        rows = read_rows(STORE / file)
        write_pages(write, STORE)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], ensure_ascii=False))
    else:
        print_tables(tables(rows, who), conditions(rows, who), console)


def pairs(
    page: Annotated[str, Argument(help="A page of docs/results, such as enrol.")],
    against: Annotated[str, Option(help="The method that all others are compared with.")] = NEUTRAL,
    rows: Annotated[Path, Option(help="The folder of stored rows.")] = STORE,
    as_json: Json = False,
) -> None:
    """Paired differences between one method of enrolment and all others, from stored rows; nothing is run."""
    file = next((file for file, name in WRITTEN.items() if name == page), None)
    if file is None:
        raise ConfigError(f"no rows of a page {page!r}: known are {', '.join(WRITTEN.values())}")
    if not (rows / file).is_file():
        raise ConfigError(f"{rows / file} is not there: give the folder of stored rows, --rows FOLDER")
    found, who = read_rows(rows / file), PARTICIPANTS if file in OF_PARTICIPANTS else HELD_OUT
    methods = dict.fromkeys(row.method for row in found)
    if against not in methods:
        raise ConfigError(f"{rows / file} has no rows of {against!r}: known are {'; '.join(methods)}")
    if methods.keys() == {against}:
        raise ConfigError(f"{rows / file} has rows of {against!r} alone: there is nothing to compare")
    made = pair_tables(found, against)
    if as_json:
        print(json.dumps([asdict(table) for table in made], ensure_ascii=False))
    else:
        print_tables(made, pair_conditions(found, who), console)
