"""The audit as tables: in a terminal, and as the section of a Markdown page between two comments."""

from collections.abc import Iterable, Mapping
from typing import Any

from fl.privacy.audit import inference, linkage
from sim.section import BOLD, ReportTable

START, END = "<!-- audit: made by idiolect audit -->", "<!-- end of audit -->"
SIGNIFICANT = 0.05
Document = Mapping[str, Any]


def finding_text(found: Mapping[str, Any]) -> str:
    """``12.3 (8-17); 44``: the rate in per cent, its interval, and what one in twenty shufflings reaches.

    Bold if fewer than one in twenty shufflings do as well for the attacker.
    """
    value, low, high = (100 * found["rate"][name] for name in ("value", "low", "high"))
    text = f"{value:.1f} ({low:.0f}-{high:.0f}); {100 * found['reached']:.0f}"
    return f"{BOLD}{text}{BOLD}" if found["p"] < SIGNIFICANT else text


def _cells(found: Mapping[str, Any]) -> tuple[str, ...]:
    """One cell for a finding, two for a membership."""
    if "auc" not in found:
        return (finding_text(found),)
    return finding_text(found["auc"]), "-" if found["tpr"] is None else f"{100 * found['tpr']:.1f}"


def tables(document: Document) -> tuple[ReportTable, ...]:
    """What travels, linkage, attributes and membership; tables without rows are left out."""

    def attacks(part: str, title: str, names: Iterable[str], heads: Iterable[str]) -> ReportTable:
        rows = tuple(
            (row["split"] or "-", row["protection"], *(cell for name in names for cell in _cells(row[part][name])))
            for row in document["rows"]
            if row.get(part)
        )
        return ReportTable(title, ("split", "server sees", *heads), rows, names=2)

    linked, kinds, inside = linkage.ATTACKERS, document["conditions"]["attributes"], inference.ATTACKERS
    both = [f"{name}: {what}" for name in inside for what in ("AUC", "TPR at 1 % FPR")]
    made = (
        _travels(document),
        attacks("linkage", "Linkage of two rounds: equal error rate, %", linked, linked),
        attacks("attributes", "Attributes of a person: balanced accuracy, %", kinds, kinds),
        attacks("membership", "Membership of an utterance, %", inside, both),
    )
    return tuple(table for table in made if table.rows)


def _travels(document: Document) -> ReportTable:
    rows = tuple(
        (
            found["split"],
            f"{found['numbers']:,} in {found['tensors']} tensors",
            f"{found['clipping_norm']:.3g}",
            f"{found['noise_to_update']:.0f}",
        )
        for found in document["splits"]
    )
    heads = ("split", "numbers in an update", "clipping norm C", "norm of noise with Z = 1, over C")
    return ReportTable("What a device shares in a round", heads, rows, names=2)


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
