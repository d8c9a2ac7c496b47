"""Every command and every setting that a page shows is one that the command line takes."""

import re
from functools import cache
from pathlib import Path

import click
import pytest
import typer

from clients.device.cli import build_parser
from fl.settings.config import SETTINGS
from sim.cli.app import app
from sim.cli.options import parse_settings

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
for _dated in ("decisions.md", "negative-results.md"):  # their commands are those of the day
    PAGES.remove(ROOT / "docs" / _dated)
TOP = typer.main.get_command(app)


@cache
def options_of(*words: str) -> frozenset[str]:
    """The options of the command that ``words`` lead to; later words may be its arguments."""
    command: click.Command | None = TOP
    for word in words:
        if not isinstance(command, click.Group):
            break
        name = "adapters" if word == "NAME" else word
        _, command, _ = command.resolve_command(click.Context(command), [name])
    assert command is not None
    return frozenset(option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts))


def commands_in(page: Path) -> list[str]:
    """Command lines of ``idiolect`` in blocks and in code, without comments and what is joined behind them."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"(?:^ {4}|`)(?:\.venv/bin/)?idiolect ([a-z][^\n`#|&]*)", text, re.MULTILINE)
    return [re.split(r" {3,}", line.strip())[0] for line in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_exist(page: Path) -> None:
    for line in commands_in(page):
        words = line.split()
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        if words[0] == "device":
            known = frozenset(re.findall(r"--[a-z-]+", _device_help(words)))
        else:
            known = options_of(*(word for word in words if re.fullmatch(r"[a-z-]+|NAME", word) and word[0] != "-"))
        assert used <= known | {"--help"}, line
        parse_settings([pair for pair in re.findall(r"--set (\S+=\S+)", line) if pair != "KEY=VALUE"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_run_config_of_a_page_has_full_keys(page: Path) -> None:
    for values in re.findall(r'--run-config "([^"]+)"', page.read_text(encoding="utf-8")):
        assert set(re.findall(r"([\w.-]+)=", values)) <= set(SETTINGS)


def _device_help(words: list[str]) -> str:
    parser = build_parser()
    for word in words[1:]:
        groups = [
            action for action in parser._actions if hasattr(action, "choices") and isinstance(action.choices, dict)
        ]
        if not groups or word not in groups[0].choices:
            break
        parser = groups[0].choices[word]
    return parser.format_help()
