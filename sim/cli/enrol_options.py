"""``idiolect enrol``: its options. What trains is loaded when it is run."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from clients.training.enrol_method import DEFAULT, EnrolMethod
from sim.cli.options import Json, with_fields


@dataclass(frozen=True)
class EnrolOptions:
    """Who enrols on which adapter, what trains, and what is kept."""

    source: Annotated[Path, Argument(help="Folder of a.wav with a.txt, or a manifest.")]
    adapter: Annotated[Path, Option(help="RUN/shared, or its like.")]
    out: Annotated[Path, Option(help="Folder of the personal adapter.")]
    part: Annotated[str, Option(help="What trains, such as A,B.")] = DEFAULT.part
    rate: Annotated[float, Option(help="Learning rate.", min=0.0, max=10.0)] = DEFAULT.rate
    gate: Annotated[str, Option(help="Gate to add, for --part gate.")] = DEFAULT.gate
    language: Annotated[str, Option(help="Such as ko; else the adapter's own.")] = ""
    lexicon: Annotated[Path | None, Option(help="Manifest with loanwords: learn spellings.")] = None
    encoding: Annotated[str, Option(help="Of the texts; else UTF-8.")] = ""
    keep: Annotated[bool, Option("--keep", help="Keep what does not help, too.")] = False
    seed: Annotated[int, Option(help="Of folds and the order of sentences.", min=0)] = 0

    def method(self) -> EnrolMethod:
        """What is trained, and how."""
        return replace(DEFAULT, part=self.part, rate=self.rate, gate=self.gate)


@with_fields
def enrol(options: EnrolOptions, as_json: Json = False) -> None:
    """Make a personal adapter from 1 to 40 recordings with their texts, and show what it changes on sentences left out of training.

    It is kept where those have a lower loss and no more errors. Gates in the shared adapter are another person's and not used.

    [bold]--part[/bold] is A, B, A,B, gate or gate_bias; B@decoder is B in the decoder alone.
    """
    from sim.cli.enrol import run_enrolment  # torch

    run_enrolment(options, as_json)
