"""The command line of a thin device, ``idiolect device ...``. argparse, because every import counts on a small device."""

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from clients.device import commands
from clients.device.audio import CODECS
from clients.device.client import FORMATS
from clients.device.commands import DONE_CODE, ERROR_CODE, LATER_CODE
from clients.device.messages import UnreachableError
from clients.device.seal import PASSPHRASE_VARIABLE
from clients.device.settings import HOME_VARIABLE, TOKEN_VARIABLE, DeviceSettings, Option, default_folder, option
from fl.core.errors import IdiolectError
from fl.core.printing import harmless
from fl.packed.header import CODES

_ABOUT = f"""Transcribe with the adapter of this device and the base of a server.

The device keeps only its adapter. It sends speech to the server, and its adapter when the server does not have it.

environment:
  {HOME_VARIABLE:<22} the device's folder, unless --folder names it
  {TOKEN_VARIABLE:<22} the server's token, unless a token file was set up
  {PASSPHRASE_VARIABLE:<22} the passphrase, where files are encrypted with one

exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 the server cannot be reached now, nothing is lost"""


def seed(text: str) -> int:
    """A seed as numpy takes it."""
    if not 0 <= (value := int(text)) < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is no seed: a number from 0 up")
    return value


ANSWER = (
    option("--language", "code such as ko, for this recording", default=""),
    option("--format", "of the answer (%(default)s: its text is printed)", choices=FORMATS, default="json"),
)
SENDING = (
    *ANSWER,
    option("--stream", "print words as they are recognised", action="store_true"),
    option("--queue", "keep the recording for 'flush' if the server is not reachable", action="store_true"),
    option("--base-only", "without adapter and spellings", action="store_true"),
    option("--codec", "of this upload", choices=tuple(CODECS), default=""),
)
EARLIER = {"enrol": ["adapt"]}  # names that a command had
Run: TypeAlias = Callable[[argparse.Namespace], int | None]
COMMANDS: dict[str, tuple[Run, *tuple[Option, ...]]] = {
    "init": (commands.init, *DeviceSettings.options()),
    "adapter set": (
        commands.adapter_set,
        option("path", metavar="FILE|DIR", type=Path),
        option("--dtype", "precision to store (float16 for a folder)", choices=tuple(CODES), default=""),
        option("--other-base", "allow an adapter of another base than the stored one", action="store_true"),
    ),
    "adapter show": (commands.adapter_show,),
    "adapter export": (
        commands.adapter_export,
        option("file", type=Path),
        option("--force", "replace a file that is there", action="store_true"),
    ),
    "enrol": (
        commands.enrol,
        option("source", "folder with a.wav beside a.txt, or manifest.jsonl with audio and text", type=Path),
        option("--lexicon", "manifest with loanwords: learn your spellings, here", type=Path, metavar="FILE"),
        option("--encoding", "of texts, such as cp949 (UTF-8, else as recognised)", default=""),
        option("--strict", "stop if anything that lies there would be left out", action="store_true"),
        option("--keep", "keep what does not help left-out sentences, too", action="store_true"),
        option("--seed", "of folds and the order of sentences (%(default)s)", type=seed, default=0),
        option("--language", "code such as ko (the device's, else the adapter's)", default=""),
    ),
    "transcribe": (commands.transcribe, option("file", type=Path), *SENDING),
    "record": (
        commands.record_speech,
        option("--seconds", "how long (%(default)s)", type=float, default=5.0),
        option("--output", "keep the recording here, send nothing", type=Path, metavar="FILE"),
        *SENDING,
    ),
    "queue": (
        commands.queue,
        option("files", type=Path, nargs="*", metavar="FILE"),
        option("--forget", "remove answers and refusals; what waits stays", action="store_true"),
        *ANSWER,
    ),
    "flush": (commands.flush,),
}


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
    for command, (run, *options) in COMMANDS.items():
        group, _, name = command.rpartition(" ")
        if group not in groups:
            under = groups[""].add_parser(group, help=f"store, show or export the {group}")
            groups[group] = under.add_subparsers(title="commands", required=True, metavar="COMMAND")
        text = run.__doc__
        added = groups[group].add_parser(
            name, help=text, description=text, parents=[common], allow_abbrev=False, aliases=EARLIER.get(name, ())
        )
        for flag, how in options:
            added.add_argument(flag, **how)
        added.set_defaults(run=run)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code; a typed error is printed. ``argv`` is without the program's name."""
    arguments = build_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that is not UTF-8 gets \uc624, which JSON reads too
            stream.reconfigure(errors="backslashreplace")
    try:
        return int(arguments.run(arguments) or DONE_CODE)
    except IdiolectError as error:
        if arguments.json:
            print(json.dumps({"error": str(error), "type": type(error).__name__}, ensure_ascii=False), flush=True)
        else:
            print(harmless(f"idiolect: {error}"), file=sys.stderr)
        return LATER_CODE if isinstance(error, UnreachableError) else ERROR_CODE
    except BrokenPipeError:  # whoever read the output has seen enough; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ERROR_CODE
    except OSError as error:
        text = f"idiolect: {error}: check the name, the disk, and who owns the device's folder"
        print(harmless(text), file=sys.stderr)
        return ERROR_CODE
    except KeyboardInterrupt:
        print("stopped; what waits in the queue is still there", file=sys.stderr)
        return 130
