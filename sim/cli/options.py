"""Every setting of :mod:`fl.settings.config` as a command-line option, made from its one table so that none can be forgotten."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fl.settings.config import SETTINGS, load_config, make_config
from fl.settings.setting import Setting

_PANELS = {
    "base": "Base",
    "adapter": "Adapter",
    "data": "Data",
    "train": "Training",
    "federation": "Federation",
    "privacy": "Privacy",
    "personal": "Personalization",
    "": "Run",
}


def _parameter(row: Setting) -> inspect.Parameter:
    help_text = f"{row.help} [{row.allowed}; default: {row.default if row.default != '' else 'empty'}]"
    option = typer.Option(
        f"--{row.key}", help=help_text.replace("[", "\\["), rich_help_panel=_PANELS[row.section], show_default=False
    )
    kind: Any = Annotated[row.type | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(row.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Give ``function(config, ...)`` a ``--config FILE`` option and one option for each setting.

    What stands on the command line wins over the file, the file over the command's own ``start`` configuration.
    """
    own = [
        p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name not in ("config", "start")
    ]
    start = (
        inspect.signature(function).parameters["start"].default
        if "start" in inspect.signature(function).parameters
        else None
    )
    taken = {p.name for p in own}
    file_option = typer.Option("--config", help="TOML file with settings; options on the command line win over it.")
    parameters = [
        *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own),
        inspect.Parameter(
            "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, file_option]
        ),
        *(_parameter(row) for row in SETTINGS.values() if row.name not in taken),
    ]

    @functools.wraps(function)
    def command(**values: Any) -> None:
        chosen = {
            row.name: values.pop(row.name) for row in SETTINGS.values() if row.name in values and row.name not in taken
        }
        path = values.pop("config")
        given = {name: value for name, value in chosen.items() if value is not None}
        base = make_config(start or {})
        config = make_config(given, load_config(path, base) if path is not None else base)
        function(config=config, **values)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def describe_settings() -> str:
    """A Markdown table of all settings, for the documentation."""
    lines = ["| section | setting | default | allowed | meaning |", "| --- | --- | --- | --- | --- |"]
    for row in SETTINGS.values():
        default = f"`{row.default}`" if row.default != "" else "empty"
        lines.append(
            f"| {row.section or 'run'} | `{row.key}` | {default} | {row.allowed} | {row.help} |".replace(
                "|pattern", "\\|pattern"
            )
        )
    return "\n".join(lines) + "\n"
