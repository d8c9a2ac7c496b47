"""One setting: its type, default, bounds and meaning, and how a value of it is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from fl.core.errors import ConfigError

Value = bool | int | float | str


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


def rows_of(cls: type, section: str) -> list[Setting]:
    """The settings among the fields of a dataclass, in their order."""
    hints = get_type_hints(cls)
    return [
        Setting(f.name, section, hints[f.name], f.default, **f.metadata)  # type: ignore[arg-type]
        for f in fields(cls)
        if f.metadata
    ]
