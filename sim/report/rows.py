"""Typed reading of what a run leaves on disk: results.jsonl, transcripts.jsonl and costs.json.

Knows the formats, not what they mean: no rate is formed here. Every size is bounded before anything is allocated,
and every fault is a :class:`~fl.core.errors.RunError` that starts with ``file:line:``.
"""

import json
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from fl.core.errors import RunError
from fl.metrics import Counts
from fl.settings.names import SPEECH

SCHEMA = 1
MAX_FILE_BYTES = 1 << 30
MAX_WHOLE_BYTES = 1 << 24  # costs.json and config.toml, which are read in one piece
MAX_LINE_BYTES = 1 << 20
MAX_COUNT = 1 << 40  # no count in a row (errors, bytes, steps) is near a tera
ARMS = ("zero-shot", "local", "global", "global+finetune", "personalized", "neutral", "centralized")
SPLITS = ("validation", "test")
COUNT_FIELDS = ("substitutions", "deletions", "insertions", "reference")

Row = TypeVar("Row")


@dataclass(frozen=True)
class ResultRow:
    """One round of one arm on one device. ``metrics`` maps a metric's name to its counts over ``split``."""

    arm: str
    round: int
    device: str
    new_person: bool
    split: str
    metrics: Mapping[str, Counts]
    train_loss: float | None
    examples: int
    steps: int
    bytes_up: int
    bytes_down: int
    seconds_train: float
    seconds_evaluate: float


@dataclass(frozen=True)
class TranscriptRow:
    """What the final model of one arm made of one test example of one device; ``audio`` where it is an utterance."""

    arm: str
    device: str
    new_person: bool
    utterance: str
    audio: Path | None
    reference: str
    hypothesis: str
    spans: tuple[tuple[str, str], ...]
    loanwords: tuple[tuple[str, str], ...]
    level: str | None
    seconds_audio: float
    start: float | None = None  # seconds from which the file has it; None if it is the whole file
    image: str = ""  # of an 8 x 8 image: a hexadecimal digit of ink for each pixel, row by row


@dataclass(frozen=True)
class RunFiles:
    """Everything the report needs of one run. ``costs`` is costs.json as it stands, its known fields checked."""

    folder: Path
    config: Mapping[str, Any]
    results: tuple[ResultRow, ...]
    transcripts: tuple[TranscriptRow, ...]
    costs: Mapping[str, Any]

    @property
    def task(self) -> str:
        """The name of what was learnt, from config.toml."""
        data = self.config.get("data", {})
        return str(data.get("task", SPEECH)) if isinstance(data, dict) else SPEECH

    @property
    def seed(self) -> int:
        """The run's seed, from costs.json."""
        return int(self.costs["seed"])

    def renamed(self, prefix: str) -> "RunFiles":
        """The same run with every device called ``prefix + name``, so that several runs can lie side by side."""
        return replace(
            self,
            results=tuple(replace(row, device=prefix + row.device) for row in self.results),
            transcripts=tuple(replace(row, device=prefix + row.device) for row in self.transcripts),
        )


class _Fields:
    """A JSON object whose values are taken out by name and type; every complaint names ``where``."""

    def __init__(self, value: object, where: str) -> None:
        self.where = where
        if not isinstance(value, dict):
            self.fail(f"expected a JSON object, found {type(value).__name__}")
        self.values: dict[str, Any] = value

    def fail(self, message: str) -> NoReturn:
        raise RunError(f"{self.where}: {message}")

    def _get(self, name: str) -> Any:
        if name not in self.values:
            self.fail(f"field {name!r} is missing")
        return self.values[name]

    def text(self, name: str, allowed: Sequence[str] | None = None) -> str:
        value = self._get(name)
        if not isinstance(value, str):
            self.fail(f"field {name!r} must be text, found {value!r}")
        if allowed is not None and value not in allowed:
            self.fail(f"field {name!r} is {value!r}; known: {', '.join(allowed)}")
        return value

    def text_or_none(self, name: str) -> str | None:
        return None if self.values.get(name) is None else self.text(name)

    def flag(self, name: str) -> bool:
        value = self._get(name)
        if not isinstance(value, bool):
            self.fail(f"field {name!r} must be true or false, found {value!r}")
        return value

    def count(self, name: str) -> int:
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
            self.fail(f"field {name!r} must be a whole number of at least 0, found {value!r}")
        return value

    def number(self, name: str) -> float:
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.fail(f"field {name!r} must be a finite number, found {value!r}")
        return float(value)

    def number_or_none(self, name: str) -> float | None:
        return None if self.values.get(name) is None else self.number(name)

    def pairs(self, name: str) -> tuple[tuple[str, str], ...]:
        value = self.values.get(name, [])
        if not isinstance(value, list):
            self.fail(f"field {name!r} must be a list of pairs, found {value!r}")
        for pair in value:
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
                self.fail(f"field {name!r} must hold pairs of texts, found {pair!r}")
        return tuple((first, second) for first, second in value)

    def mapping(self, name: str) -> "_Fields":
        return _Fields(self._get(name), f"{self.where}: field {name!r}")

    def schema(self) -> None:
        found = self.values.get("schema")
        if found != SCHEMA:
            self.fail(f"schema {found!r} is not {SCHEMA}; report it with the version of Idiolect that wrote it")


def read_run(folder: Path) -> RunFiles:
    """The files of one finished run. :class:`RunError` names the file, the line and what is missing."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such run folder; make one with `idiolect run` or `idiolect demo`")
    transcripts = read_transcripts(folder / "transcripts.jsonl")
    if not transcripts:
        if (folder / "costs.json").exists():  # the last file of a run
            raise RunError(
                f"{folder}: there are no sentences to report on, because what deployed devices transcribe stays with them, and a "
                "no-op run transcribes nothing; the counts of each device are in results.jsonl, and the log of a deployed run "
                "ends with the rates of all"
            )
        raise RunError(f"{folder / 'transcripts.jsonl'}:1: no transcripts; the run did not reach its final evaluation")
    return RunFiles(
        folder,
        _read_config(folder),
        read_results(folder / "results.jsonl"),
        transcripts,
        read_costs(folder / "costs.json"),
    )


def read_results(path: Path) -> tuple[ResultRow, ...]:
    """The rows of results.jsonl in file order; a second row for the same round, arm, device and split is refused."""
    return _read_rows(path, _result_row, lambda row: (row.arm, row.round, row.device, row.split))


def read_transcripts(path: Path) -> tuple[TranscriptRow, ...]:
    """The rows of transcripts.jsonl in file order; a second row for the same arm, device and utterance is refused."""
    return _read_rows(path, _transcript_row, lambda row: (row.arm, row.device, row.utterance))


def read_costs(path: Path) -> dict[str, Any]:
    """costs.json, checked: sizes in bytes, ``seconds`` per arm, settings, ``machine`` and ``versions``."""
    text = _read_text(path)
    try:
        fields = _Fields(_parse(text, f"{path}:1"), f"{path}:1")
    except json.JSONDecodeError as error:
        raise RunError(f"{path}:{error.lineno}: not JSON ({error.msg}); run the experiment again") from None
    fields.text("base")
    for name in (
        "base_bytes",
        "base_parameters",
        "adapter_bytes",
        "adapter_parameters",
        "shared_bytes",
        "private_bytes",
    ):
        fields.count(name)
    for name in ("bytes_up_per_device_round", "bytes_down_per_device_round"):
        fields.number(name)
    for name in ("rounds", "local_steps", "batch_size", "devices", "seed"):
        fields.count(name)
    seconds = fields.mapping("seconds")
    for arm in seconds.values:
        seconds.number(arm)
    fields.mapping("machine")
    fields.mapping("versions")
    return fields.values


def _result_row(fields: _Fields) -> ResultRow:
    metrics = fields.mapping("metrics")
    return ResultRow(
        arm=fields.text("arm", ARMS),
        round=fields.count("round"),
        device=fields.text("device"),
        new_person=fields.flag("new_person"),
        split=fields.text("split", SPLITS),
        metrics={name: _counts(metrics.mapping(name)) for name in metrics.values},
        train_loss=fields.number_or_none("train_loss"),
        examples=fields.count("examples"),
        steps=fields.count("steps"),
        bytes_up=fields.count("bytes_up"),
        bytes_down=fields.count("bytes_down"),
        seconds_train=fields.number("seconds_train"),
        seconds_evaluate=fields.number("seconds_evaluate"),
    )


def _transcript_row(fields: _Fields) -> TranscriptRow:
    audio = fields.text_or_none("audio")
    return TranscriptRow(
        arm=fields.text("arm", ARMS),
        device=fields.text("device"),
        new_person=fields.flag("new_person"),
        utterance=fields.text("utterance"),
        audio=Path(audio) if audio is not None else None,
        reference=fields.text("reference"),
        hypothesis=fields.text("hypothesis"),
        spans=fields.pairs("spans"),
        loanwords=fields.pairs("loanwords"),
        level=fields.text_or_none("level"),
        start=fields.number_or_none("start"),
        image=fields.text_or_none("image") or "",
        seconds_audio=0.0 if audio is None else fields.number("seconds_audio"),
    )


def _counts(fields: _Fields) -> Counts:
    substitutions, deletions, insertions, reference = (fields.count(name) for name in COUNT_FIELDS)
    return Counts(substitutions, deletions, insertions, reference)


def _read_rows(path: Path, build: Callable[[_Fields], Row], key: Callable[[Row], object]) -> tuple[Row, ...]:
    rows: list[Row] = []
    seen: dict[object, int] = {}
    for number, line in _lines(path):
        where = f"{path}:{number}"
        try:
            value = _parse(line, where)
        except json.JSONDecodeError as error:
            raise RunError(f"{where}: not JSON ({error.msg}); a run that was killed here can be resumed") from None
        fields = _Fields(value, where)
        fields.schema()
        row = build(fields)
        first = seen.setdefault(key(row), number)
        if first != number:
            fields.fail(f"repeats line {first}: {key(row)}")
        rows.append(row)
    return tuple(rows)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Non-empty lines with their numbers, none longer than ``MAX_LINE_BYTES``."""
    _check_size(path)
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise RunError(f"{path}:{number}: line longer than {MAX_LINE_BYTES} bytes; this is not a results file")
            if line.strip():
                yield number, _decode(line, f"{path}:{number}")


def _parse(text: str, where: str) -> object:
    def refuse(constant: str) -> NoReturn:
        raise RunError(f"{where}: {constant} is not a number that JSON or a report can hold")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise RunError(f"{where}: nested too deeply to be a row of a run") from None


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RunError(f"{where}: not UTF-8 at byte {error.start}; the file is damaged") from None


def _check_size(path: Path, limit: int = MAX_FILE_BYTES) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise RunError(f"{path}:1: cannot be read ({error.strerror}); the run is unfinished, resume it") from None
    if size > limit:
        raise RunError(f"{path}:1: {size} bytes, more than the {limit} that a report reads")


def _read_text(path: Path) -> str:
    _check_size(path, MAX_WHOLE_BYTES)
    return _decode(path.read_bytes(), f"{path}:1")


def _read_config(folder: Path) -> dict[str, Any]:
    """config.toml where there is one: shown on the page, never interpreted."""
    path = folder / "config.toml"
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(_read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise RunError(f"{path}:1: not TOML ({error})") from None
