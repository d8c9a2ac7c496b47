"""Every code block of README and docs: Python is executed, commands are parsed with all their arguments, marked ones are run.

Two comments before a block change that: ``<!-- run -->`` executes its commands at smoke size, ``<!-- not run: REASON -->`` leaves it
alone. The latter are counted.
"""

import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import click
import flwr
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from clients.device.cli import build_parser
from fl.core.errors import ConfigError
from fl.settings.config import SETTINGS
from fl.speech.audio import save_audio
from sim.cli.app import app
from sim.cli.options import parse_settings

ROOT = Path(__file__).parents[1]
DATED = (ROOT / "docs" / "decisions.md", ROOT / "docs" / "negative-results.md")  # commands as they were on the day
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page not in DATED)]
TOP = typer.main.get_command(app)
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>run|not run: .+) -->\n\n)?"
    r"(?:^```(?P<language>\w+)\n(?P<fenced>(?:.*\n)*?)```$|(?P<indented>(?:^ {4,}\S.*\n|^\n(?= {4}))+))",
    re.MULTILINE,
)
NOT_RUN = 7  # blocks that nothing here can run, each with its reason
SMOKE = {  # what makes a command small; the last value of an option counts
    "synth": "--sentences 8",
    "run": "--base random:whisper-nano --arms global,personalized --rounds 2 --local-steps 1 --serial",
}


@dataclass(frozen=True)
class PageBlock:
    """A block of code, its language (empty for an indented one) and the comment before it."""

    language: str
    text: str
    mark: str

    def commands(self) -> Iterator[list[str]]:
        """The words of each command, without prompt, comment and what is joined behind it."""
        if self.language not in ("", "console", "bash"):
            return
        for line in re.sub(r" *\\\n *", " ", self.text).splitlines():
            command = re.split(r" {3,}| #|\||&&| > ", re.sub(r"^(?:\$ |\.venv/bin/)", "", line.strip()))[0].rstrip(". ")
            if re.match(r"(?:idiolect|python -m|make|flwr|flower-\w+) \S", command):
                yield shlex.split(command)


def blocks(page: Path) -> list[PageBlock]:
    """All blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [PageBlock(m["language"] or "", m["fenced"] or m["indented"], m["mark"] or "") for m in BLOCK.finditer(text)]


def quoted_commands(page: Path) -> Iterator[list[str]]:
    """The words of each ``idiolect`` command in the prose of a page; it may leave out its arguments."""
    for command in re.findall(r"`idiolect ([a-z][^\n`#|&]*)`", page.read_text(encoding="utf-8")):
        yield command.split()


@cache
def command_of(*words: str) -> tuple[click.Command, int]:
    """The command that ``words`` lead to, and how many of them name it; later ones are its arguments."""
    command: click.Command = TOP
    for number, word in enumerate(words):
        if not isinstance(command, click.Group):
            return command, number
        _, found, _ = command.resolve_command(click.Context(command), ["adapters" if word == "NAME" else word])
        assert found is not None
        command = found
    return command, len(words)


@cache
def flower_options() -> frozenset[str]:
    """All options of Flower's commands, by the sources of the installed package."""
    sources = (path.read_text(encoding="utf-8") for path in Path(flwr.__file__).parent.rglob("*.py"))
    return frozenset(option for source in sources for option in re.findall(r'"(--[a-z-]+)"', source))


def check_settings(words: list[str]) -> None:
    """Each ``--set KEY=VALUE`` names a setting and a value that it can have."""
    pairs = [value for flag, value in pairwise(words) if flag == "--set" and "=" in value]
    parse_settings([pair for pair in pairs if pair != "KEY=VALUE"])


def parse(words: list[str]) -> None:
    """What the command line makes of ``words``; it raises what a person would read. Nothing is run."""
    if words[0] == "device":
        build_parser().parse_args(words[1:])
        return
    if {"--help", "--version", "--install-completion"} & {*words}:
        return
    command, named = command_of(*words)
    if not isinstance(command, click.Group):
        command.make_context(command.name, [*words[named:]])
    check_settings(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_are_taken(page: Path) -> None:
    for program, *words in (c for block in blocks(page) if not block.mark.startswith("not") for c in block.commands()):
        if program == "make":
            assert words[0] in TARGETS, words
        elif program.startswith(("flwr", "flower")):
            assert {word for word in words if word.startswith("--")} <= flower_options(), words
        elif program == "python":
            _, module, *rest = words
            path = ROOT / module.replace(".", "/")
            source = next(file for file in (path.with_suffix(".py"), path / "__main__.py") if file.is_file())
            own = rest[: rest.index("--")] if "--" in rest else rest
            if module.startswith("benchmarks"):
                assert all(f'"{word}"' in source.read_text("utf-8") for word in own if word.startswith("--")), words
        else:
            try:
                parse(words)
            except (click.ClickException, ConfigError, SystemExit) as error:
                pytest.fail(f"idiolect {shlex.join(words)}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_that_a_page_names_exist(page: Path) -> None:
    for words in quoted_commands(page):
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        if words[0] == "device":
            known = frozenset(re.findall(r"--[a-z-]+", _device_help(words)))
        else:
            command, _ = command_of(*(word for word in words if re.fullmatch(r"[a-z-]+|NAME", word) and word[0] != "-"))
            known = frozenset(o for parameter in command.params for o in (*parameter.opts, *parameter.secondary_opts))
        assert used <= known | {"--help"}, words
        check_settings(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_run_config_of_a_page_has_full_keys(page: Path) -> None:
    for values in re.findall(r'--run-config "([^"]+)"', page.read_text(encoding="utf-8")):
        assert set(re.findall(r"([\w.-]+)=", values)) <= set(SETTINGS)


def test_a_command_that_is_not_taken_is_found() -> None:
    with pytest.raises(click.NoSuchOption):
        parse(["run", "--roundz", "3"])
    with pytest.raises(click.BadParameter):
        parse(["run", "--rounds", "three"])
    with pytest.raises(click.MissingParameter):
        parse(["transcribe"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, own_home: Path) -> Path:
    """A folder with recordings of two people and their texts, as the pages assume one."""
    folder = tmp_path_factory.mktemp("reader")
    rng = np.random.default_rng(0)
    for speaker in ("minji", "junho"):
        for number in range(4):
            place = folder / "recordings" / speaker / f"{number:03}"
            place.parent.mkdir(parents=True, exist_ok=True)
            noise = 0.1 * rng.standard_normal(int(16_000 * rng.uniform(0.6, 1.2)))
            save_audio(place.with_suffix(".wav"), noise.clip(-1, 1).astype(np.float32))
            place.with_suffix(".txt").write_text(f"{speaker} {number} meeting\n있어요 {speaker}", encoding="utf-8")
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_runs(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = [block.text for block in blocks(page) if block.language == "python" and not block.mark]
    monkeypatch.chdir(folder)
    script = folder / "page.py"
    script.write_text("\n\n".join(code), encoding="utf-8")
    runpy.run_path(str(script), run_name="page")


@pytest.mark.slow
def test_marked_commands_do_what_their_pages_say_in_the_order_of_a_reader(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    pages = [ROOT / "docs" / name for name in ("quickstart.md", "how-to/corpus.md", "how-to/report.md")]
    assert {page for page in PAGES if any(block.mark == "run" for block in blocks(page))} == set(pages)
    runpy.run_path(str(_written(folder / "table.py", ROOT / "docs" / "how-to" / "corpus.md")))
    printed = ""
    for page in pages:
        for block in blocks(page):
            for _, *words in block.commands() if block.mark == "run" else ():
                result = CliRunner().invoke(app, [*words, *SMOKE.get(words[0], "").split()])
                assert result.exit_code == 0, f"{words}: {result.output} {result.exception!r}"
                printed += result.output
    assert "2 speakers; 4 to 4 utterances each" in printed
    assert (folder / "runs" / "mine" / "report.html").is_file()


def test_blocks_that_are_not_run_are_counted() -> None:
    reasons = [block.mark for page in PAGES for block in blocks(page) if block.mark.startswith("not run: ")]
    assert len(reasons) == NOT_RUN, reasons


def test_blocks_of_a_page_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "text\n\n    $ idiolect bases   # all\n    printed\n\n<!-- not run: why -->\n\n```python\n1 / 0\n```\n\n"
        "<!-- run -->\n\n    make docs\n\n```bash\nidiolect run \\\n  --rounds 3\n```\n",
        encoding="utf-8",
    )
    found = blocks(page)
    assert [(block.language, block.mark) for block in found] == [
        ("", ""),
        ("python", "not run: why"),
        ("", "run"),
        ("bash", ""),
    ]
    assert [command for block in found for command in block.commands()] == [
        ["idiolect", "bases"], ["make", "docs"], ["idiolect", "run", "--rounds", "3"],
    ]  # fmt: skip


def _written(script: Path, page: Path) -> Path:
    script.write_text("\n".join(block.text for block in blocks(page) if block.language == "python"), encoding="utf-8")
    return script


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
