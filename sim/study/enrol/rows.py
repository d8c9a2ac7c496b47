"""What the study keeps: a row for each seed, person, method and number of sentences, one JSON object a line, only appended to."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fl.core.errors import RunError
from fl.core.files import PUBLIC, write_atomically

ROWS = "enrol.jsonl"  # a report reads it where it lies in a run folder
METRICS = ("mer", "mer_folded", "wer", "cer")
PROCEDURE = "mean of folds"  # part of a digest: another word when the same settings come to other numbers


@dataclass(frozen=True)
class EnrolRow:
    """One person after an enrolment. ``counts`` are errors and reference tokens on the test sentences, by metric.

    ``digest`` is of all settings that decide the numbers: a row with another one is of another experiment. ``numbers`` and ``bytes`` are
    the person's private part, at two bytes a number. ``seconds`` are 0
    where other programs had the processor too. ``losses`` are in nats a label on left-out sentences, by steps. ``traits`` are what
    the population says of the person. ``couple`` is the same for two people who share a voice, empty for one who does not.
    """

    seed: int
    person: str
    method: str
    sentences: int
    digest: str
    counts: Mapping[str, tuple[int, int]]
    steps: int = 0
    losses: Mapping[int, float] = field(default_factory=dict)
    numbers: int = 0
    bytes: int = 0
    seconds: float = 0.0
    traits: Mapping[str, Any] = field(default_factory=dict)
    machine: str = ""
    couple: str = ""

    @property
    def key(self) -> tuple[int, str, str, int]:
        """Of the rows with the same one the last counts."""
        return self.seed, self.person, self.method, self.sentences


_ROW = TypeAdapter(EnrolRow)


def read_rows(path: Path) -> list[EnrolRow]:
    """The rows of a file, of those with the same key the last; none where there is no file. :class:`RunError` names a bad line."""
    found: dict[tuple[int, str, str, int], EnrolRow] = {}
    data = path.read_bytes() if path.exists() else b""
    for number, line in enumerate(
        data.split(b"\n")[:-1], 1
    ):  # behind the last end is what a process left that ended as it wrote
        try:
            row = _ROW.validate_json(line)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise RunError(f"{path}:{number} is no row of the study: {reason}; delete the line") from error
        found[row.key] = row
    return list(found.values())


def append_rows(path: Path, rows: Iterable[EnrolRow]) -> None:
    """Write ``rows`` behind those that are there, in the place of half a row."""
    there = path.read_bytes() if path.exists() else b""
    lines = [json.dumps(asdict(row), ensure_ascii=False).encode() + b"\n" for row in rows]
    write_atomically(path, b"".join([there[: there.rfind(b"\n") + 1], *lines]), mode=PUBLIC)


def rows_of(rows: Iterable[EnrolRow], method: str, sentences: int) -> list[EnrolRow]:
    """The rows of one method and number of sentences, sorted by seed and person."""
    return sorted((r for r in rows if (r.method, r.sentences) == (method, sentences)), key=lambda r: (r.seed, r.person))


def pooled(rows: Sequence[EnrolRow], metric: str) -> tuple[list[int], list[int]]:
    """Errors and reference tokens of each unit that chance draws: a person, or two who share a voice; in the order of the units."""
    found: dict[tuple[int, str], tuple[int, int]] = {}
    for row in rows:
        unit, (errors, reference) = (row.seed, row.couple or row.person), row.counts[metric]
        before = found.get(unit, (0, 0))
        found[unit] = before[0] + errors, before[1] + reference
    units = [found[unit] for unit in sorted(found)]
    return [errors for errors, _ in units], [reference for _, reference in units]
