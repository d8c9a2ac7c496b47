"""Options that commands share. Settings: short options for those that people use, ``--set KEY=VALUE`` for all, and a file."""

import functools
import inspect
import logging
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from fl.core.errors import ConfigError
from fl.core.printing import harmless
from fl.settings.config import SETTINGS, find_key, load_config, make_config
from fl.settings.fields import Setting

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of text for a person.")]
# The settings with an option of their own, by their short keys
SHORT = (
    *("task", "base", "language", "method", "rank", "gate", "sites", "split", "manifest", "strict", "pair"),
    *("devices", "new-people", "sentences", "algorithm", "arms", "rounds", "local-steps", "batch-size"),
    *("learning-rate", "cohort", "sample", "aggregation", "codec", "dp", "secure-sum", "seed", "output"),
)


def new_app(**more: Any) -> typer.Typer:
    """A group of commands with Rich's markup in its help, and ordinary stack traces."""
    return typer.Typer(rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False, **more)


class HarmlessConsole(Console):
    """A console for texts of others, which are no markup and have no characters that steer a terminal."""

    def __init__(self, **more: Any) -> None:
        super().__init__(markup=False, **more)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable: all that is printed passes here, before colours become escape sequences."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)


class HarmlessFormatter(logging.Formatter):
    """A formatter whose messages have no characters that steer a terminal, and no line ends."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """A record's line."""
        return harmless(super().formatMessage(record), kept="")

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """The lines of a stack trace."""
        return harmless(super().formatException(ei))


def wide_console(width: int) -> Console:
    """Standard output, ``width`` characters wide where it is a file or a pipe, which have none: tables in it stay whole."""
    return HarmlessConsole(width=None if sys.stdout.isatty() else width)


def facts_table(rows: Iterable[tuple[str, str]], title: str | None = None) -> Table:
    """Names and texts, a line for each, for a person."""
    table = Table(title=title, box=None, show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, text)
    return table


def parse_value(text: str) -> object:
    """A value as TOML reads it (``5``, ``0.1``, ``true``, ``"text"``), and a text without quotes as itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def parse_settings(pairs: Sequence[str]) -> dict[str, object]:
    """``KEY=VALUE`` pairs; a number where a text is expected stays a text. :class:`ConfigError` for anything else."""
    values: dict[str, object] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(
                f"--set {pair!r} has no value: write --set KEY=VALUE, for instance --set train.local-steps=5"
            )
        full = find_key(key.strip())
        values[full] = text if SETTINGS[full].type is str else parse_value(text)
    return values


def _keyword(name: str, kind: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _short(name: str, row: Setting) -> inspect.Parameter:
    text = f"{row.help} [{row.allowed}; default: {row.default if row.default != '' else 'empty'}]".replace("[", "\\[")
    option = typer.Option(f"--{name}", help=text, rich_help_panel="Settings", show_default=False)
    return _keyword(name.replace("-", "_"), row.type | None, option)


def with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Give ``function(config, ...)`` the options ``--config FILE``, ``--set KEY=VALUE`` and those of :data:`SHORT`.

    What stands on the command line wins over the file, the file over the command's own ``start`` configuration.
    """
    signature = inspect.signature(function, eval_str=True).parameters
    own = [p for p in signature.values() if p.name not in ("config", "start")]
    start = signature["start"].default if "start" in signature else {}
    short = [name for name in SHORT if name.replace("-", "_") not in {p.name for p in own}]
    file_option = typer.Option("--config", help="TOML file with settings; options on the command line win over it.")
    set_option = typer.Option(
        "--set", help="Any setting: KEY=VALUE, e.g. algorithm.ditto.pull=0.1; see docs/settings.md. Repeatable."
    )
    parameters = [
        *own,
        _keyword("config", Path | None, file_option),
        _keyword("settings", list[str] | None, set_option),
        *(_short(name, SETTINGS[find_key(name)]) for name in short),
    ]

    def command(**values: Any) -> None:
        given = {name: values.pop(name.replace("-", "_")) for name in short}
        chosen = {find_key(name): value for name, value in given.items() if value is not None}
        chosen |= parse_settings(values.pop("settings") or ())
        path, base = values.pop("config"), make_config(start)
        function(config=make_config(chosen, load_config(path, base) if path is not None else base), **values)

    return _with_parameters(command, function, parameters)


def with_fields(function: Callable[..., None]) -> Callable[..., None]:
    """Give ``function(chosen, ...)`` an option for each field of the dataclass ``chosen``, as the field is annotated."""
    first, *own = inspect.signature(function, eval_str=True).parameters.values()
    fields = inspect.signature(first.annotation, eval_str=True).parameters

    def command(**values: Any) -> None:
        function(first.annotation(**{name: values.pop(name) for name in fields}), **values)

    return _with_parameters(command, function, [*fields.values(), *own])


def _with_parameters(
    command: Callable[..., None], function: Callable[..., None], parameters: list[inspect.Parameter]
) -> Callable[..., None]:
    """``command`` as Typer sees it: named and documented as ``function``, with ``parameters``."""
    functools.update_wrapper(command, function)
    keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    command.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command
