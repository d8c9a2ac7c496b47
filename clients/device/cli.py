"""The command line of the thin client, ``idiolect device ...``. argparse, because every import counts on a small device."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from clients.device import commands, hear
from clients.device.audio import CODECS
from clients.device.client import FORMATS
from clients.device.folder import HOME_VARIABLE, PASSPHRASE_VARIABLE, TOKEN_VARIABLE, default_folder
from fl.packed.header import CODES

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

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
    every = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, run: commands.Command, text: str, to: Subparsers = every) -> argparse.ArgumentParser:
        command = to.add_parser(name, help=text, description=text, parents=[common], allow_abbrev=False)
        command.set_defaults(run=run)
        return command

    _add_init(add("init", commands.init, "set this device up, or change its settings"))
    adapters = every.add_parser("adapter", help="store, show or export the adapter").add_subparsers(
        title="commands", required=True, metavar="COMMAND"
    )
    chosen = add("set", commands.adapter_set, "store an adapter: a packed file, or an adapter folder", adapters)
    chosen.add_argument("path", type=Path, metavar="FILE|DIR")
    chosen.add_argument("--dtype", choices=tuple(CODES), default="", help="precision to store (float16 for a folder)")
    chosen.add_argument(
        "--other-base", action="store_true", help="allow an adapter of another base than the stored one"
    )
    add("show", commands.adapter_show, "say what the stored adapter is", adapters)
    export = add("export", commands.adapter_export, "write the stored adapter to a file, not encrypted", adapters)
    export.add_argument("file", type=Path)
    export.add_argument("--force", action="store_true", help="replace a file that is there")
    file = add("transcribe", hear.transcribe, "transcribe an audio file")
    file.add_argument("file", type=Path)
    _add_hearing(file)
    microphone = add("record", hear.record_speech, "record from the microphone and transcribe")
    microphone.add_argument("--seconds", type=float, default=5.0, help="how long (%(default)s)")
    microphone.add_argument("--output", type=Path, metavar="FILE", help="keep the recording here, send nothing")
    _add_hearing(microphone)
    queue = add("queue", hear.queue, "list what waits for the server, or add audio files")
    queue.add_argument("files", type=Path, nargs="*", metavar="FILE")
    queue.add_argument("--forget", action="store_true", help="remove answers and refusals; what waits stays")
    _add_answer(queue)
    add("flush", hear.flush, "send what waits, in order")
    _add_adapt(add("adapt", commands.adapt, "have the server train this device's adapter on labelled speech"))
    return parser


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", required=True, metavar="URL", help="https://HOST[:PORT]")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="PEM certificates to trust instead of the system's")
    parser.add_argument(
        "--allow-http", action="store_true", help="speak without TLS to another machine (readable on the way)"
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="where the token is (mode 600)")
    parser.add_argument("--language", default="", help="code such as ko (the adapter's own)")
    parser.add_argument(
        "--codec", choices=tuple(CODECS), default="flac", help="of uploads: lossless, or small (%(default)s)"
    )
    parser.add_argument("--budget-mib", type=float, default=4.0, help="room for the adapter (%(default)s)")
    parser.add_argument("--queue-mib", type=float, default=64.0, help="room for recordings that wait (%(default)s)")
    parser.add_argument(
        "--no-handle", action="store_true", help="send the adapter each time; the server never keeps it"
    )
    parser.add_argument(
        "--encrypt", choices=("none", "key-file", "passphrase"), default="none", help="adapter and queue"
    )
    parser.add_argument(
        "--key-file", type=Path, metavar="FILE", help="made if it is not there; better on another medium"
    )


def _add_answer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--language", default="", help="code such as ko, for this recording")
    parser.add_argument(
        "--format", choices=FORMATS, default="json", help="of the answer (%(default)s: its text is printed)"
    )


def _add_hearing(parser: argparse.ArgumentParser) -> None:
    _add_answer(parser)
    parser.add_argument("--stream", action="store_true", help="print words as they are recognised")
    parser.add_argument(
        "--queue", action="store_true", help="keep the recording for 'flush' if the server is not reachable"
    )
    parser.add_argument("--base-only", action="store_true", help="without the adapter")
    parser.add_argument("--codec", choices=tuple(CODECS), default="", help="of this upload")


def _add_adapt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, help="folder with a.wav beside a.txt, or manifest.jsonl with audio and text"
    )
    parser.add_argument("--steps", type=int, default=0, help="on shared and private part (the server's default)")
    parser.add_argument("--private-steps", type=int, default=0, help="further ones on the private part alone")
    parser.add_argument("--learning-rate", type=float, default=0.0, help="(the server's default)")
    parser.add_argument("--private-learning-rate", type=float, default=0.0, help="(the server's default)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--language", default="", help="code such as ko (the device's, else the adapter's)")


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code. ``argv`` is without the program's name."""
    arguments = build_parser().parse_args(argv)
    return commands.run(arguments.run, arguments)
