"""The command line of a thin device, ``idiolect device ...``. argparse, because every import counts on a small device."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from clients.device import adapters, speech
from clients.device.command import ERROR_CODE, LATER_CODE
from clients.device.errors import UnreachableError
from clients.device.settings import HOME_VARIABLE, PASSPHRASE_VARIABLE, TOKEN_VARIABLE, default_folder
from fl.core.errors import IdiolectError

_ABOUT = f"""Transcribe with the adapter of this device and the base of a server.

The device keeps only its adapter. It sends speech to the server, and its adapter when the server does not have it.

environment:
  {HOME_VARIABLE:<22} the device's folder, unless --folder names it
  {TOKEN_VARIABLE:<22} the server's token, unless a token file was set up
  {PASSPHRASE_VARIABLE:<22} the passphrase, where files are encrypted with one

exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 the server cannot be reached now, nothing is lost"""


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    parser = argparse.ArgumentParser(
        prog="idiolect device",
        description=_ABOUT,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--folder", type=Path, default=default_folder(), help="the device's folder (%(default)s)")
    common.add_argument("--json", action="store_true", help="print JSON lines for a script")
    groups = {"": parser.add_subparsers(title="commands", required=True, metavar="COMMAND")}
    for command in (*adapters.COMMANDS, *speech.COMMANDS):
        group, _, name = command.name.rpartition(" ")
        if group not in groups:
            under = groups[""].add_parser(group, help=f"store, show or export the {group}")
            groups[group] = under.add_subparsers(title="commands", required=True, metavar="COMMAND")
        text = command.run.__doc__
        added = groups[group].add_parser(name, help=text, description=text, parents=[common], allow_abbrev=False)
        for flag, how in command.options:
            added.add_argument(flag, **how)
        added.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code; a typed error is printed. ``argv`` is without the program's name."""
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except IdiolectError as error:
        if arguments.json:
            print(json.dumps({"error": str(error), "type": type(error).__name__}, ensure_ascii=False), flush=True)
        else:
            print(f"idiolect: {error}", file=sys.stderr)
        return LATER_CODE if isinstance(error, UnreachableError) else ERROR_CODE
    except BrokenPipeError:  # whoever read the output has seen enough; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ERROR_CODE
    except OSError as error:
        print(f"idiolect: {error}: check the disk, and who owns the device's folder", file=sys.stderr)
        return ERROR_CODE
    except KeyboardInterrupt:
        print("stopped; what waits in the queue is still there", file=sys.stderr)
        return 130
