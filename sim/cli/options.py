"""Settings on the command line: short options for those that people use, ``--set KEY=VALUE`` for all, and a file."""

from __future__ import annotations

import functools
import inspect
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fl.core.errors import ConfigError
from fl.settings.config import SETTINGS, RunConfig, find_key, load_config, make_config
from fl.settings.fields import Setting

SHORT = (
    *(
        "task",
        "base",
        "method",
        "rank",
        "gate",
        "sites",
        "split",
        "manifest",
        "pair",
        "devices",
        "new-people",
        "sentences",
    ),
    *("algorithm", "arms", "rounds", "local-steps", "batch-size", "learning-rate", "cohort", "sample", "aggregation"),
    *("codec", "dp", "secure-sum", "seed", "output"),
)
"""The settings with an option of their own, by their short keys."""


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


def _parameter(short: str, row: Setting) -> inspect.Parameter:
    help_text = f"{row.help} [{row.allowed}; default: {row.default if row.default != '' else 'empty'}]"
    option = typer.Option(
        f"--{short}", help=help_text.replace("[", "\\["), rich_help_panel="Settings", show_default=False
    )
    kind: Any = Annotated[row.type | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(short.replace("-", "_"), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def _keyword(name: str, option: Any, kind: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


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
        *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own),
        _keyword("config", file_option, Path | None),
        _keyword("settings", set_option, list[str] | None),
        *(_parameter(name, SETTINGS[find_key(name)]) for name in short),
    ]

    @functools.wraps(function)
    def command(**values: Any) -> None:
        given = {name: values.pop(name.replace("-", "_")) for name in short}
        chosen = {find_key(name): value for name, value in given.items() if value is not None}
        chosen |= parse_settings(values.pop("settings") or ())
        path, base = values.pop("config"), make_config(start)
        function(config=make_config(chosen, load_config(path, base) if path is not None else base), **values)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def describe_settings() -> str:
    """A Markdown table of all settings, for the documentation."""
    lines = ["| setting | default | allowed | meaning |", "| --- | --- | --- | --- |"]
    for row in SETTINGS.values():
        default = f"`{row.default}`" if row.default != "" else "empty"
        lines.append(f"| `{row.key}` | {default} | {row.allowed} | {row.help} |".replace("|pattern", "\\|pattern"))
    return "\n".join(lines) + "\n"


def flower_section(config: RunConfig) -> str:
    """The tables under ``[tool.flwr.app.config]`` of pyproject.toml, with the values of ``config``."""
    import tomli_w

    document = {"tool": {"flwr": {"app": {"config": config.model_dump(by_alias=True)}}}}
    return tomli_w.dumps(document)
