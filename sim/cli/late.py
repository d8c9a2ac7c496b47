"""Commands whose modules take seconds to load: they are imported when they are run, not to list them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pkgutil import resolve_name

import click
import typer
from typer.core import TyperCommand, TyperGroup

from sim.cli.options import new_app


@dataclass(frozen=True)
class Late:
    """``module:name`` of a function or of a ``typer.Typer`` of commands, and its line in the list."""

    place: str
    help: str


LATE = {
    "serve": Late("sim.cli.serve:serve", "Serve one frozen base to many people, each with an adapter of their own."),
    "token": Late("sim.cli.token:token", "Make a bearer token for a server."),
    "algorithms": Late("sim.cli.algorithms:algorithms", "List the algorithms: what each shares, keeps, and its paper."),
    "enrol": Late("sim.cli.enrol:enrol_command", "Make a personal adapter from a few recordings with their texts."),
    "import": Late(
        "sim.cli.importing:import_command", "Turn a corpus into a manifest; --list shows which and how to get them."
    ),
    "pretrain": Late(
        "sim.pretrain.command:pretrain", "Pretrain a small Wav2Vec2-CTC on synthetic speech in one language, as a base."
    ),
    "study": Late("sim.study.command:app", "Run a study and print its tables."),
    "audit": Late("sim.audit.command:audit", "Measure what shared updates leak: speakers, attributes, training data."),
    "device": Late("", "What a thin device does: keep its adapter, ask a server (no torch needed)."),  # see entry.py
}


def load(name: str) -> click.Command:
    """The command ``name`` of :data:`LATE`, imported."""
    found = resolve_name(LATE[name].place)
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    alone = new_app()
    alone.command(name)(found)
    return typer.main.get_command(alone)


class LateGroup(TyperGroup):
    """A group that also has the commands of :data:`LATE`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names."""
        return [*super().list_commands(ctx), *LATE]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or what stands for it in the list."""
        if cmd_name in LATE:
            return TyperCommand(cmd_name, help=LATE[cmd_name].help, callback=lambda: None)
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: Sequence[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is to be run, with its arguments."""
        if args and args[0] in LATE and LATE[args[0]].place:
            return args[0], load(args[0]), list(args[1:])
        return super().resolve_command(ctx, list(args))
