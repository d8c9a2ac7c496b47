"""Options that commands share. Settings: short options for those that people use, ``--set KEY=VALUE`` for all, and a file."""

import functools
import inspect
import logging
import os
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from fl.core.errors import ConfigError
from fl.core.machine import wait_briefly
from fl.core.printing import harmless
from fl.settings.config import SETTINGS, find_key, flat, load_config, make_config

DATA, MODEL, TRAINING, PRIVACY, RUN, HELP = "Data", "Model", "Training", "Privacy and size", "This run", "Help"
ALL = "all"
ERROR_CODE, NO_CODE, STOPPED_CODE = 1, 3, 130  # docs/exit-codes.md; 2 is Typer's own
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
JsonOfRun = Annotated[bool, typer.Option("--json", help="Print JSON for a script.", rich_help_panel=RUN)]


@dataclass(frozen=True)
class Short:
    """A setting with an option of its own: where it stands in the help, its line there, and whether only --help-all has it."""

    panel: str
    line: str
    rare: bool = False


SHORT = {
    "manifest": Short(DATA, "A corpus, manifest.jsonl; else synthetic"),
    "pair": Short(DATA, "Languages of synthetic speech"),
    "devices": Short(DATA, "Synthetic people who take part"),
    "new-people": Short(DATA, "Held-out speakers, who never train"),
    "sentences": Short(DATA, "Sentences of a synthetic person"),
    "strict": Short(DATA, "Stop at an utterance that cannot be used", rare=True),
    "task": Short(DATA, "speech, language-id, digits or no-op", rare=True),
    "base": Short(MODEL, "Name, folder or Hub name"),
    "language": Short(MODEL, "Such as ko; empty: that of the data"),
    "method": Short(MODEL, "Adapter, see docs/methods.md"),
    "rank": Short(MODEL, "Rank of the adapter"),
    "gate": Short(MODEL, "Gate, see docs/gated-lora.md", rare=True),
    "sites": Short(MODEL, "Where adapters sit", rare=True),
    "split": Short(MODEL, "What is private, see docs/gated-lora.md", rare=True),
    "algorithm": Short(TRAINING, "See idiolect algorithms"),
    "arms": Short(TRAINING, "What to compare"),
    "rounds": Short(TRAINING, "Federated rounds"),
    "local-steps": Short(TRAINING, "Steps of a device in a round"),
    "batch-size": Short(TRAINING, "Utterances in a step"),
    "learning-rate": Short(TRAINING, "Of the shared tensors"),
    "cohort": Short(TRAINING, "Devices in one computation; 0: auto", rare=True),
    "sample": Short(TRAINING, "Devices in a round: share or number", rare=True),
    "aggregation": Short(TRAINING, "device, or edge: a sum for each node", rare=True),
    "dp": Short(PRIVACY, "Noise: server, distributed, local"),
    "secure-sum": Short(PRIVACY, "pairwise: masked updates"),
    "codec": Short(PRIVACY, "Such as fp16, int8, top-k:0.1"),
    "seed": Short(RUN, "The same seed gives the same run"),
    "output": Short(RUN, "Run folder"),
}
"""The settings with an option of their own, by their short keys, in the order of the help."""


class HarmlessConsole(Console):
    """A console for texts of others, which are no markup and have no characters that steer a terminal."""

    def __init__(self, **more: Any) -> None:
        super().__init__(markup=False, **more)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable: all that is printed passes here, before colours become escape sequences."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)


class HarmlessFormatter(logging.Formatter):
    """A formatter whose messages have no characters that steer a terminal, and no line ends."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """A record's line."""
        return harmless(super().formatMessage(record), kept="")

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """The lines of a stack trace."""
        return harmless(super().formatException(ei))


class StderrHandler(logging.StreamHandler[TextIO]):
    """A handler for what is standard error as a record comes: bars replace it while they are shown, and lines go above them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        self.stream = sys.stderr
        super().emit(record)


def wide_console(width: int) -> Console:
    """Standard output, ``width`` characters wide where it is a file or a pipe, which have none: tables in it stay whole."""
    return HarmlessConsole(width=None if sys.stdout.isatty() else width)


def facts_table(rows: Iterable[tuple[str, str]], title: str | None = None) -> Table:
    """Names and texts, a line for each, for a person."""
    table = Table(title=title, box=None, show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, text)
    return table


def parse_value(text: str) -> object:
    """A value as TOML reads it (``5``, ``0.1``, ``true``, ``"text"``), and a text without quotes as itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def parse_settings(pairs: Sequence[str]) -> dict[str, object]:
    """``KEY=VALUE`` pairs; a number where a text is expected stays a text. :class:`ConfigError` for anything else."""
    values: dict[str, object] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(
                f"--set {pair!r} has no value: write --set KEY=VALUE, for instance --set train.local-steps=5"
            )
        full = find_key(key.strip())
        values[full] = text if SETTINGS[full].type is str else parse_value(text)
    return values


def _keyword(name: str, kind: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _short(name: str, defaults: Mapping[str, object]) -> inspect.Parameter:
    key, short = find_key(name), SHORT[name]
    default = defaults[key]
    default = ALL if default == SETTINGS["federation.arms"].default else default
    line = short.line if default in ("", False) else f"{short.line} \\[default: {default}]"
    option = typer.Option(f"--{name}", help=line, rich_help_panel=short.panel, show_default=False, hidden=short.rare)
    return _keyword(name.replace("-", "_"), SETTINGS[key].type | None, option)


def with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Give ``function(config, ...)`` the options ``--config FILE``, ``--set KEY=VALUE`` and those of :data:`SHORT`.

    What stands on the command line wins over the file, the file over the command's own ``start`` configuration.
    """
    signature = inspect.signature(function, eval_str=True).parameters
    own = [p for p in signature.values() if p.name not in ("config", "start")]
    start = signature["start"].default if "start" in signature else {}
    short = [name for name in SHORT if name.replace("-", "_") not in {p.name for p in own}]
    file_option = typer.Option("--config", help="TOML file of settings; options win.", rich_help_panel=RUN)
    set_option = typer.Option("--set", metavar="KEY=VALUE", help="Any setting. Repeatable.", rich_help_panel=RUN)
    defaults = flat(make_config(start))
    parameters = [
        *(_short(name, defaults) for name in short),
        _keyword("config", Path | None, file_option),
        _keyword("settings", list[str] | None, set_option),
        *own,
    ]

    def command(**values: Any) -> None:
        given = {name: values.pop(name.replace("-", "_")) for name in short}
        chosen = {find_key(name): value for name, value in given.items() if value is not None}
        chosen |= parse_settings(values.pop("settings") or ())
        path, base = values.pop("config"), make_config(start)
        function(config=make_config(chosen, load_config(path, base) if path is not None else base), **values)

    return _with_parameters(command, function, parameters)


def with_fields(function: Callable[..., None]) -> Callable[..., None]:
    """Give ``function(chosen, ...)`` an option for each field of the dataclass ``chosen``, as the field is annotated."""
    first, *own = inspect.signature(function, eval_str=True).parameters.values()
    fields = inspect.signature(first.annotation, eval_str=True).parameters

    def command(**values: Any) -> None:
        function(first.annotation(**{name: values.pop(name) for name in fields}), **values)

    return _with_parameters(command, function, [*fields.values(), *own])


def _with_parameters(
    command: Callable[..., None], function: Callable[..., None], parameters: list[inspect.Parameter]
) -> Callable[..., None]:
    """``command`` as Typer sees it: named and documented as ``function``, with ``parameters``."""
    functools.update_wrapper(command, function)
    keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    command.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def set_up_process(verbose: bool = False) -> None:
    """What a process of a command logs, what it does not, and how its threads wait; for those that a command starts too."""
    handler = StderrHandler()
    handler.setFormatter(HarmlessFormatter("%(levelname).1s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # PEFT asks transformers in an old way
    for noisy in ("httpx", "transformers", "ray", "flwr"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    wait_briefly()
