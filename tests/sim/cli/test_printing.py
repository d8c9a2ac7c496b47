"""Nothing that others wrote steers the terminal of who reads it, or breaks the command that shows it."""

import io
import json
import logging
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from clients.device.cli import main as device
from fl.core.errors import AdapterError
from fl.packed.folder import CONFIG_NAME, WEIGHTS_NAME
from sim.cli import app as cli
from sim.cli.app import app

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\u202e[/bold][link=file:///]x"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """An adapter folder whose words are hostile."""
    import torch

    from fl.adapters.config import GatedLoraConfig
    from fl.adapters.files import AdapterInfo, save_adapter

    folder = tmp_path / "[bold]foreign[/red]"
    config = GatedLoraConfig(r=1, gate="self", target_modules=[HOSTILE])
    tensors = {f"base_model.model.q.gated_lora_{what}": torch.zeros(1, 1) for what in "AB"}
    save_adapter(folder, tensors, AdapterInfo(HOSTILE, HOSTILE, "gates", config))
    return folder


def is_harmless(text: str) -> bool:
    return not {"\x1b", "\x07", "\x9b", "\r", "\u202e"} & set(text)


def test_an_adapters_words_are_shown_and_do_nothing(foreign: Path) -> None:
    shown = CliRunner().invoke(app, ["info", str(foreign)])
    assert shown.exit_code == 0, shown.output
    assert is_harmless(shown.output)
    assert "[/bold][link=file:///]x" in shown.output.replace("\n", "").replace(" ", "")


def test_a_report_of_a_folder_whose_name_is_markup_is_not_its_end(
    foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sim.report.page.write_report", lambda folders, out: {})
    monkeypatch.setattr("sim.report.table.print_summary", lambda summary, console: None)
    shown = CliRunner().invoke(app, ["report", str(foreign)])
    assert shown.exit_code == 0, shown.exception
    assert "[bold]foreign[/red]" in shown.output.replace("\n", "")


def test_an_error_that_quotes_others_is_printed_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise AdapterError(f"base {HOSTILE} is unknown")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err
    assert is_harmless(said)
    assert "[/bold][link=file:///]x is unknown" in said


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "start the same command again"),
        (PermissionError(13, "Permission denied", "/x"), 1, "'/x': check the name, the disk, and who may write there"),
        (AdapterError("no adapter"), 1, "idiolect: no adapter"),
    ],
)
def test_an_error_has_its_exit_code_and_a_line(
    error: BaseException,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("fl.bases.known.known_bases", fail)
    monkeypatch.setattr("sys.argv", ["idiolect", "bases"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == code
    assert words in capsys.readouterr().err.replace("\n", " ")


def test_colours_are_still_those_of_the_program() -> None:
    out = io.StringIO()
    console = type(cli.errors)(file=out, force_terminal=True, color_system="standard", width=80)
    console.print("idiolect:", style="bold red", end=" ")
    console.print(HOSTILE, highlight=False)
    assert out.getvalue().startswith("\x1b[1;31midiolect:\x1b[0m")
    assert is_harmless(out.getvalue().replace("\x1b[1;31m", "").replace("\x1b[0m", ""))
    assert isinstance(console, Console)


def test_a_log_line_stays_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    cli.set_up_process()
    (handler,) = root.handlers
    line = handler.format(logging.makeLogRecord({"msg": "device %s", "args": (f"{HOSTILE}\nE forged: line",)}))
    assert is_harmless(line)
    assert "\n" not in line


def test_a_device_shows_no_foreign_words_either(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = str(tmp_path / "device")
    assert device(["init", "--server", "https://example.org", "--folder", home]) == 0
    for words in (["adapter", "set", str(foreign)], ["adapter", "show"], ["transcribe", f"{tmp_path}/{HOSTILE}"]):
        device([*words, "--folder", home])
    out, err = capsys.readouterr()
    assert is_harmless(out + err)


def test_a_damaged_folder_is_named_and_its_words_do_nothing(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads((foreign / CONFIG_NAME).read_text())
    for key, value in (("gate", HOSTILE), ("peft_type", HOSTILE), (HOSTILE, 1), ("r", HOSTILE)):
        (foreign / CONFIG_NAME).write_text(json.dumps({**values, key: value}))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["idiolect", "info", str(foreign)])
            with pytest.raises(SystemExit):
                cli.main()
    assert is_harmless("".join(capsys.readouterr()))
    assert (foreign / WEIGHTS_NAME).exists()
