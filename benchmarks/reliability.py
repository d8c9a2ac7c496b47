"""The table of ``docs/reliability.md``: what was injected, how often, what survived and what was lost, from stored rows.

    python -m benchmarks.reliability            # write the page's table again from benchmarks/reliability/*.json

A command that injects faults (``make faults``, ``make deploy-test``, ``make soak``, ``make fuzz``) stores its row with
:func:`store`; nothing here runs one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks._report import machine
from sim.section import markdown_table, write_section

FOLDER = Path(__file__).parent / "reliability"
PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"
START, END = "<!-- reliability: made by python -m benchmarks.reliability -->", "<!-- end of reliability -->"
HEADINGS = ("what was injected", "how often", "survived", "lost", "seeds", "command")


@dataclass(frozen=True)
class InjectionRow:
    """One kind of fault. ``lost`` counts states, rows or requests that were lost or silently wrong: the target is 0.

    ``detail`` says what was compared with what, in a sentence that stands under the table.
    """

    name: str
    injected: str
    times: int
    survived: int
    lost: int
    seeds: tuple[int, ...]
    command: str
    detail: str

    @property
    def cells(self) -> tuple[str, ...]:
        """In the order of :data:`HEADINGS`."""
        seeds = ", ".join(map(str, self.seeds)) or "none"
        return (self.injected, f"{self.times:,}", f"{self.survived:,}", f"{self.lost:,}", seeds, f"`{self.command}`")


def store(row: InjectionRow, folder: Path = FOLDER) -> Path:
    """Write ``row`` with this machine, its versions and the time to ``<folder>/<name>.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row.name}.json"
    conditions = {"machine": machine(), "measured": datetime.now(UTC).isoformat(timespec="minutes")}
    path.write_text(json.dumps({**asdict(row), **conditions}, indent=2) + "\n", encoding="utf-8")
    return path


def read_rows(folder: Path = FOLDER) -> list[tuple[InjectionRow, dict[str, Any]]]:
    """Each stored row, and what it was measured on."""
    found = []
    for path in sorted(folder.glob("*.json")):
        values = json.loads(path.read_text(encoding="utf-8"))
        row = {field.name: values.pop(field.name) for field in fields(InjectionRow)}
        found.append((InjectionRow(**{**row, "seeds": tuple(row["seeds"])}), values))
    return found


def section(rows: Iterable[tuple[InjectionRow, dict[str, Any]]]) -> str:
    """The table, and under it what was compared and where each row was measured."""
    rows = list(rows)
    lines = [markdown_table(HEADINGS, (row.cells for row, _ in rows))]
    for row, conditions in rows:
        found = conditions["machine"]
        where = (
            f"{found['processor']}, {found['cores']} cores, Python {found['python']}, flwr {found['versions']['flwr']}"
        )
        lines.append(f"- **{row.injected}**: {row.detail} ({where}, {conditions['measured']})")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_section(PAGE, START, END, section(read_rows()))
