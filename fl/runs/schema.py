"""The files of a run folder: their names, and what one line or document of each holds.

Whoever writes or reads such a file uses the definition here. Values are checked as a dataclass is made: pydantic raises its
``ValidationError``, which :mod:`fl.runs.files` turns into a :class:`~fl.core.errors.RunError` that names file and line.
"""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from fl.metrics import Counts
from fl.metrics.align import Count
from fl.settings.fields import one_of
from fl.settings.names import ARMS

CONFIG_NAME, RESULTS_NAME, COSTS_NAME = "config.toml", "results.jsonl", "costs.json"
PRIVACY_NAME, SUMMARY_NAME, REPORT_NAME = "privacy.json", "summary.json", "report.html"
LEFT_OUT_NAME = "left-out.jsonl"
PROGRESS_NAME = "progress.json"  # how far the run is, for `idiolect status`
PREDICTIONS_NAME = "transcripts.jsonl"  # whatever the task: the format is older than the second one
TOKEN_NAME = "run-token"  # what devices know the run by
CHECKPOINTS, DEVICES = "checkpoints", "devices"  # folders
SHARED_ADAPTER = "shared"  # the folder of the adapter that people who took no part enrol from
SCHEMA: Literal[1] = 1
SPLITS = ("validation", "test")


def _all_four(value: Any) -> Any:
    """Counts that a program makes are 0 where nothing is said; in a file that would hide a number that is missing."""
    missing = [field.name for field in fields(Counts) if isinstance(value, dict) and field.name not in value]
    if missing:
        raise ValueError(f"{' and '.join(missing)} missing")
    return value


ErrorCounts = Annotated[Counts, BeforeValidator(_all_four)]
ArmName = Annotated[str, one_of(*ARMS)]
Pairs = tuple[tuple[str, str], ...]
Facts = dict[str, str | int | float]
STRICT = ConfigDict(strict=True, allow_inf_nan=False, revalidate_instances="always")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ResultRow:
    """A line of ``results.jsonl``: one round of one arm on one device.

    ``metrics`` maps a metric's name to its counts over ``split``, empty where nothing was evaluated. ``steps`` and what
    belongs to them are 0 where nothing was trained.
    """

    schema: Literal[1] = SCHEMA
    arm: ArmName
    round: Count
    device: str
    new_person: bool
    split: Annotated[str, one_of(*SPLITS)]
    metrics: dict[str, ErrorCounts]
    train_loss: float | None
    examples: Count
    steps: Count
    bytes_up: Count
    bytes_down: Count
    seconds_train: float
    seconds_evaluate: float

    @property
    def key(self) -> tuple[str, int, str, str]:
        """What no two rows of a file have in common."""
        return self.arm, self.round, self.split, self.device


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PredictionRow:
    """A line of ``transcripts.jsonl``: what the final model of one arm predicted for one test example of one device.

    ``audio`` and ``seconds_audio`` are there where the example is an utterance, ``start`` where it begins at that second of a
    longer file. ``spans`` are (word, language), ``loanwords`` (spelling, other spelling); ``image`` is 8 x 8 pixels, a
    hexadecimal digit of ink for each, row by row.
    """

    schema: Literal[1] = SCHEMA
    arm: ArmName
    device: str
    new_person: bool
    utterance: str
    reference: str
    hypothesis: str
    audio: Path | None = None
    start: float | None = None
    seconds_audio: float = 0.0
    spans: Pairs = ()
    loanwords: Pairs = ()
    level: str | None = None
    image: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""

    def __post_init__(self) -> None:
        if self.audio is not None and self.seconds_audio <= 0:
            raise ValueError("a recording needs its length in 'seconds_audio'")

    @property
    def key(self) -> tuple[str, str, str]:
        """What no two rows of a file have in common."""
        return self.arm, self.device, self.utterance


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LeftOutRow:
    """A line of ``left-out.jsonl``: an example that a run makes nothing of, where it stands (``file:line``), and why."""

    schema: Literal[1] = SCHEMA
    device: str
    example: str
    where: str
    reason: str

    @property
    def key(self) -> tuple[str, str]:
        """What no two rows of a file have in common."""
        return self.device, self.example

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ArmSizes:
    """What one device trains in an arm, and the bytes of it that travel."""

    parameters: Count
    bytes: Count = 0
    shared_bytes: Count = 0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Costs:
    """``costs.json``, the last file of a run: sizes, ``seconds`` by arm, and the settings that are needed to read them."""

    schema: Literal[1] = SCHEMA
    base: str
    base_fingerprint: str = ""
    base_bytes: Count
    base_parameters: Count
    method: str = ""
    adapter_bytes: Count
    adapter_parameters: Count
    shared_bytes: Count
    private_bytes: Count
    arms: dict[str, ArmSizes] = Field(default_factory=dict)
    bytes_up_per_device_round: Count
    bytes_down_per_device_round: Count
    seconds: dict[str, float]
    rounds: Count
    local_steps: Count
    batch_size: Count
    devices: Count
    new_people: Count = 0
    seed: Count
    machine: Facts
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PrivacyRecord:
    """``privacy.json`` of a run with noise or secure sums: ``statement`` says all of it in words.

    The fields from ``epsilon`` on are there where noise was added.
    """

    schema: Literal[1] = SCHEMA
    dp: str
    secure_sum: str
    aggregation: str
    population: Count
    devices_in_round: Count
    clipping: str
    update_norm: float
    simulated: bool
    statement: str
    assumptions: tuple[str, ...]
    epsilon: float | None = None
    delta: float | None = None
    epsilon_budget: float | None = None
    noise_multiplier: float | None = None
    rounds_paid: Count | None = None
    rounds_planned: Count | None = None
    sampling: str | None = None
    relation: str | None = None
    accountant: str | None = None
