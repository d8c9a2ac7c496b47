"""The studies: each is a file of ``plans``, a question and cells of settings. Four have cells that are made here."""

import tomllib
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

from pydantic import TypeAdapter

from fl.algorithms.base import Role
from fl.algorithms.personal.gates import Gates
from fl.algorithms.table import names_of
from fl.core.rng import derive_generator
from fl.settings.fields import Value
from fl.settings.names import ATTACKS, NONE
from sim.study.plan import Study
from sim.study.plan import StudyCell as Cell

PLANS = Path(__file__).parent / "plans"
# Products of two settings would be 80 runs: the small size has one robust rule against one attack, and one that is not robust.
ROBUST_RULES = ("fedavg", "median", "trimmed-mean", "krum", "multi-krum", "bulyan", "norm-bound", "geometric-median")
# Of the algorithms without an attack: not in the small size, or (None) nothing to show where few devices are all honest
PLACES: dict[str, bool | None] = {**dict.fromkeys(ROBUST_RULES, False), "fedavg": True, "krum": None, "bulyan": None}
OWN_SPLIT: dict[str, dict[str, Value]] = {
    # the arm global has no private part to leave out, and would be that of fedavg
    name: {"split": name, "gate": "none", "arms": "personalized"}
    for name in ("ffa", "fedsa")
}


def _strategies() -> Iterator[Cell]:
    for name in names_of(Role.AGGREGATION):
        if (smoke := PLACES.get(name, True)) is not None:
            yield Cell(name, {"algorithm": name, **OWN_SPLIT.get(name, {})}, smoke)
    for name in ("fedavgm", "fedadagrad", "fedyogi", "fedadam"):
        yield Cell(name, {"server-optimizer": name}, name == "fedadam")
    yield Cell("fedprox", {"algorithm": "fedprox"}, False)


def _personalization() -> Iterator[Cell]:
    # All share what the arm global of the baseline shares, so that is trained once.
    own: dict[str, Value] = {"arms": "personalized"}
    yield Cell("gates", {"gate": "self"})
    for name in names_of(Role.PERSONALIZATION):
        if name != Gates.name:
            yield Cell(name, {"algorithm": name, **own})
    yield Cell("fedsa", {"split": "fedsa", "gate": "none", "private-share": 0.0, **own})
    yield Cell("fine-tuned", {"arms": "global,global+finetune"}, compared=("global+finetune",))


def _robust() -> Iterator[Cell]:
    yield Cell("no attack", {"algorithm": "fedavg"})
    small = [*product(("fedavg", "median"), ("scale", "label-swap"))]
    for rule, attack in product(ROBUST_RULES, (name for name in ATTACKS if name != NONE)):
        settings: dict[str, Value] = {"algorithm": rule, "attack": attack, "attacker-share": 0.2}
        yield Cell(f"{rule}, {attack}", settings, (rule, attack) in small)


def _search() -> Iterator[Cell]:
    yield Cell("default", {})
    generator = derive_generator(101, "search")
    for i in range(24):
        settings: dict[str, Value] = {
            "learning-rate": float(f"{10 ** generator.uniform(-3.3, -1.7):.2g}"),
            "private-learning-rate": float(f"{10 ** generator.uniform(-3.3, -1.3):.2g}"),
            "batch-size": int(generator.choice([1, 2, 4])),
            "local-steps": int(generator.choice([2, 5, 10])),
            "private-share": float(generator.choice([0.125, 0.25, 0.5])),
            "schedule": str(generator.choice(["constant", "cosine"])),
            "spec-augment": float(generator.choice([0.0, 0.5, 1.0])),
            "speed-perturbation": float(generator.choice([0.0, 0.1])),
            "noise-snr": float(generator.choice([0.0, 10.0])),
        }
        yield Cell(f"draw {i + 1}", settings, int(settings["batch-size"]) * int(settings["local-steps"]) <= 2)


_CELLS: dict[str, Callable[[], Iterator[Cell]]] = {
    "strategies": _strategies,
    "personalization": _personalization,
    "robust": _robust,
    "search": _search,
}


def read_study(path: Path) -> Study:
    """The study of a file, named as it is; what is no field of :class:`Study` or no type of it is refused."""
    made = {"cells": tuple(_CELLS[path.stem]())} if path.stem in _CELLS else {}
    return TypeAdapter(Study).validate_python({"name": path.stem, **tomllib.loads(path.read_text("utf-8")), **made})


STUDIES = {path.stem: read_study(path) for path in sorted(PLANS.glob("*.toml"))}
