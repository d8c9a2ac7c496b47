"""What a study found: one row for each cell and arm, as JSON that tables and plots are made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fl.core.errors import RunError
from fl.core.files import PUBLIC
from fl.runs.files import write_whole

SCHEMA = 3  # 3: intervals resample people


@dataclass(frozen=True)
class StudyRow:
    """One arm of one cell, over all seeds.

    ``people`` are errors and reference of each person by metric, of ``seed<k>/<device>``: what the intervals resample.
    ``rates`` maps a metric to ``rate``, ``low``, ``high``, ``errors``, ``reference``; ``against_baseline`` and
    ``against_global`` are paired differences of the main metric (:class:`fl.metrics.intervals.PairedDifference` as a dictionary), None
    where there is nothing to pair with. ``failed`` is why there is no result, which in a study of attacks is one. ``machine``
    has ``processor``, ``cores``, ``system`` and ``python``, and ``gpu`` if there was one: rows of one study may come from several machines.
    """

    cell: str
    arm: str
    settings: dict[str, Any]
    seeds: tuple[int, ...]
    metric: str = ""  # the main one of the task
    rates: dict[str, dict[str, Any]] = field(default_factory=dict)
    against_baseline: dict[str, Any] | None = None
    against_global: dict[str, Any] | None = None
    costs: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    people: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    failed: str = ""
    machine: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyResult:
    """All rows of a study at one size, with the conditions of its runs."""

    name: str
    question: str
    size: str
    metric: str
    rows: tuple[StudyRow, ...]
    conditions: dict[str, Any]

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, ensure_ascii=False, indent=1)
        write_whole(path, text + "\n", mode=PUBLIC)

    @classmethod
    def read(cls, path: Path) -> StudyResult:
        """The inverse of :meth:`write`. :class:`RunError` names a file that is none."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            schema = document.pop("schema")
            rows = tuple(StudyRow(**{**row, "seeds": tuple(row["seeds"])}) for row in document.pop("rows"))
            found = cls(rows=rows, **document)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path} holds no rows of a study ({error}): run the study again") from error
        if schema != SCHEMA:
            raise RunError(f"{path} is of schema {schema}, not {SCHEMA}: run the study again")
        return found

    def merged(self, earlier: StudyResult, *, keep: str = "") -> StudyResult:
        """These rows, and of ``earlier`` those of cells that are not among them; of the cell ``keep`` those of ``earlier``.

        ``keep`` is a baseline that was run again only to compare other cells with it: its rows are those of ``earlier``.
        """
        stays = keep in {row.cell for row in earlier.rows}
        own = tuple(row for row in self.rows if not (stays and row.cell == keep))
        cells = {row.cell for row in own}
        versions = {
            name: _either(earlier.conditions["versions"].get(name, version), version)
            for name, version in self.conditions["versions"].items()
        }
        return replace(
            self,
            rows=(*own, *(row for row in earlier.rows if row.cell not in cells)),
            conditions={**self.conditions, "versions": versions},
        )

    def ordered(self, cells: Sequence[str]) -> StudyResult:
        """The rows in the order of ``cells``."""
        place = {name: i for i, name in enumerate(cells)}
        return replace(self, rows=tuple(sorted(self.rows, key=lambda row: place.get(row.cell, len(place)))))


def _either(earlier: str, now: str) -> str:
    return earlier if now in earlier.split(" or ") else f"{earlier} or {now}"
