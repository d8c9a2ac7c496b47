"""Which commands there are. Those whose modules take seconds to load are imported when they are run, not to list them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pkgutil import resolve_name
from typing import ClassVar

import click
import typer
from typer.core import TyperCommand, TyperGroup

from sim.cli.help import new_app


@dataclass(frozen=True)
class Late:
    """A command's line in the list, the panel that it stands in, and ``module:name`` of its function or ``typer.Typer``.

    Without a place the command is there already.
    """

    help: str
    place: str = ""
    panel: str = ""


BEGIN, TRAIN, USE, RESEARCH = "Begin", "Train", "Use what was trained", "Research"
COMMANDS = {
    "doctor": Late("Check this machine, and say what to do.", "sim.cli.doctor:doctor", BEGIN),
    "demo": Late("Compare all arms on six synthetic people.", panel=BEGIN),
    "status": Late("How far a run is: running, stopped or finished.", "sim.cli.status:status", BEGIN),
    "report": Late("Error rates of a run, and its page.", panel=BEGIN),
    "run": Late("Train and compare, on your corpus or a synthetic one.", panel=TRAIN),
    "import": Late("Turn a corpus into a manifest.", "sim.cli.importing:import_command", TRAIN),
    "synth": Late("Make people who mix two languages.", panel=TRAIN),
    "bases": Late("List the bases to start from.", panel=TRAIN),
    "algorithms": Late("List the algorithms, with their papers.", "sim.cli.algorithms:algorithms", TRAIN),
    "pretrain": Late("Pretrain a small Wav2Vec2-CTC as a base.", "sim.pretrain.command:pretrain", TRAIN),
    "enrol": Late("Make a person's adapter from a few recordings.", "sim.cli.enrol_options:enrol", USE),
    "transcribe": Late("Transcribe a recording with an adapter.", panel=USE),
    "info": Late("What an adapter is, and what of it is private.", panel=USE),
    "serve": Late("Serve one base to many people.", "sim.cli.serve_options:serve", USE),
    "token": Late("Make a bearer token for a server.", "sim.cli.token:token", USE),
    "device": Late("What a thin device does (needs no torch).", panel=USE),  # see entry.py
    "study": Late("Run a study and print its tables.", "sim.study.command:app", RESEARCH),
    "audit": Late("Measure what shared updates leak.", "sim.audit.command:audit", RESEARCH),
}
"""All commands in the order of the help."""


class LateGroup(TyperGroup):
    """A group whose commands are those of :attr:`late`, and any others that it was given."""

    late: ClassVar[Mapping[str, Late]] = COMMANDS

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names."""
        return [*self.late, *(name for name in super().list_commands(ctx) if name not in self.late)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or what stands for it in the list."""
        found, late = super().get_command(ctx, cmd_name), self.late.get(cmd_name)
        if late is None:
            return found
        command = found or TyperCommand(cmd_name, help=late.help, callback=lambda: None)
        command.short_help = late.help
        command.rich_help_panel = late.panel or None  # type: ignore[attr-defined]
        return command

    def load(self, name: str) -> click.Command:
        """The command ``name``, imported."""
        found = resolve_name(self.late[name].place)
        if isinstance(found, typer.Typer):
            return typer.main.get_command(found)
        alone = new_app()
        alone.command(name)(found)
        return typer.main.get_command(alone)

    def resolve_command(
        self, ctx: click.Context, args: Sequence[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is to be run, with its arguments."""
        if args and (late := self.late.get(args[0])) is not None and late.place:
            return args[0], self.load(args[0]), list(args[1:])
        try:
            return super().resolve_command(ctx, list(args))
        except click.UsageError as error:  # Typer's own suggestion knows only the commands that are imported
            close = get_close_matches(args[0], self.list_commands(ctx), n=1)
            if not close or "Did you mean" in error.message:
                raise
            raise click.UsageError(f"{error.message.rstrip('.')}. Did you mean {close[0]!r}?", ctx) from error
