"""What a command of ``idiolect device`` is, and how it speaks: a line of JSON for a script, or text for a person."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.device.answer import printable
from clients.device.settings import Option
from fl.core.errors import StoreError
from fl.core.files import write_atomically

DONE_CODE, ERROR_CODE, LATER_CODE = 0, 1, 3  # 2 is argparse's, for a command that was written wrongly
Run = Callable[[argparse.Namespace], int]


@dataclass(frozen=True)
class DeviceCommand:
    """A command: ``adapter set`` is ``set`` of the group ``adapter``. ``run`` takes parsed arguments, returns the exit code."""

    name: str
    options: tuple[Option, ...]
    run: Run


def command(name: str, *options: Option) -> Callable[[Run], DeviceCommand]:
    """Make a function a command with these options. Its docstring is the help."""
    return lambda run: DeviceCommand(name, options, run)


def say(arguments: argparse.Namespace, document: dict[str, Any], text: str) -> None:
    """Print ``document`` for a script, or ``text`` for a person."""
    print(json.dumps(document, ensure_ascii=False) if arguments.json else harmless(text), flush=True)


def harmless(text: str) -> str:
    """``text`` without characters that steer a terminal: a transcript is written by a server."""
    return printable(text, "\n\t", limit=None)


def write_output(path: Path, data: bytes) -> None:
    """Write a file that a person asked for. Raises :class:`StoreError`."""
    try:
        write_atomically(path, data)
    except OSError as error:
        raise StoreError(f"{path} could not be written ({error}): free some space or choose another place") from error
