"""The settings of a run: one tree of frozen dataclasses, read from a TOML file, from Flower's run-config or from options.

Field names are unique across the sections, so a setting has one name everywhere: ``local_steps`` under ``[train]`` in
``config.toml``, ``local-steps`` in ``flwr run --run-config`` and ``--local-steps`` on the command line. An unknown key, a
wrong type and a value out of range raise :class:`fl.core.errors.ConfigError` with the key, the value and what is allowed.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from fl.core.errors import ConfigError
from fl.settings.names import (
    ARMS,
    ATTACKS,
    DEVICE,
    DIGITS,
    DISTRIBUTED_NOISE,
    EDGE,
    GATES,
    LANGUAGE_ID,
    LOCAL_NOISE,
    MAX_RANK,
    METHODS,
    NO_OP,
    NONE,
    OWN,
    PAIRWISE,
    PERSONALIZATIONS,
    SERVER_NOISE,
    SERVER_OPTIMIZERS,
    SITES,
    SPEECH,
    STRATEGIES,
    TOKENS,
)
from fl.settings.rules import check_together
from fl.settings.setting import Setting, Value, rows_of, setting, words


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
    tokens: str = setting(
        OWN,
        "what Korean is written in: the base's own tokens, or new ones that are trained and shared with the adapter",
        choices=TOKENS,
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

    method: str = setting(
        "gated-lora", "what is trained, and how it changes the base; see docs/methods.md", choices=METHODS
    )
    rank: int = setting(8, "rank of A and B, width of a bottleneck, length of a prefix", low=1, high=MAX_RANK)
    parameter_budget: int = setting(
        0,
        "rank, and alpha with it, follows from this number of trained parameters, as near as it gets; 0 takes rank as it is",
        low=0,
    )
    alpha: float = setting(16.0, "the update is scaled by alpha / rank", low=1e-6)
    gate: str = setting("self", "what gates the low-rank path of method gated-lora", choices=GATES)
    gated_arms: str = setting(
        "personalized",
        "which arms have the gate: the personalized one, beside arms of plain LoRA, or all that are trained",
        choices=("personalized", "all"),
    )
    prefix_gate: bool = setting(True, "method prefix: it enters through a gate that starts at zero, or as in the paper")
    sites: str = setting("encoder.self,decoder.self,decoder.cross", "where adapters sit", many=SITES)
    split: str = setting("gates", "gates, fedsa, ffa, all-shared, all-private or layers:<pattern>")


@dataclass(frozen=True)
class DataConfig:
    """What is learnt, and whose speech: a manifest, or a synthetic population made on the spot."""

    task: str = setting(
        SPEECH,
        "what is learnt, see docs/tasks.md; no-op trains nothing and measures the framework around training",
        choices=(SPEECH, LANGUAGE_ID, DIGITS, NO_OP),
    )
    manifest: str = setting(
        "",
        "absolute path of a manifest.jsonl; own: the one that each deployed device names; empty makes a synthetic population",
    )
    pair: str = setting("ko-en", "language pair of the synthetic population")
    devices: int = setting(6, "devices that take part", low=1, high=1_000_000)
    new_people: int = setting(2, "further people who never take part in training", low=0, high=1_000_000)
    sentences: int = setting(120, "synthetic sentences of each person", low=1, high=100_000)
    validation_share: float = setting(0.1, "share of a device's utterances for validation", low=0.0, high=0.9)
    test_share: float = setting(0.15, "share of a device's utterances for testing", low=0.0, high=0.9)
    new_people_tests: int = setting(12, "sentences on which each new person is tested, at most", low=1, high=100_000)
    train_utterances: int = setting(
        0, "training utterances of a device that are used, at most; 0 uses all", low=0, high=1_000_000
    )
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
    spec_augment: float = setting(
        0.0,
        "SpecAugment: how wide bands and spans of training speech are masked, as a share of its policies",
        low=0.0,
        high=1.0,
    )
    speed_perturbation: float = setting(
        0.0, "training speech is played up to this share faster or slower; 0.1 is usual", low=0.0, high=0.5
    )
    noise_snr: float = setting(
        0.0,
        "dB of training speech over added white noise, drawn between this and 20 more; 0 adds none",
        low=0.0,
        high=100.0,
    )
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
    device_ranks: str = setting(
        "",
        "ranks with commas between, at most rank: each device has one of them, drawn by the seed; empty gives all rank",
    )
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
    attack: str = setting(
        NONE, "study: what hostile devices do; only in a simulation, and loudly logged", choices=ATTACKS
    )
    attacker_share: float = setting(
        0.2, "study: share of the devices that are hostile, drawn by the seed", low=1e-9, high=1.0
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
class PersonalConfig:
    """How the arm ``personalized`` makes a model of each person's own."""

    personalization: str = setting(
        "gates",
        "what is personal in the arm personalized; gates is what gate and split say; see docs/strategies.md",
        choices=PERSONALIZATIONS,
    )
    personal_layers: int = setting(
        1, "fedper, fedrep: how many of the last adapted layers stay private", low=1, high=1000
    )
    personal_steps: int = setting(
        0,
        "steps of a round for the personal part; 0 takes half of local-steps (fedrep), 3 for each batch (pfedme), else local-steps",
        low=0,
        high=100_000,
    )
    personal_pull: float = setting(
        0.1, "ditto, pfedme: how strongly the personal adapter is held at the shared one (lambda)", low=0.0, high=1e6
    )
    outer_rate: float = setting(
        0.5,
        "pfedme: share of the way to the personal adapter that the shared one goes (eta lambda)",
        low=1e-9,
        high=1.0,
    )
    mixing: float = setting(0.5, "apfl: weight of the personal adapter at the start (alpha)", low=0.0, high=1.0)
    mixing_learning_rate: float = setting(
        0.1, "apfl: learning rate of that weight; 0 leaves it as it is", low=0.0, high=100.0
    )
    clusters: int = setting(4, "clusters: at most so many models", low=1, high=1000)
    cluster_agreement: float = setting(
        0.4,
        "clusters: one is divided once its mean update is at most this share of its longest",
        low=0.0,
        high=1.0,
    )


@dataclass(frozen=True)
class PrivacyConfig:
    """What is done to a shared update before the aggregator sees it, or before it releases a model. See docs/privacy.md."""

    dp: str = setting(
        NONE,
        "differential privacy of persons: who adds the noise",
        choices=(NONE, SERVER_NOISE, DISTRIBUTED_NOISE, LOCAL_NOISE),
    )
    update_norm: float = setting(
        1.0,
        "largest norm of a device's shared update with dp or secure sums; the first one with clip-quantile",
        low=1e-9,
    )
    update_clipping: str = setting(
        "flat", "one norm for the whole update, or the same share of it for each layer", choices=("flat", "per-layer")
    )
    clip_quantile: float = setting(
        0.0, "update-norm follows this quantile of the updates' norms, privately; 0 keeps it fixed", low=0.0, high=0.99
    )
    noise_multiplier: float = setting(
        0.0,
        "standard deviation of the noise over the clipping norm; 0 takes the least that epsilon-budget allows for all rounds",
        low=0.0,
        high=1e6,
    )
    epsilon_budget: float = setting(8.0, "epsilon at which the run stops", low=1e-6, high=1e9)
    delta: float = setting(1e-5, "delta of that promise; far below 1 / devices", low=1e-30, high=0.5)
    sampling: str = setting(
        "fixed",
        "how the devices of a round are drawn: sample of them, or each independently with that probability",
        choices=("fixed", "poisson"),
    )
    accountant: str = setting(
        "auto", "how epsilon is computed; auto takes pld where it can, else rdp", choices=("auto", "pld", "rdp")
    )
    example_cap: int = setting(
        0,
        "with dp or secure sums a device weighs min(examples, cap) / cap; 0 weighs all the same",
        low=0,
        high=1_000_000,
    )
    secure_sum: str = setting(NONE, "whether the aggregator sees only sums of masked updates", choices=(NONE, PAIRWISE))
    secure_threshold: float = setting(
        0.0,
        "share of a secure sum's participants that must stay, above one half; 0 takes more than two thirds",
        low=0.0,
        high=1.0,
    )
    dropout_share: float = setting(
        0.3, "dp = distributed: largest share of a round's participants that may drop out", low=0.0, high=0.49
    )
    colluding_share: float = setting(
        0.0,
        "dp = distributed: share of a round's participants that may tell the aggregator their noise",
        low=0.0,
        high=0.49,
    )
    codec: str = setting(
        "fp32",
        "how an update is compressed: fp32, fp16, int8, int4, int8:LIMIT, top-k:SHARE, top-k:SHARE+int8 and so on",
    )
    error_feedback: bool = setting(
        False, "a device adds what compression lost to its next update; kept on the device as private state"
    )


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the numbers of a run, and where they go."""

    base: BaseConfig = field(default_factory=BaseConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    personal: PersonalConfig = field(default_factory=PersonalConfig)
    seed: int = setting(1, "seed of everything", low=0)
    output: str = setting("", "run folder; empty makes one under the cache folder")

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms to compare, in canonical order."""
        wanted = words(self.federation.arms)
        return tuple(arm for arm in ARMS if arm in wanted)

    @property
    def gate(self) -> str:
        """The gate of the method's adapters where an arm has one: that of ``lora`` is none, that of ``scalar-gate`` is scalar."""
        return {"gated-lora": self.adapter.gate, "scalar-gate": "scalar"}.get(self.adapter.method, "none")

    @property
    def sites(self) -> tuple[str, ...]:
        """Adapter sites."""
        return words(self.adapter.sites)

    @property
    def device_ranks(self) -> tuple[int, ...]:
        """The ranks of which each device has one; empty if all have the adapter's."""
        return tuple(map(int, words(self.federation.device_ranks)))

    @property
    def data_seed(self) -> int:
        """Seed of the population."""
        return self.data.data_seed or self.seed


SECTIONS: dict[str, type] = {
    "base": BaseConfig,
    "adapter": AdapterConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "federation": FederationConfig,
    "privacy": PrivacyConfig,
    "personal": PersonalConfig,
}
SETTINGS: dict[str, Setting] = {
    row.name: row
    for row in (*(r for name, cls in SECTIONS.items() for r in rows_of(cls, name)), *rows_of(RunConfig, ""))
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
    check_together(config)
    return config


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


def sample_size(sample: float, population: int) -> int:
    """How many of ``population`` devices the setting ``sample`` means: at least one."""
    wanted = round(sample * population) if sample <= 1 else int(sample)
    return min(max(1, wanted), population)


Progress = Callable[[str, int, int], None]
