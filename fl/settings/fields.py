"""What a table of settings is made of: pydantic fields with bounds or known words, and errors in words that name the remedy."""

import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

Value = bool | int | float | str
KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
LARGEST = 2**63 - 1  # what a message and a TOML file carry


def words(value: str) -> tuple[str, ...]:
    """The comma-separated words of a setting."""
    return tuple(word.strip() for word in value.split(",") if word.strip())


@dataclass(frozen=True)
class Words:
    """Annotates a text that is one of ``known``, or with ``several`` one or more of them with commas between.

    ``known`` is called when a value is checked: what other packages register counts too.
    """

    known: Callable[[], Iterable[str]]
    several: bool = False

    def __get_pydantic_core_schema__(self, source: type, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: str) -> str:
        given = words(value) if self.several else (value,)
        if not given or any(word not in self.known() for word in given):
            raise ValueError(f"{value!r} is unknown; known: {', '.join(self.known())}")
        return value

    @property
    def allowed(self) -> str:
        """The words, as a message lists them."""
        known = ", ".join(self.known())
        return f"one or more of {known}, with commas between" if self.several else f"one of {known}"


def one_of(*known: str) -> Words:
    """A text that is one of these words."""
    return Words(lambda: known)


def setting(default: Value, help: str, *, low: float | None = None, high: float | None = None) -> Any:
    """A field with its meaning and the bounds of its number."""
    high = LARGEST if high is None and type(default) is int else high
    return Field(default, description=help, ge=low, le=high, allow_inf_nan=False if type(default) is float else None)


def _alias(name: str) -> str:
    return name.replace("_", "-")


class Table(BaseModel):
    """One table of settings: frozen, of exact types, without unknown keys. Keys have hyphens where fields have underscores."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, alias_generator=_alias, populate_by_name=True, protected_namespaces=()
    )


@dataclass(frozen=True)
class Setting:
    """One setting as a row: its dotted key, type, default, bounds and meaning."""

    key: str
    type: type
    field: FieldInfo

    @property
    def default(self) -> Value:
        """What it is unless it is set."""
        value: Value = self.field.default
        return value

    @property
    def help(self) -> str:
        """What it means."""
        return self.field.description or ""

    @property
    def words(self) -> Words | None:
        """The words that it takes, None for a number or a free text."""
        return next((m for m in self.field.metadata if isinstance(m, Words)), None)

    def bound(self, side: str) -> float | None:
        """The bound ``ge`` or ``le`` of a number, None without one."""
        return next((getattr(m, side) for m in self.field.metadata if getattr(m, side, None) is not None), None)

    @property
    def allowed(self) -> str:
        """What it takes, in words."""
        if self.words is not None:
            return self.words.allowed
        low, high = self.bound("ge"), self.bound("le")
        high = None if high == LARGEST else high
        sides = (("at least", low), ("at most", high))
        bounds = " and ".join(f"{word} {bound:g}" for word, bound in sides if bound is not None)
        return KINDS[self.type] + (f" of {bounds}" if bounds else "")

    def refused(self, value: object, kind: str) -> str:
        """Why ``value`` is refused; ``kind`` is pydantic's type of the error."""
        known = {"finite_number": "not a finite number", "value_error": "unknown"}
        out_of_range = kind.startswith(("greater", "less"))
        what = "out of range" if out_of_range else known.get(kind, f"a {type(value).__name__}")
        return f"{self.key} = {value!r} is {what}: {self.allowed}"


def settings_of(table: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    """The settings of a table and of the tables in it, in their order."""
    for name, field in table.model_fields.items():
        key, kind = f"{prefix}{_alias(name)}", field.annotation
        if isinstance(kind, type) and not isinstance(kind, types.GenericAlias) and issubclass(kind, BaseModel):
            yield from settings_of(kind, f"{key}.")
        else:
            assert isinstance(kind, type)
            yield Setting(key, kind, field)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """Nested tables as dotted keys."""
    flat: dict[str, Value] = {}
    for key, value in values.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def nested(values: Mapping[str, Value]) -> dict[str, Any]:
    """The inverse of :func:`flattened`."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *tables, name = key.split(".")
        place = tree
        for table in tables:
            place = place.setdefault(table, {})
        place[name] = value
    return tree
