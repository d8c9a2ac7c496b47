"""The audit as tables: in a terminal, and as the section of a Markdown page between two comments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fl.privacy.audit import linkage as audit_linkage
from fl.privacy.audit import membership as audit_membership
from sim.section import write_section

START, END = "<!-- audit: made by idiolect audit -->", "<!-- end of audit -->"
SIGNIFICANT = 0.05
Row = Mapping[str, Any]
Document = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A figure as text; ``leaks`` if fewer than one in twenty shufflings do as well for the attacker."""

    text: str
    leaks: bool = False


@dataclass(frozen=True)
class Lines:
    """One table: its title, the heads of its columns and its rows."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def finding_cell(found: Mapping[str, Any]) -> Cell:
    """``12.3 (8-17); 44``: the rate in per cent, its interval, and what one in twenty shufflings reaches."""
    rate = found["rate"]
    text = f"{100 * rate['value']:.1f} ({100 * rate['low']:.0f}-{100 * rate['high']:.0f}); {100 * found['reached']:.0f}"
    return Cell(text, found["p"] < SIGNIFICANT)


def tables(document: Document) -> tuple[Lines, ...]:
    """What travels, linkage, attributes and membership; tables without rows are left out."""
    made = (_travels(document), _linkage(document), _attributes(document), _membership(document))
    return tuple(lines for lines in made if lines.rows)


def _travels(document: Document) -> Lines:
    rows = tuple(
        tuple(
            Cell(text)
            for text in (
                found["split"],
                f"{found['numbers']:,} in {found['tensors']} tensors",
                f"{found['clipping_norm']:.3g}",
                f"{found['noise_to_update']:.0f}",
            )
        )
        for found in document["splits"]
    )
    heads = ("split", "numbers in an update", "clipping norm C", "norm of noise with Z = 1, over C")
    return Lines("What a device shares in a round", heads, rows)


def _with(document: Document, part: str) -> list[Row]:
    return [row for row in document["rows"] if row.get(part)]


def _begin(row: Row) -> tuple[Cell, Cell]:
    return Cell(row["split"] or "-"), Cell(row["protection"])


def _linkage(document: Document) -> Lines:
    names = tuple(audit_linkage.ATTACKERS)
    rows = tuple(
        (*_begin(row), *(finding_cell(row["linkage"][name]) for name in names)) for row in _with(document, "linkage")
    )
    return Lines("Linkage of two rounds: equal error rate, %", ("split", "server sees", *names), rows)


def _attributes(document: Document) -> Lines:
    names = tuple(document["conditions"]["attributes"])
    rows = tuple(
        (*_begin(row), *(finding_cell(row["attributes"][name]) for name in names))
        for row in _with(document, "attributes")
    )
    return Lines("Attributes of a person: balanced accuracy, %", ("split", "server sees", *names), rows)


def _membership(document: Document) -> Lines:
    names = audit_membership.ATTACKERS
    heads = [f"{name}: {what}" for name in names for what in ("AUC", "TPR at 1 % FPR")]
    rows = []
    for row in _with(document, "membership"):
        cells = []
        for name in names:
            found = row["membership"][name]
            rate = found["tpr"]
            cells += [finding_cell(found["auc"]), Cell("-" if rate is None else f"{100 * rate:.1f}")]
        rows.append((*_begin(row), *cells))
    return Lines("Membership of an utterance, %", ("split", "server sees", *heads), tuple(rows))


def conditions_text(document: Document) -> str:
    """With what it was measured."""
    found = document["conditions"]
    machine, versions = found["machine"], ", ".join(f"{name} {text}" for name, text in found["versions"].items())
    agree = ", ".join(
        f"{name.replace('=', ' and ')} {100 * share:.0f} %" for name, share in found["agreements"].items()
    )
    left_out = "".join(f" Not inferred: {name} ({why})." for name, why in found["attributes_left_out"].items())
    return (
        f"Base {found['base']}, gate {found['gate']}, rank {found['rank']} at {found['sites']}; {found['people']} people of "
        f"{found['data']} (seed {found['data_seed']}), {found['rounds']} rounds with shared updates of {found['local_steps']} steps of "
        f"{found['batch_size']}, learning rate {found['learning_rate']:g}, seed {found['seed']}. Membership: {found['members']} "
        f"utterances that were trained on, {found['non_members']} that were not. "
        f"{f'People in whom two attributes agree: {agree}.' if agree else ''}{left_out} "
        f"Intervals: {100 * found['confidence']:.0f} %, {found['bootstrap']:,} resamples of people; "
        f"{found['permutations']} shufflings. A figure is followed by its interval and by what one in twenty shufflings "
        f"reaches where there is nothing to find; bold: p < {SIGNIFICANT:g}, which one in twenty is by chance. "
        f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}; {versions}."
    )


def print_audit(document: Document, console: Console) -> None:
    """Print the audit for a person."""
    for lines in tables(document):
        table = Table(title=lines.title, title_justify="left", title_style="bold")
        for number, head in enumerate(lines.heads):
            table.add_column(head, justify="left" if number < 2 else "right", overflow="fold")
        before = ""
        for row in lines.rows:
            if before and row[0].text != before:
                table.add_section()
            before = row[0].text
            table.add_row(*(f"[bold]{cell.text}[/bold]" if cell.leaks else cell.text for cell in row))
        console.print(table)
    console.print(conditions_text(document), highlight=False, markup=False)


def _marked(row: Sequence[Cell]) -> str:
    return f"| {' | '.join(f'**{cell.text}**' if cell.leaks else cell.text for cell in row)} |"


def markdown(document: Document) -> str:
    """The audit as a section of a page."""
    out = []
    for lines in tables(document):
        out += [
            f"{lines.title}:",
            "",
            f"| {' | '.join(lines.heads)} |",
            f"| {' | '.join('---' for _ in lines.heads)} |",
        ]
        out += [*(_marked(row) for row in lines.rows), ""]
    return "\n".join([*out, conditions_text(document)]) + "\n"


def write_audit(document: Document, page: Path) -> None:
    """Replace what stands between the two comments of ``page``."""
    write_section(page, START, END, markdown(document))
