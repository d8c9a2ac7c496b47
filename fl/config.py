"""The settings of a run: one tree of frozen dataclasses, read from a TOML file, from Flower's run-config or from options.

Field names are unique across the sections, so a setting has one name everywhere: ``local_steps`` under ``[train]`` in
``config.toml``, ``local-steps`` in ``flwr run --run-config`` and ``--local-steps`` on the command line. An unknown key, a
wrong type and a value out of range raise :class:`fl.errors.ConfigError` with the key, the value and what is allowed.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import tomli_w

from fl.errors import ConfigError

Value = bool | int | float | str
ARMS = ("zero-shot", "local", "global", "global+finetune", "personalized", "neutral", "centralized")
GATES = ("none", "hidden", "low-rank", "self", "cross")
SITES = ("encoder.self", "decoder.self", "decoder.cross", "ffn")
SPLITS = ("gates", "fedsa", "ffa", "all-shared", "all-private")
SPEECH, NO_OP = "speech", "no-op"  # the names of tasks
DEVICE, EDGE = "device", "edge"  # where the devices' updates are put together
STRATEGIES = (  # the rows of strategies.registry
    "fedavg",
    "fednova",
    "ffa",
    "fedsa",
    "rolora",
    "flexlora",
    "hetlora",
    "fedex",
    "flora",
    "median",
    "trimmed-mean",
    "krum",
    "multi-krum",
    "bulyan",
    "norm-bound",
    "geometric-median",
)
SERVER_OPTIMIZERS = ("none", "fedavgm", "fedadagrad", "fedyogi", "fedadam")
LAYERS_PREFIX = "layers:"  # and a regular expression over tensor names
MAX_RANK = 1024


def setting(
    default: Value,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    many: tuple[str, ...] = (),
) -> Any:
    """A documented field: ``low`` and ``high`` bound a number, ``choices`` a word, ``many`` each of several words with commas between."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices, "many": many})


@dataclass(frozen=True)
class BaseConfig:
    """The frozen model and how speech enters it."""

    base: str = setting(
        "whisper-base",
        "name of the base: a directory, a Hub name, whisper-base, whisper-tiny.en, random:<architecture>",
    )
    compute: str = setting(
        "auto", "where it computes; auto takes a GPU if there is one", choices=("auto", "cpu", "cuda")
    )
    window: str = setting(
        "trimmed", "audio at its own length plus a margin, or zero-padded to 30 s", choices=("trimmed", "full")
    )
    language: str = setting(
        "", "language token for training and decoding, e.g. ko; empty takes the matrix language of the data"
    )


@dataclass(frozen=True)
class AdapterConfig:
    """The Gated LoRA adapter and which part of it is shared."""

    rank: int = setting(8, "rank of A and B", low=1, high=MAX_RANK)
    alpha: float = setting(16.0, "the update is scaled by alpha / rank", low=1e-6)
    gate: str = setting("self", "what gates the low-rank path", choices=GATES)
    sites: str = setting("encoder.self,decoder.self,decoder.cross", "where adapters sit", many=SITES)
    split: str = setting("gates", "gates, fedsa, ffa, all-shared, all-private or layers:<pattern>")


@dataclass(frozen=True)
class DataConfig:
    """What is learnt, and whose speech: a manifest, or a synthetic population made on the spot."""

    task: str = setting(
        SPEECH,
        "what is learnt; no-op trains nothing and measures the framework around training",
        choices=(SPEECH, NO_OP),
    )
    manifest: str = setting("", "absolute path of a manifest.jsonl; empty makes a synthetic population")
    pair: str = setting("ko-en", "language pair of the synthetic population")
    devices: int = setting(6, "devices that take part", low=1, high=1_000_000)
    new_people: int = setting(2, "further people who never take part in training", low=0, high=1_000_000)
    sentences: int = setting(120, "synthetic sentences of each person", low=1, high=100_000)
    validation_share: float = setting(0.1, "share of a device's utterances for validation", low=0.0, high=0.9)
    test_share: float = setting(0.15, "share of a device's utterances for testing", low=0.0, high=0.9)
    new_people_tests: int = setting(12, "sentences on which each new person is tested, at most", low=1, high=100_000)
    data_seed: int = setting(0, "seed of the population and of its division; 0 takes the run's seed", low=0)


@dataclass(frozen=True)
class TrainConfig:
    """Rounds and local steps; shared (A, B) and private (gates) parameters have their own schedules."""

    rounds: int = setting(12, "federated rounds", low=1, high=100_000)
    local_steps: int = setting(12, "optimizer steps of a device in a round", low=1, high=100_000)
    batch_size: int = setting(2, "utterances in a local step", low=1, high=4096)
    learning_rate: float = setting(4e-3, "learning rate of shared tensors", low=0.0, high=1.0)
    private_learning_rate: float = setting(3e-3, "learning rate of private gates", low=0.0, high=10.0)
    private_share: float = setting(
        0.15,
        "share of all local steps, the last ones, that train the private part alone while the shared part rests",
        low=0.0,
        high=1.0,
    )
    gate_dropout: float = setting(
        1.0,
        "share of the steps before those that run with neutral gates and train the shared part only",
        low=0.0,
        high=1.0,
    )
    private_steps: int = setting(0, "extra steps for the private part alone at the end of a round", low=0, high=100_000)
    private_warmup_rounds: int = setting(
        0, "first rounds in which only the shared part is trained, whatever the gate dropout", low=0, high=100_000
    )
    weight_decay: float = setting(0.0, "decoupled weight decay of shared tensors", low=0.0, high=1.0)
    clipping_norm: float = setting(
        1.0, "largest gradient norm of a step, for shared and for private tensors each", low=1e-9
    )
    schedule: str = setting("cosine", "learning rate over the rounds", choices=("constant", "linear", "cosine"))
    proximal: float = setting(
        0.0, "FedProx: how strongly shared tensors are held at the values that the round began with", low=0.0
    )
    finetune_steps: int = setting(
        12, "local steps after the last round in the arm global+finetune", low=1, high=100_000
    )
    cohort: int = setting(1, "devices that a node trains in one computation", low=1, high=100_000)

    @property
    def private_rounds(self) -> int:
        """As how many rounds the private part is trained alone; the first round never is one of them."""
        if not self.private_share:
            return 0
        return min(max(1, round(self.private_share * self.rounds)), self.rounds - 1)

    @property
    def neutral_rounds(self) -> int:
        """The first rounds in which all gates are neutral: an arm with gates does in them what one without does."""
        before = self.rounds - self.private_rounds
        return before if self.gate_dropout == 1 and not self.private_steps else min(self.private_warmup_rounds, before)


@dataclass(frozen=True)
class FederationConfig:
    """Arms, sampling and what is evaluated when."""

    arms: str = setting(",".join(ARMS), "what to train and compare", many=ARMS)
    sample: float = setting(
        1.0,
        "devices that train in a round: up to 1 a share of them, above 1 their number",
        low=1e-9,
        high=1_000_000,
    )
    aggregation: str = setting(
        DEVICE,
        "whether a node returns each device's update, or one weighted sum over its devices",
        choices=(DEVICE, EDGE),
    )
    strategy: str = setting("fedavg", "how the devices' updates become one; see docs/strategies.md", choices=STRATEGIES)
    server_optimizer: str = setting(
        "none", "what takes the step towards what the strategy gives", choices=SERVER_OPTIMIZERS
    )
    server_learning_rate: float = setting(
        0.0, "learning rate of the server optimizer; 0 takes 1 for fedavgm and 0.01 for the others", low=0.0, high=100.0
    )
    server_momentum: float = setting(0.9, "momentum of the server optimizer", low=0.0, high=0.9999)
    trim_share: float = setting(
        0.2, "trimmed-mean: share of the devices whose values are left out at each end", low=0.0, high=0.49
    )
    hostile_share: float = setting(
        0.2, "krum, multi-krum, bulyan: share of the devices that may be hostile", low=0.0, high=0.49
    )
    norm_bound: float = setting(
        0.0, "norm-bound: largest norm of a device's update; 0 takes the median of the round's norms", low=0.0
    )
    evaluate_every: int = setting(4, "rounds between evaluations on validation data; 0 for never", low=0, high=100_000)
    final_split: str = setting(
        "test",
        "data of the final comparison; validation while settings are being chosen",
        choices=("test", "validation"),
    )
    beams: int = setting(1, "beam width of decoding", low=1, high=16)
    round_timeout: float = setting(3600.0, "seconds to wait for the devices of a round", low=1.0)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the numbers of a run, and where they go."""

    base: BaseConfig = field(default_factory=BaseConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    seed: int = setting(1, "seed of everything", low=0)
    output: str = setting("", "run folder; empty makes one under the cache folder")

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms to compare, in canonical order."""
        wanted = words(self.federation.arms)
        return tuple(arm for arm in ARMS if arm in wanted)

    @property
    def sites(self) -> tuple[str, ...]:
        """Adapter sites."""
        return words(self.adapter.sites)

    @property
    def data_seed(self) -> int:
        """Seed of the population."""
        return self.data.data_seed or self.seed


def words(value: str) -> tuple[str, ...]:
    """The comma-separated words of a setting."""
    return tuple(word.strip() for word in value.split(",") if word.strip())


@dataclass(frozen=True)
class Setting:
    """One setting as a table row: where it lives, its type, its default and its bounds."""

    name: str
    section: str  # empty for a field of RunConfig itself
    type: type
    default: Value
    help: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    many: tuple[str, ...]

    @property
    def key(self) -> str:
        """Name with hyphens, as in Flower's run-config and on the command line."""
        return self.name.replace("_", "-")

    def parse(self, value: object) -> Value:
        """``value`` as this setting's type, within its bounds; :class:`ConfigError` otherwise."""
        parsed = self._typed(value)
        if isinstance(parsed, str):
            self._check_words(parsed)
        elif (self.low is not None and parsed < self.low) or (self.high is not None and parsed > self.high):
            raise ConfigError(f"{self.key} = {value!r} is out of range: {self.allowed}")
        return parsed

    def _typed(self, value: object) -> Value:
        if type(value) is self.type:
            return self._finite(value)  # type: ignore[arg-type]
        whole_as_float = self.type is float and type(value) is int
        if whole_as_float or (isinstance(value, str) and self.type in (int, float)):
            try:
                return self._finite(self.type(value))
            except (ValueError, OverflowError):
                pass
        raise ConfigError(f"{self.key} = {value!r} is a {type(value).__name__}: {self.allowed}")

    def _finite(self, value: Value) -> Value:
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{self.key} = {value!r} is not a finite number: {self.allowed}")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ConfigError(
                f"{self.key} has more than the 64 bits that a message and a TOML file carry: {self.allowed}"
            )
        return value

    def _check_words(self, value: str) -> None:
        if self.choices and value not in self.choices:
            raise ConfigError(f"{self.key} = {value!r} is unknown: {self.allowed}")
        if self.many:
            unknown = [word for word in words(value) if word not in self.many]
            if unknown or not words(value):
                raise ConfigError(
                    f"{self.key} = {value!r} is not allowed ({', '.join(unknown) or 'empty'}): {self.allowed}"
                )

    @property
    def allowed(self) -> str:
        """What this setting takes, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.many:
            return f"one or more of {', '.join(self.many)}, with commas between"
        kind = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[self.type]
        low = "" if self.low is None else f" of at least {self.low:g}"
        high = "" if self.high is None else f"{' and' if low else ' of'} at most {self.high:g}"
        return kind + low + high


def _rows(cls: type, section: str) -> list[Setting]:
    hints = get_type_hints(cls)
    return [
        Setting(f.name, section, hints[f.name], f.default, **f.metadata)  # type: ignore[arg-type]
        for f in fields(cls)
        if f.metadata
    ]


SECTIONS: dict[str, type] = {
    "base": BaseConfig,
    "adapter": AdapterConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "federation": FederationConfig,
}
SETTINGS: dict[str, Setting] = {
    row.name: row for row in (*(r for name, cls in SECTIONS.items() for r in _rows(cls, name)), *_rows(RunConfig, ""))
}


def make_config(values: Mapping[str, object], start: RunConfig | None = None) -> RunConfig:
    """A checked configuration: ``start`` (or the defaults) with ``values`` by flat name, hyphens or underscores."""
    config = start or RunConfig()
    changes: dict[str, dict[str, Value]] = {}
    for key, value in values.items():
        row = SETTINGS.get(key.replace("-", "_"))
        if row is None:
            near = difflib.get_close_matches(key.replace("-", "_"), SETTINGS, n=1)
            hint = f"did you mean {SETTINGS[near[0]].key!r}? " if near else ""
            raise ConfigError(
                f"unknown setting {key!r}: {hint}known settings are {', '.join(r.key for r in SETTINGS.values())}"
            )
        changes.setdefault(row.section, {})[row.name] = row.parse(value)
    top: dict[str, Any] = dict(changes.pop("", {}))
    for section, update in changes.items():
        top[section] = dataclasses.replace(getattr(config, section), **update)
    config = dataclasses.replace(config, **top)
    _check_together(config)
    return config


def _check_together(config: RunConfig) -> None:
    """Combinations that could only fail later, refused before any compute."""
    wants_gates = config.adapter.split == "gates" and "personalized" in config.arms
    if wants_gates and config.adapter.gate == "none":
        raise ConfigError(
            "gate = 'none' with split = 'gates' leaves nothing private: choose a gate, or another split such as fedsa"
        )
    needs = {"global+finetune": "global", "neutral": "personalized"}
    for arm, source in needs.items():
        if arm in config.arms and source not in config.arms:
            raise ConfigError(f"arm {arm!r} is made from arm {source!r}: add {source!r} to arms")
    sample = config.federation.sample
    if sample > 1 and not sample.is_integer():
        raise ConfigError(
            f"sample = {sample:g} is neither a share nor a number of devices: at most 1, or a whole number above 1"
        )
    preset = config.adapter.split
    if preset.startswith(LAYERS_PREFIX):
        try:
            re.compile(preset.removeprefix(LAYERS_PREFIX))
        except re.error as error:
            raise ConfigError(f"split = {preset!r} is not a regular expression: {error}") from error
    elif preset not in SPLITS:
        raise ConfigError(f"split = {preset!r} is unknown: one of {', '.join(SPLITS)}, {LAYERS_PREFIX}<pattern>")


def flat(config: RunConfig) -> dict[str, Value]:
    """All settings by name with hyphens: the inverse of :func:`make_config`."""
    return {
        row.key: getattr(getattr(config, row.section) if row.section else config, row.name) for row in SETTINGS.values()
    }


def load_config(path: Path, start: RunConfig | None = None) -> RunConfig:
    """Read a TOML file with the sections of :data:`SECTIONS`; :class:`ConfigError` names the file and the key."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give an existing TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    values: dict[str, object] = {}
    for key, value in document.items():
        if isinstance(value, dict) and key not in SECTIONS:
            raise ConfigError(f"{path}: unknown section [{key}]: known sections are {', '.join(SECTIONS)}")
        for written, inner in value.items() if isinstance(value, dict) else [(key, value)]:
            name = written.replace("-", "_")
            if isinstance(value, dict) and name in SETTINGS and SETTINGS[name].section != key:
                raise ConfigError(
                    f"{path}: {written!r} stands under [{key}] but belongs to [{SETTINGS[name].section or 'the top'}]"
                )
            if name in values:
                raise ConfigError(f"{path}: {written!r} is given twice: keep one")
            values[name] = inner
    try:
        return make_config(values, start)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def dump_config(config: RunConfig) -> str:
    """The configuration as TOML with all settings written out."""
    document: dict[str, Any] = {row.name: getattr(config, row.name) for row in SETTINGS.values() if not row.section}
    for section in SECTIONS:
        document[section] = dataclasses.asdict(getattr(config, section))
    return tomli_w.dumps(document)


def resting_factor(strategy: str, server_round: int) -> str:
    """``A`` or ``B``: the shared factor that rests in a round, counted from 1; empty unless the strategy alternates."""
    if strategy != "rolora":
        return ""
    return "A" if server_round % 2 else "B"  # B first: while it is zero, A has no gradient


Progress = Callable[[str, int, int], None]
