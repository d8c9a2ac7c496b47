"""How the help of a command looks: a line for each option, in panels, the rare ones behind ``--help-all``."""

from collections.abc import Callable
from typing import Any, TypeVar

import click
import typer
from rich.padding import Padding
from typer import rich_utils
from typer.core import TyperArgument, TyperCommand, TyperOption
from typer.models import ArgumentInfo
from typer.utils import get_params_from_function

from fl.settings.config import SETTINGS
from sim.cli.options import HELP, wide_console

Command = TypeVar("Command", bound=Callable[..., Any])


class HelpCommand(TyperCommand):
    """A command whose help has a line for each option; those that few people need are shown by ``--help-all``."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        told = _argument_help(self.callback) if self.callback is not None else {}
        for parameter in self.params:
            if isinstance(parameter, TyperArgument):
                parameter.help = parameter.help or told.get(parameter.name or "")
            if isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType):
                parameter.metavar = parameter.metavar or "N"
        if any(getattr(parameter, "hidden", False) for parameter in self.params):
            self.params.append(_help_all_option())

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """``--help``, in the last panel where there are several."""
        option = super().get_help_option(ctx)
        if option is not None and any(getattr(parameter, "rich_help_panel", None) for parameter in self.params):
            option.rich_help_panel = HELP  # type: ignore[attr-defined]
        return option

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help, without the ranges of numbers: a message names the range where a number is out of it."""
        rich_utils.RANGE_STRING = ""
        super().format_help(ctx, formatter)


def _argument_help(callback: Callable[..., Any]) -> dict[str, str | None]:
    """What arguments are: click 8.5 forgets the help that Typer 0.20 gives them."""
    parameters = get_params_from_function(callback).items()
    return {name: each.default.help for name, each in parameters if isinstance(each.default, ArgumentInfo)}


def _help_all_option() -> TyperOption:
    def show(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            for each in ctx.command.params:
                each.hidden = False  # type: ignore[attr-defined]
            print(ctx.get_help())
            console = wide_console(120)
            console.print("All settings with their defaults, for --set KEY=VALUE or a TOML file:\n", highlight=False)
            for key, row in SETTINGS.items():
                console.print(f"{key} = {row.default!r}", style="bold", highlight=False)
                console.print(Padding(f"{row.help} [{row.allowed}]", (0, 0, 0, 4)), highlight=False)
            raise typer.Exit

    return TyperOption(
        param_decls=["--help-all"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show all options and settings.",
        rich_help_panel=HELP,
    )


class App(typer.Typer):
    """A group whose commands are :class:`HelpCommand` s."""

    def command(
        self, name: str | None = None, *, cls: type[TyperCommand] | None = None, **more: Any
    ) -> Callable[[Command], Command]:
        """Register a command, as Typer does."""
        return super().command(name, cls=cls or HelpCommand, **more)


def new_app(*, add_completion: bool = False, **more: Any) -> App:
    """A group of commands with Rich's markup in its help, and ordinary stack traces."""
    return App(rich_markup_mode="rich", add_completion=add_completion, pretty_exceptions_enable=False, **more)
