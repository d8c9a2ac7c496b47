"""What the study compares: each a way to make use of a person's own sentences."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from clients.training.enrol_method import DEFAULT, EnrolMethod
from fl.settings.fields import Value

Settings = tuple[tuple[str, Value], ...]  # of a run, by name

NEUTRAL, PROMPTS, ONE_SPELLING, CENTRALIZED = "neutral", "prompts", "one spelling", "centralized"


@dataclass(frozen=True)
class Contender:
    """One row of the tables.

    ``method`` trains a private part (None: nothing is trained), with ``prior`` under what the participants' own enrolments at that rate
    tell: a Gaussian, or so many ``directions`` in which they differ. Without ``prior`` the directions are those of the participants'
    updates of another round, as they lie beside a shared adapter.
    ``prompted`` puts the person's transcripts in front as Whisper's previous text, ``respelled`` writes loanwords in the output as
    the person's transcripts do. ``episodes`` starts from a shared part that was made to be adapted by this method, ``taught`` from
    one that was trained in another way: behind prompts, in one spelling for all, or with all data in one place.

    With ``federated`` settings nobody enrols: these are the arm ``personalized`` of a run with them, whose private parts train in
    every round, so that only participants can have one.
    """

    method: EnrolMethod | None = None
    prior: float = 0.0
    directions: int = 0
    prompted: bool = False
    respelled: bool = False
    episodes: bool = False
    taught: str = ""
    federated: Settings = ()


B = EnrolMethod("B", rate=4e-4)
DECODER_B = EnrolMethod("B@decoder", rate=8e-4)
DECODER_GATES = EnrolMethod("gate@decoder", rate=3e-3, gate="self")
GATES = EnrolMethod("gate", rate=3e-3, gate="self")
ONLY = 1e9  # a pull that leaves nothing beside the directions
DIRECTIONS = 16
DRAWN = Contender(replace(DECODER_B, shrinkage=250.0), prior=4e-4, directions=DIRECTIONS)
DRAWN_BY_UPDATES = Contender(DEFAULT, directions=DIRECTIONS)  # what idiolect enrol does
LONGER = replace(DRAWN_BY_UPDATES, method=replace(DEFAULT, grid=EnrolMethod.grid))  # twice the steps at most
CODE = Contender(replace(DECODER_B, rate=1e-3, shrinkage=ONLY), prior=4e-4, directions=DIRECTIONS)

CONTENDERS: Mapping[str, Contender] = {
    NEUTRAL: Contender(),
    CENTRALIZED: Contender(taught=CENTRALIZED),
    "spelling table": Contender(respelled=True),
    "centralized and spelling table": Contender(respelled=True, taught=CENTRALIZED),
    "prompt": Contender(prompted=True),
    "gates": Contender(GATES),
    "gate biases (LHUC)": Contender(EnrolMethod("gate_bias", rate=0.05, gate="self")),
    "A and B": Contender(EnrolMethod("A,B", rate=3e-4)),
    "A": Contender(EnrolMethod("A", rate=4e-4)),
    "B": Contender(B),
    "B of the decoder": Contender(DECODER_B),
    "A of the decoder": Contender(EnrolMethod("A@decoder", rate=4e-4)),
    "gates of the decoder": Contender(DECODER_GATES),
    "gate biases of the decoder (LHUC)": Contender(EnrolMethod("gate_bias@decoder", rate=0.1, gate="self")),
    "gates and B of the decoder": Contender(EnrolMethod("gate,B@decoder", rate=4e-4, gate="self")),
    "B of encoder and cross-attention": Contender(EnrolMethod("B@encoder", rate=4e-4)),
    "B of the encoder": Contender(EnrolMethod(r"B@model\.encoder", rate=4e-4)),
    "LoRA beside": Contender(EnrolMethod("A,B", rate=3e-4, beside=4)),
    "B, pulled": Contender(replace(B, shrinkage=20.0)),
    "B, learned prior": Contender(replace(B, rate=2e-4, shrinkage=20.0), prior=2e-4),
    "gates, learned prior": Contender(replace(GATES, shrinkage=2.0), prior=3e-3),
    "B, eigenvoices": Contender(replace(B, rate=1e-3, shrinkage=ONLY), prior=2e-4, directions=DIRECTIONS),
    "B, drawn": Contender(replace(B, shrinkage=250.0), prior=2e-4, directions=DIRECTIONS),
    "B of the decoder, learned prior": Contender(replace(DECODER_B, rate=4e-4, shrinkage=20.0), prior=4e-4),
    "B of the decoder, drawn": DRAWN,
    "B of the decoder, drawn by updates": DRAWN_BY_UPDATES,
    "B of the decoder, drawn by updates, 48 steps": LONGER,
    "B of the decoder, eigenvoices": CODE,
    "B, made to be adapted": Contender(replace(B, rate=2e-4), episodes=True),
    "B of the decoder, made to be adapted": Contender(replace(DECODER_B, rate=4e-4), episodes=True),
    "B and prompt": Contender(B, prompted=True),
    "trained with prompts": Contender(taught=PROMPTS),
    "prompt, trained with it": Contender(prompted=True, taught=PROMPTS),
    "B and prompt, trained with it": Contender(B, prompted=True, taught=PROMPTS),
    "B of the decoder and prompt, trained with it": Contender(DECODER_B, prompted=True, taught=PROMPTS),
    "B and spelling table": Contender(B, respelled=True),
    "B of the decoder and spelling table": Contender(DECODER_B, respelled=True),
    "gates of the decoder and spelling table": Contender(DECODER_GATES, respelled=True),
    "B of the decoder, drawn, and spelling table": replace(DRAWN, respelled=True),
    "B of the decoder, drawn by updates, and spelling table": replace(DRAWN_BY_UPDATES, respelled=True),
    "B of the decoder, eigenvoices, and spelling table": replace(CODE, respelled=True),
    "B of encoder and cross-attention and spelling table": Contender(
        EnrolMethod("B@encoder", rate=4e-4), respelled=True
    ),
    "prompt, trained with it, and spelling table": Contender(prompted=True, respelled=True, taught=PROMPTS),
    "trained in one spelling": Contender(taught=ONE_SPELLING),
    "spelling table, trained in one spelling": Contender(respelled=True, taught=ONE_SPELLING),
    "B of the decoder in one spelling, and spelling table": Contender(DECODER_B, respelled=True, taught=ONE_SPELLING),
}
"""Rates of searches (docs/results/enrol-methods.md); those of gate biases and A of all layers, and of eigenvoices, are from before them.

Sources: LHUC, Swietojanski and Renals 2016; Reptile, arXiv 1803.02999; eigenvoices, Kuhn et al. 2000."""

HEADLINE = (
    "spelling table",
    "B of the decoder",
    "B of the decoder, eigenvoices",
    "B of the decoder, drawn by updates",
    "B of the decoder, drawn by updates, and spelling table",
)
"""What README's table has: the default, what it is made of, and the least private numbers; all others are on its page."""

FEDERATED: Mapping[str, Contender] = {
    "FedPer": Contender(federated=(("algorithm", "fedper"), ("fedper.layers", 1))),
    "FedRep": Contender(federated=(("algorithm", "fedrep"), ("fedrep.layers", 1))),
    "Ditto": Contender(federated=(("algorithm", "ditto"),)),
    "mixture, after APFL": Contender(federated=(("algorithm", "mixture"), ("mixture.rate", 0.03))),
    "interpolation, after FedDPA": Contender(federated=(("algorithm", "interpolation"), ("interpolation.rate", 0.1))),
}
"""Of participants alone, who train their private parts in every round, with the layers, rates and pull of the search
(docs/results/federated.md)."""

RATES: Mapping[str, tuple[float, ...]] = {
    "gates": (1e-3, 3e-3, 1e-2),
    "gate biases (LHUC)": (0.02, 0.05, 0.1, 0.2),
    "A and B": (7e-5, 1.5e-4, 3e-4),
    "A": (1e-4, 2e-4, 4e-4, 8e-4),
    "B": (1e-4, 2e-4, 4e-4),
    "B of the decoder": (2e-4, 4e-4, 8e-4),
    "A of the decoder": (4e-4, 8e-4, 1.6e-3),
    "gates of the decoder": (1.5e-3, 3e-3, 6e-3, 1.2e-2),
    "gate biases of the decoder (LHUC)": (0.1, 0.2),
    "gates and B of the decoder": (4e-4, 8e-4),
    "B of encoder and cross-attention": (2e-4, 4e-4, 8e-4),
    "B of the encoder": (2e-4, 4e-4, 8e-4),
    "LoRA beside": (3e-4, 1e-3, 3e-3),
    "B, pulled": (2e-4, 4e-4),
    "B, learned prior": (2e-4, 4e-4),
    "gates, learned prior": (3e-3, 1e-2),
    "B, eigenvoices": (4e-4, 1e-3, 3e-3),
    "B, drawn": (2e-4, 4e-4),
    "B of the decoder, learned prior": (4e-4, 8e-4),
    "B of the decoder, eigenvoices": (4e-4, 1e-3, 3e-3),
    "B of the decoder, drawn": (4e-4, 8e-4),
    "B, made to be adapted": (1e-4, 2e-4, 4e-4),
    "B of the decoder, made to be adapted": (2e-4, 4e-4, 8e-4),
}
PULLS: Mapping[str, tuple[float, ...]] = {
    "gates and B of the decoder": (0.0, 20.0),
    "B, pulled": (20.0, 100.0),
    "B, learned prior": (20.0, 100.0),
    "gates, learned prior": (2.0, 10.0),
    "B, drawn": (50.0, 250.0),
    "B of the decoder, learned prior": (20.0, 100.0),
    "B of the decoder, drawn": (50.0, 250.0),
}

FEDERATED_GRID: Mapping[str, Mapping[str, Sequence[Value]]] = {
    "FedPer": {"fedper.layers": (1, 3, 6)},
    "FedRep": {"fedrep.layers": (1, 3, 6)},
    "Ditto": {"ditto.rate": (0.3, 1.0), "ditto.pull": (10.0, 100.0, 300.0)},
    "mixture, after APFL": {"mixture.rate": (0.03, 0.1, 0.3)},
    "interpolation, after FedDPA": {"interpolation.rate": (0.1, 0.3)},
}


def searched_federated() -> dict[str, Contender]:
    """Every point of the grids of what trains private parts in every round, and neutral to compare them with."""

    def points() -> Iterator[tuple[str, Contender]]:
        for name, grid in FEDERATED_GRID.items():
            first = FEDERATED[name].federated[:1]
            for values in product(*grid.values()):
                point = tuple(zip(grid, values, strict=True))
                told = ", ".join(f"{key.rpartition('.')[2]} {value:g}" for key, value in point)
                yield f"{name}, {told}", Contender(federated=first + point)

    return {NEUTRAL: CONTENDERS[NEUTRAL], **dict(points())}


def searched() -> dict[str, Contender]:
    """Every rate and pull of each trained contender, and neutral to compare them with."""
    found = {NEUTRAL: CONTENDERS[NEUTRAL]}
    for name, rates in RATES.items():
        contender = CONTENDERS[name]
        assert contender.method is not None
        for rate in rates:
            for pull in PULLS.get(name, (contender.method.shrinkage,)):
                told = f"{name} at {rate:g}" + (f", pull {pull:g}" if pull else "")
                found[told] = replace(contender, method=replace(contender.method, rate=rate, shrinkage=pull))
    return found


def small(contender: Contender) -> Contender:
    """The contender with so few steps that it only shows that it runs."""
    method = contender.method
    few = method and replace(method, grid=(0, 2, 4), steps=2, folds=2)
    return replace(contender, method=few, federated=contender.federated[:1])
