"""The settings of a run: one tree of tables, read from a TOML file, from Flower's run-config or from options.

A setting has one dotted key everywhere: ``train.local-steps`` in ``flwr run --run-config``, in ``--set`` on the command line, and as
``local-steps`` under ``[train]`` in a TOML file. A key may be shortened to its last parts where that is unique, and a table's
``name`` or ``mode`` to the table: ``local-steps``, ``algorithm``. An unknown key, a wrong type, a value out of range and settings
that do not go together raise :class:`fl.core.errors.ConfigError` with the key, the value and what is allowed.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tomli_w
from pydantic import ValidationError, create_model

from fl.algorithms.table import choosable, option_tables
from fl.core.errors import ConfigError
from fl.methods.table import METHODS
from fl.settings import tables
from fl.settings.check import check_together
from fl.settings.fields import Setting, Table, Value, Words, flattened, nested, setting, settings_of, words
from fl.settings.names import ARMS, DEFAULT_TASK, NO_OP

COHORT_ROWS = 6  # of a step: more are no faster on one core, and would leave other cores without work


class AlgorithmTable(Table):
    """Which algorithms a run has. Each one's options are a table of its name beside this key."""

    name: Annotated[str, Words(choosable, several=True)] = setting(
        "fedavg",
        "how updates are aggregated, what is personal, and local terms; see docs/strategies.md. If none says what "
        "is personal it is enrolment, or gates where gate, split, gated-arms or method ask for another private part",
    )

    def options(self, table: str) -> Table | None:
        """The options in a table; None for an algorithm without any."""
        found = getattr(self, table.replace("-", "_"), None)
        return found if isinstance(found, Table) else None


if TYPE_CHECKING:
    AlgorithmTables = AlgorithmTable
else:
    _OPTIONS = {name.replace("-", "_"): (options, options()) for name, options in option_tables().items()}
    AlgorithmTables = create_model("AlgorithmTables", __base__=AlgorithmTable, **_OPTIONS)


def _tasks() -> Iterable[str]:
    from fl.tasks.table import TASKS  # whose objects know these settings

    return TASKS


class RunConfig(Table):
    """Everything that decides the numbers of a run, and where they go."""

    task: Annotated[str, Words(_tasks)] = setting(
        DEFAULT_TASK,
        f"what is learnt, see docs/tasks.md; {NO_OP} trains nothing and measures the framework around training",
    )
    base: tables.BaseTable = tables.BaseTable()
    adapter: tables.AdapterTable = tables.AdapterTable()
    data: tables.DataTable = tables.DataTable()
    train: tables.TrainTable = tables.TrainTable()
    federation: tables.FederationTable = tables.FederationTable()
    algorithm: AlgorithmTables = AlgorithmTables()
    server_optimizer: tables.ServerOptimizerTable = tables.ServerOptimizerTable()
    privacy: tables.PrivacyTable = tables.PrivacyTable()
    codec: tables.CodecTable = tables.CodecTable()
    attack: tables.AttackTable = tables.AttackTable()
    seed: int = setting(1, "seed of everything", low=0)
    output: str = setting("", "run folder; empty makes one under the cache folder")

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms to compare, in canonical order."""
        wanted = words(self.federation.arms)
        return tuple(arm for arm in ARMS if arm in wanted)

    @property
    def gate(self) -> str:
        """The gate of the method's adapters where an arm has one."""
        return METHODS[self.adapter.method].gate(self.adapter.gate)

    @property
    def gated_everywhere(self) -> bool:
        """Whether every trained arm has the gate, and not the personalized one alone."""
        return self.adapter.gated_arms == "all"

    @property
    def sites(self) -> tuple[str, ...]:
        """Adapter sites."""
        return words(self.adapter.sites)

    @property
    def device_ranks(self) -> tuple[int, ...]:
        """The ranks of which each device has one; empty if all have the adapter's."""
        return tuple(map(int, words(self.adapter.device_ranks)))

    @property
    def data_seed(self) -> int:
        """Seed of the population."""
        return self.data.seed or self.seed

    def changed(self, values: Mapping[str, object]) -> RunConfig:
        """A checked copy with other values by key."""
        return make_config(values, self)


SETTINGS: dict[str, Setting] = {row.key: row for row in settings_of(RunConfig)}


def find_key(key: str) -> str:
    """The full dotted key of a setting; :class:`ConfigError` with the nearest ones if there is none, or several."""
    name = key.replace("_", "-")
    wanted = {name, f"{name}.name", f"{name}.mode"}
    found = [k for k in SETTINGS if k in wanted] or [k for k in SETTINGS if any(k.endswith(f".{w}") for w in wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"setting {key!r} is one of several: write {' or '.join(found)}")
    parts = {".".join(k.split(".")[i:]): k for k in SETTINGS for i in range(k.count(".") + 1)}
    near = difflib.get_close_matches(name, parts, n=1)
    hint = f"did you mean {parts[near[0]]!r}? " if near else ""
    raise ConfigError(f"unknown setting {key!r}: {hint}known settings are {', '.join(SETTINGS)}")


def make_config(values: Mapping[str, object], start: RunConfig | None = None) -> RunConfig:
    """A checked configuration: ``start`` (or the defaults) with ``values`` by dotted key."""
    given: dict[str, Any] = {}
    for key, value in values.items():
        full = find_key(key)
        if full in given:
            raise ConfigError(f"setting {full!r} is given twice: keep one")
        given[full] = value
    try:
        config = RunConfig.model_validate(nested({**flat(start), **given} if start is not None else given))
    except ValidationError as error:
        first = error.errors()[0]
        row = SETTINGS[".".join(map(str, first["loc"]))]
        raise ConfigError(row.refused(first["input"], first["type"])) from None
    check_together(config)
    return config


def flat(config: RunConfig) -> dict[str, Value]:
    """All settings by dotted key: the inverse of :func:`make_config`."""
    return flattened(config.model_dump(by_alias=True))


def load_config(path: Path, start: RunConfig | None = None) -> RunConfig:
    """Read a TOML file with the tables of :class:`RunConfig`; :class:`ConfigError` names the file and the key."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give an existing TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    try:
        return make_config(flattened(document), start)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def dump_config(config: RunConfig) -> str:
    """The configuration as TOML with all settings written out."""
    return tomli_w.dumps(config.model_dump(by_alias=True))


def cohort_size(train: tables.TrainTable) -> int:
    """How many devices train in one computation. It depends on settings alone, so that every machine computes the same."""
    return train.cohort or max(1, COHORT_ROWS // train.batch_size)


def sample_size(sample: float, population: int) -> int:
    """How many of ``population`` devices the setting ``federation.sample`` means: at least one."""
    wanted = round(sample * population) if sample <= 1 else int(sample)
    return min(max(1, wanted), population)
