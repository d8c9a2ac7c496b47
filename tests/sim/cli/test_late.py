"""Commands are listed, and their help is printed, without loading what they need to work."""

import re
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
import typer
from typer.testing import CliRunner

from sim.cli.app import app
from sim.cli.late import COMMANDS
from sim.study.command import app as studies

HEAVY = {"torch", "transformers", "peft", "flwr", "ray", "fastapi", "scipy", "jiwer", "matplotlib", "huggingface_hub"}
LISTINGS = [(), ("algorithms",), ("import", "--list"), ("bases",)]
ON_80_COLUMNS = {("run",), ("demo",), ("enrol",), ("transcribe",), ("token",), ("status",)}


def every_command(command: click.Command | None = None, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command and group but ``device``, which is not Typer's."""
    command = command or typer.main.get_command(app)
    yield words
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            if name != "device":
                yield from every_command(command.resolve_command(context, [name])[1], (*words, name))


GROUPS: set[tuple[str, ...]] = {(), ("study",)}
EVERY = [words for words in every_command() if words not in GROUPS]


def test_neither_a_help_nor_a_listing_loads_anything_heavy() -> None:
    assert {("enrol",), ("study", "enrol"), ("study", "rank"), *((name,) for name in COMMANDS)} - {
        *EVERY,
        *GROUPS,
    } == {("device",)}
    asked = [*LISTINGS, *((*words, "--help") for words in (*GROUPS, *EVERY))]
    code = (
        "import sys; from typer.testing import CliRunner; from sim.cli.app import app\n"
        f"for words in {asked!r}:\n"
        "    result = CliRunner().invoke(app, words); assert result.exit_code == 0, (words, result.output)\n"
        f"    for module in sorted({HEAVY!r} & set(sys.modules)): sys.exit(f'{{words}} loads {{module}}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_recording_that_is_not_there_is_refused_before_torch_is_loaded() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from sim.cli.app import app\n"
        "result = CliRunner().invoke(app, ['transcribe', 'nothing.wav'])\n"
        "assert 'no such audio file' in str(result.exception), result\n"
        f"sys.exit(', '.join({HEAVY!r} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def help_of(*words: str, width: int) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.rich_utils.MAX_WIDTH", width)
        result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_list_has_every_command_once_in_a_line_of_its_panel() -> None:
    lines = help_of(width=80).splitlines()
    for name, late in COMMANDS.items():
        (line,) = (line for line in lines if re.match(rf"│ {name} ", line))
        assert late.help in line


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_an_option_takes_one_line(words: tuple[str, ...]) -> None:
    text = help_of(*words, width=80 if words in ON_80_COLUMNS else 100)
    assert not re.findall(r"^│ {8,}.*$", text, re.MULTILINE)


def test_all_that_print_a_result_print_it_as_json_too() -> None:
    lacking = {words for words in EVERY if "--json" not in help_of(*words, width=100)}
    assert lacking == {("serve",)}


def test_run_shows_about_twenty_options_and_all_of_them_when_asked() -> None:
    some, every = (
        set(re.findall(r"^│ (?:\* )? *(--[a-z-]+)", text, re.MULTILINE))
        for text in (help_of("run", width=80), CliRunner().invoke(app, ["run", "--help-all"]).output)
    )
    assert 18 <= len(some - {"--help", "--help-all"}) <= 24
    assert some < every
    assert {"--gate", "--sample", "--serial", "--no-op", "--ray-address"} <= every - some


def test_all_settings_are_listed_with_their_defaults() -> None:
    text = CliRunner().invoke(app, ["run", "--help-all"]).output
    assert "federation.round-timeout = 3600" in text


def test_a_hidden_option_works() -> None:
    result = CliRunner().invoke(app, ["run", "--gate", "sideways"])
    assert "sideways" in str(result.exception)


def test_an_argument_says_what_it_is() -> None:
    assert "A run folder." in help_of("status", width=80)
    assert "Name of an importer; --list shows them." in help_of("import", width=100)


def test_without_arguments_it_says_what_to_do_first() -> None:
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    words = result.output.split()
    assert words.index("doctor") < words.index("demo") < words.index("run")
    assert max(map(len, result.output.splitlines())) <= 80


def test_every_command_that_is_listed_can_be_loaded() -> None:
    for group in (app, studies):
        command = typer.main.get_command(group)
        assert isinstance(command, click.Group)
        for name in command.list_commands(click.Context(command)):
            if name != "device":
                found = command.resolve_command(click.Context(command), [name])[1]
                assert found is not None
                assert found.callback is None or found.callback.__module__ != "sim.cli.late", name


def test_an_unknown_command_is_refused_and_the_nearest_is_named() -> None:
    for typed, meant in (("sevre", "serve"), ("trascribe", "transcribe"), ("studdy", "study")):
        result = CliRunner().invoke(app, [typed])
        assert result.exit_code == 2
        assert f"Did you mean '{meant}'?" in result.stderr
    assert "Did you mean" not in CliRunner().invoke(app, ["xyzzy"]).stderr


def test_a_shell_completes_commands_and_options() -> None:
    def completed(line: str) -> set[str]:
        words = line.split(" ")
        given = {"_IDIOLECT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        done = CliRunner().invoke(app, [], prog_name="idiolect", env=given)
        return set(done.output.split())

    assert completed("idiolect st") == {"status", "study"}
    assert "--manifest" in completed("idiolect run --ma")
    assert "--tokens" in completed("idiolect serve --to")
    assert "network" in completed("idiolect study net")
