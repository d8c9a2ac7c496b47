"""The table of studies. A new one is one entry: a question, and cells of settings."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from fl.algorithms.base import Role
from fl.algorithms.personal.gates import Gates
from fl.algorithms.table import names_of
from fl.core.rng import derive_generator
from fl.methods.table import METHODS
from fl.settings.fields import Value
from fl.settings.names import ATTACKS
from sim.study.plan import Study
from sim.study.plan import StudyCell as Cell

# Products of two settings would be 80 runs: the small size has one robust rule against one attack, and one that is not robust.
ROBUST_RULES = ("fedavg", "median", "trimmed-mean", "krum", "multi-krum", "bulyan", "norm-bound", "geometric-median")
# Of the algorithms without an attack: not in the small size, or (None) nothing to show where few devices are all honest
PLACES: dict[str, bool | None] = {"krum": None, "bulyan": None} | dict.fromkeys(
    ("median", "trimmed-mean", "multi-krum", "norm-bound", "geometric-median"), False
)
SPANISH_CTC, KOREAN_CTC = "runs/pretrain/es", "runs/pretrain/ko"  # made by idiolect pretrain
GLOBAL_ALONE: dict[str, dict[str, Value]] = {"smoke": {"arms": "global"}}
OWN_SPLIT: dict[
    str, dict[str, Value]
] = {  # the arm global has no private part to leave out, and would be that of fedavg
    name: {"split": name, "gate": "none", "arms": "personalized"} for name in ("ffa", "fedsa")
}


def _cells(
    setting: str, values: Iterable[Value], smoke: Iterable[Value] | None = None, **others: Value
) -> tuple[Cell, ...]:
    """One cell for each value of one setting; only those in ``smoke`` belong to the small size, if given."""
    small = None if smoke is None else set(smoke)
    return tuple(
        Cell(f"{setting} {value}", {setting: value, **others}, small is None or value in small) for value in values
    )


def _repeats() -> Study:
    """What no interval over sentences contains: the chance in training."""
    return Study(
        "repeats",
        "How far apart are runs that differ in nothing but initialisation and order of batches?",
        (Cell("first", {}), *(Cell(f"again {k}", {}, k == 1, again=k) for k in range(1, 5))),
        "first",
        compared=("global", "personalized"),
    )


def _strategies() -> Study:
    cells = tuple(
        Cell(name, {"algorithm": name, **OWN_SPLIT.get(name, {})}, smoke)
        for name in names_of(Role.AGGREGATION)
        if (smoke := PLACES.get(name, True)) is not None
    )
    optimizers = tuple(
        Cell(name, {"server-optimizer": name}, name == "fedadam")
        for name in ("fedavgm", "fedadagrad", "fedyogi", "fedadam")
    )
    drift = (Cell("fedprox", {"algorithm": "fedprox"}, False),)
    return Study(
        "strategies",
        "Which aggregation of low-rank factors is best, for the shared model and for the personalized ones?",
        (*cells, *optimizers, *drift),
        "fedavg",
        compared=("global", "personalized"),
        sizes=GLOBAL_ALONE,
    )


def _personalization() -> Study:
    # All share what the arm global of the baseline shares, so that is trained once.
    own: dict[str, Value] = {"arms": "personalized"}
    cells = (Cell(name, {"algorithm": name, **own}) for name in names_of(Role.PERSONALIZATION) if name != Gates.name)
    tuned: dict[str, Value] = {"arms": "global,global+finetune"}
    return Study(
        "personalization",
        "Which personalization is best?",
        (
            Cell("gates", {}),
            *cells,
            Cell("fedsa", {"split": "fedsa", "gate": "none", "private-share": 0.0, **own}),
            Cell("fine-tuned", tuned, compared=("global+finetune",)),
        ),
        "gates",
    )


def _robust() -> Study:
    attacks = [name for name in ATTACKS if name != "none"]
    small = dict.fromkeys(product(("fedavg", "median"), ("scale", "label-swap")), True)
    cells = [Cell("no attack", {"algorithm": "fedavg"})]
    for rule, attack in product(ROBUST_RULES, attacks):
        settings: dict[str, Value] = {"algorithm": rule, "attack": attack, "attacker-share": 0.2}
        cells.append(Cell(f"{rule}, {attack}", settings, small.get((rule, attack), False)))
    return Study(
        "robust",
        "A fifth of the devices is hostile: which rule still gives a good model?",
        tuple(cells),
        "no attack",
        arms=("global",),
        compared=("global",),
        base={"devices": 10, "hostile-share": 0.2, "trim-share": 0.2},
        sizes={"smoke": {"devices": 5}},
    )


def _privacy() -> Study:
    noisy = [
        Cell(
            f"{where}, z = {z:g}",
            {"dp": where, "noise-multiplier": z, "epsilon-budget": 1e6, "update-norm": 1.0},
            z in (0.1, 1.0) and where == "server",
        )
        for where in ("server", "local")
        for z in (0.01, 0.1, 0.3, 1.0)
    ]
    others = (
        Cell("secure sum", {"secure-sum": "pairwise"}),
        # What of its cost is the clipping that it asks for, 1.0 by default.
        Cell("secure sum, norm 16", {"secure-sum": "pairwise", "update-norm": 16.0}, False),
        Cell("secure sum, norm 4", {"secure-sum": "pairwise", "update-norm": 4.0}, False),
        Cell(
            "secure sum and noise, z = 0.1",
            {"secure-sum": "pairwise", "dp": "distributed", "noise-multiplier": 0.1, "epsilon-budget": 1e6},
        ),
    )
    return Study(
        "privacy",
        "What do noise and secure sums cost in recognition?",
        (Cell("plain", {}), *noisy, *others),
        "plain",
        compared=("global", "personalized"),
        sizes=GLOBAL_ALONE,
    )


def _compression() -> Study:
    codecs = ("fp16", "int8", "int4", "top-k:0.1", "top-k:0.1+int8")
    cells = [Cell("fp32", {})]
    for codec in codecs:
        cells.append(Cell(codec, {"codec": codec}, codec in ("int8", "top-k:0.1")))
        if codec != "fp16":
            cells.append(Cell(f"{codec}, feedback", {"codec": codec, "error-feedback": True}, codec == "int8"))
    return Study(
        "compression",
        "How many bytes can a device's update do without?",
        tuple(cells),
        "fp32",
        arms=("global",),
        compared=("global",),
    )


def _rank() -> Study:
    ranks = (1, 2, 4, 8, 16, 32, 64)
    # alpha stays twice the rank, so that the scale of the update is the same for all.
    cells = [Cell(f"rank {r}", {"rank": r, "alpha": 2.0 * r}, r in (1, 8, 64)) for r in ranks]
    return Study(
        "rank",
        "Which rank, with gates and without?",
        tuple(cells),
        "rank 8",
        compared=("global", "personalized"),
    )


def _budget() -> Study:
    """LoRA in the arm ``global``, which is gateless, beside a smaller rank with gates in the arm ``personalized``."""
    return Study(
        "budget",
        "At equal numbers of trained parameters, gates counted in: does Gated LoRA beat LoRA?",
        (
            Cell("590 thousand parameters", {"parameter-budget": 589_824}),  # ranks 8 and 5
            Cell("885 thousand parameters", {"parameter-budget": 884_736}, False),  # ranks 12 and 8
        ),
        "590 thousand parameters",
        compared=("global", "personalized"),
    )


def _sites() -> Study:
    sites = ("encoder.self", "decoder.self", "decoder.cross", "ffn", "decoder.self,decoder.cross")
    default = "encoder.self,decoder.self,decoder.cross"
    gates = (("hidden", 7e-3, False), ("low-rank", 3e-2, True), ("cross", 7e-3, False), ("scalar", 3e-2, False))
    return Study(
        "sites",
        "Where do adapters sit best, and which gate?",
        (
            *(Cell(name.replace(",", " + "), {"sites": name}, name in ("encoder.self", "ffn")) for name in sites),
            Cell("all attention", {"sites": default}),
            *(
                Cell(f"gate {gate}", {"gate": gate, "private-learning-rate": rate}, smoke)
                for gate, rate, smoke in gates
            ),
        ),
        "all attention",
        compared=("global", "personalized"),
    )


def _adapters() -> Study:
    """All trained on everybody's data in one place, at the parameters of LoRA of rank 8 where a method has a size to choose."""
    budget: dict[str, Value] = {"parameter-budget": 589_824}
    gated: dict[str, Value] = {"gated-arms": "all", **budget}
    return Study(
        "adapters",
        "Gated LoRA against training from scratch, full fine-tuning and other small adapters",
        (
            Cell("lora", {"method": "lora", **budget}),
            *(
                Cell(f"gate {gate}", {"gate": gate, **gated}, smoke)
                for gate, smoke in (("self", True), ("hidden", False), ("low-rank", False), ("cross", False))
            ),
            Cell("scalar gate", {"method": "scalar-gate", **gated}),
            Cell("bottleneck", {"method": "bottleneck", **budget}),
            Cell("prefix", {"method": "prefix", "learning-rate": 0.064, **budget}),  # the others: study rates
            Cell("dora", {"method": "dora", **budget}, False),
            Cell("bitfit", {"method": "bitfit"}),
            # Twice the rate is better in 40 steps, but in 144 one run of three breaks in its first round.
            Cell("full", {"method": "full", "learning-rate": 8e-5}),
            Cell("full, 1.6e-4", {"method": "full", "learning-rate": 1.6e-4}, False),
            Cell("scratch", {"method": "scratch", "learning-rate": 1e-3}),
        ),
        "lora",
        arms=("centralized",),
        compared=("centralized",),
        base={"cohort": 1},
    )


def _rates() -> Study:
    """What the study of adapters takes its learning rates from: people and sentences that no result uses."""
    budget: dict[str, Value] = {"parameter-budget": 589_824}
    rates: dict[str, tuple[float, ...]] = {
        "lora": (1e-3, 4e-3, 1.6e-2),
        "bottleneck": (1e-3, 4e-3, 1.6e-2),
        "prefix": (1e-3, 4e-3, 1.6e-2, 6.4e-2),
        "bitfit": (1e-3, 4e-3, 1.6e-2, 6.4e-2),
        "full": (1e-5, 4e-5, 8e-5, 1.6e-4, 6.4e-4),
    }
    small = {"lora": 4e-3, "prefix": 1e-3}
    cells = (
        Cell(
            f"{method} {rate:g}",
            {"method": method, "learning-rate": rate, **(budget if METHODS[method].sized else {})},
            small.get(method) == rate,
        )
        for method, several in rates.items()
        for rate in several
    )
    return Study(
        "rates",
        "Which learning rate for which kind of adapter? (validation data)",
        tuple(cells),
        "lora 0.004",
        arms=("centralized",),
        compared=("centralized",),
        base={"cohort": 1, "final-split": "validation", "data.seed": 101},
    )


def _utterances() -> Study:
    counts = (1, 2, 5, 10, 20, 40)
    return Study(
        "utterances",
        "How much speech of a person does personalization need?",
        (
            # Whoever says nothing gets what the others' speech made: neutral, the shared part without gates.
            Cell(
                "none",
                {"new-people": 6, "arms": "global,personalized,neutral"},
                False,
                compared=("global", "neutral"),
                new_people=True,
            ),
            *_cells("train-utterances", counts, smoke=(1, 5)),
            Cell("all", {}),
        ),
        "all",
        compared=("global", "personalized"),
        sizes=GLOBAL_ALONE,
    )


def _devices() -> Study:
    return Study(
        "devices",
        "How many people, and how many of them in a round?",
        (
            *_cells("devices", (2, 4, 6, 12, 24), smoke=(2,)),
            *_cells("sample", (0.25, 0.5), smoke=(0.5,)),
            Cell("default", {}),
        ),
        "default",
        compared=("global", "personalized"),
        sizes=GLOBAL_ALONE,
    )


def _switching() -> Study:
    return Study(
        "switching",
        "At which kind of switch, and how much switching, does it fail?",
        (Cell("default", {}),),
        "default",
        compared=("global", "personalized"),
        slices=("level", "mixing"),
    )


def _tasks() -> Study:
    return Study(
        "tasks",
        "The same adapters, split, clients and strategies on text and on images",
        (
            Cell("language-id", {"task": "language-id"}),
            Cell("digits", {"task": "digits"}),
            Cell("speech", {}),
        ),
        "language-id",
        arms=("zero-shot", "local", "global", "personalized"),
        compared=("zero-shot", "local", "global", "personalized"),
    )


def _tokens() -> Study:
    """An English recognizer that learns Hangul, and a CTC recognizer whose vocabulary has it."""
    forms = ("syllables", "jamo", "compat-jamo")
    english: dict[str, Value] = {"base": "whisper-tiny.en"}
    ctc: dict[str, Value] = {"base": SPANISH_CTC}
    return Study(
        "tokens",
        "In which symbols is Korean best learnt: bytes, syllables, U+11xx or U+31xx jamo?",
        (
            Cell("whisper-tiny.en, bytes", english),
            *(Cell(f"whisper-tiny.en, {form}", {**english, "tokens": form}) for form in forms),
            *(Cell(f"ctc, {form}", {**ctc, "tokens": form}, False) for form in forms),
        ),
        "whisper-tiny.en, bytes",
        arms=("global",),
        compared=("global",),
    )


def _ctc() -> Study:
    """The small size adapts random weights: it shows that this runs without an hour of pretraining."""
    return Study(
        "ctc",
        "Adapting a pretrained Wav2Vec2-CTC against training it from scratch",
        (
            Cell("full", {"method": "full", "learning-rate": 1e-4}),
            Cell("scratch", {"method": "scratch", "learning-rate": 5e-4}),
            Cell("lora", {"method": "lora"}),
            Cell("gate self", {"gated-arms": "all"}),
        ),
        "full",
        arms=("centralized",),
        compared=("centralized",),
        base={"base": KOREAN_CTC, "cohort": 1, "sites": "encoder.self,ffn"},
        sizes={"smoke": {"base": "random:wav2vec2-small"}},
    )


def _ctc_tokens() -> Study:
    """All weights and thousands of sentences: new symbols of a CTC head want more than an adapter's few steps."""
    return Study(
        "ctc-tokens",
        "In which symbols does a Spanish CTC recognizer best learn Korean?",
        (
            Cell("syllables", {"tokens": "syllables"}),
            Cell("jamo", {"tokens": "jamo"}),
            Cell("compat-jamo", {"tokens": "compat-jamo"}, False),
        ),
        "syllables",
        arms=("centralized",),
        compared=("centralized",),
        base={"base": SPANISH_CTC, "cohort": 1, "sites": "encoder.self,ffn", "method": "full", "learning-rate": 5e-4},
        sizes={
            "smoke": {"base": "random:wav2vec2-small"},
            "short": {"local-steps": 150, "batch-size": 1},
            "full": {"local-steps": 200},
        },
    )


def _search() -> Study:
    """Random search (Bergstra and Bengio 2012) on validation data of a population that no result uses."""
    generator = derive_generator(101, "search")

    def draw(i: int) -> Cell:
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
        return Cell(f"draw {i + 1}", settings, int(settings["batch-size"]) * int(settings["local-steps"]) <= 2)

    return Study(
        "search",
        "Which hyperparameters matter? (validation data)",
        (Cell("default", {}), *(draw(i) for i in range(24))),
        "default",
        compared=("global", "personalized"),
        base={"final-split": "validation", "data.seed": 101},
        drawn=True,
    )


_MAKERS = (
    _repeats,
    _adapters,
    _rates,
    _rank,
    _budget,
    _sites,
    _tokens,
    _ctc,
    _ctc_tokens,
    _tasks,
    _search,
    _utterances,
    _switching,
    _devices,
    _strategies,
    _personalization,
    _robust,
    _privacy,
    _compression,
)
STUDIES: dict[str, Study] = {study.name: study for study in (make() for make in _MAKERS)}
