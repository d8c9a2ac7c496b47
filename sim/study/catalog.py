"""The table of studies. A new one is one entry: a question, and cells of settings."""

from __future__ import annotations

from collections.abc import Iterable

from fl.core.rng import derive_generator
from fl.settings.names import ATTACKS, PERSONALIZATIONS, STRATEGIES, UNSIZED_METHODS
from fl.settings.setting import Value
from sim.study.plan import Cell, Plan

# Products of two settings would be 80 runs: the small size has one robust rule against one attack, and one that is not robust.
ROBUST_RULES = ("fedavg", "median", "trimmed-mean", "krum", "multi-krum", "bulyan", "norm-bound", "geometric-median")
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


def _repeats() -> Plan:
    """What no interval over sentences contains: the chance in training."""
    return Plan(
        "repeats",
        "How far apart are runs that differ in nothing but initialisation and order of batches?",
        (Cell("first", {}), *(Cell(f"again {k}", {}, k == 1, again=k) for k in range(1, 5))),
        "first",
        compared=("global", "personalized"),
    )


def _strategies() -> Plan:
    cells = tuple(
        Cell(name, {"strategy": name, **OWN_SPLIT.get(name, {})}, name not in ROBUST_RULES or name == "fedavg")
        for name in STRATEGIES
        if name not in ("krum", "bulyan")  # with few devices and no attack they have nothing to show
    )
    optimizers = tuple(
        Cell(name, {"server-optimizer": name}, name == "fedadam")
        for name in ("fedavgm", "fedadagrad", "fedyogi", "fedadam")
    )
    drift = (Cell("fedprox", {"proximal": 0.01}, False),)
    return Plan(
        "strategies",
        "Which way to aggregate low-rank factors is best, for the model of all and for the personal ones?",
        (*cells, *optimizers, *drift),
        "fedavg",
        compared=("global", "personalized"),
        sizes=GLOBAL_ALONE,
    )


def _personalization() -> Plan:
    # All share what the arm global of the baseline shares, so that is trained once.
    own: dict[str, Value] = {"arms": "personalized"}
    cells = (Cell(name, {"personalization": name, **own}) for name in PERSONALIZATIONS[1:])
    tuned: dict[str, Value] = {"arms": "global,global+finetune"}
    return Plan(
        "personalization",
        "Which way to a model of one's own is best?",
        (
            Cell("gates", {}),
            *cells,
            Cell("fedsa", {"split": "fedsa", "gate": "none", "private-share": 0.0, **own}),
            Cell("fine-tuned", tuned, compared=("global+finetune",)),
        ),
        "gates",
    )


def _robust() -> Plan:
    attacks = [name for name in ATTACKS if name != "none"]
    cells = [Cell("no attack", {"strategy": "fedavg"})]
    for rule in ROBUST_RULES:
        for attack in attacks:
            smoke = rule in ("fedavg", "median") and attack in ("scale", "label-swap")
            cells.append(Cell(f"{rule}, {attack}", {"strategy": rule, "attack": attack, "attacker-share": 0.2}, smoke))
    return Plan(
        "robust",
        "A fifth of the devices is hostile: which rule still gives a good model?",
        tuple(cells),
        "no attack",
        arms=("global",),
        compared=("global",),
        base={"devices": 10, "hostile-share": 0.2, "trim-share": 0.2},
        sizes={"smoke": {"devices": 5}},
    )


def _privacy() -> Plan:
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
    return Plan(
        "privacy",
        "What do noise and secure sums cost in recognition?",
        (Cell("plain", {}), *noisy, *others),
        "plain",
        compared=("global", "personalized"),
        sizes=GLOBAL_ALONE,
    )


def _compression() -> Plan:
    codecs = ("fp16", "int8", "int4", "top-k:0.1", "top-k:0.1+int8")
    cells = [Cell("fp32", {})]
    for codec in codecs:
        cells.append(Cell(codec, {"codec": codec}, codec in ("int8", "top-k:0.1")))
        if codec != "fp16":
            cells.append(Cell(f"{codec}, feedback", {"codec": codec, "error-feedback": True}, codec == "int8"))
    return Plan(
        "compression",
        "How many bytes can a device's update do without?",
        tuple(cells),
        "fp32",
        arms=("global",),
        compared=("global",),
    )


def _rank() -> Plan:
    ranks = (1, 2, 4, 8, 16, 32, 64)
    # alpha stays twice the rank, so that the scale of the update is the same for all.
    cells = [Cell(f"rank {r}", {"rank": r, "alpha": 2.0 * r}, r in (1, 8, 64)) for r in ranks]
    return Plan(
        "rank",
        "Which rank, with gates and without?",
        tuple(cells),
        "rank 8",
        compared=("global", "personalized"),
        axis="rank",
    )


def _budget() -> Plan:
    """LoRA in the arm ``global``, which is gateless, beside a smaller rank with gates in the arm ``personalized``."""
    return Plan(
        "budget",
        "At equal numbers of trained parameters, gates counted in: does Gated LoRA beat LoRA?",
        (
            Cell("590 thousand parameters", {"parameter-budget": 589_824}),  # ranks 8 and 5
            Cell("885 thousand parameters", {"parameter-budget": 884_736}, False),  # ranks 12 and 8
        ),
        "590 thousand parameters",
        compared=("global", "personalized"),
    )


def _sites() -> Plan:
    sites = ("encoder.self", "decoder.self", "decoder.cross", "ffn", "decoder.self,decoder.cross")
    default = "encoder.self,decoder.self,decoder.cross"
    gates = ("none", "hidden", "low-rank", "self", "cross", "scalar")
    return Plan(
        "sites",
        "Where do adapters sit best, and which gate?",
        (
            *(Cell(name.replace(",", " + "), {"sites": name}, name in ("encoder.self", "ffn")) for name in sites),
            Cell("all attention", {"sites": default}),
            *(
                Cell(f"gate {gate}", {"gate": gate, "private-learning-rate": rate}, gate == "low-rank")
                for gate, rate in zip(gates[1:], (7e-3, 3e-2, 7e-3, 7e-3, 3e-2), strict=True)
                if gate != "self"
            ),
        ),
        "all attention",
        compared=("global", "personalized"),
    )


def _adapters() -> Plan:
    """All trained on everybody's data in one place, at the parameters of LoRA of rank 8 where a method has a size to choose."""
    budget: dict[str, Value] = {"parameter-budget": 589_824}
    gated: dict[str, Value] = {"gated-arms": "all", **budget}
    return Plan(
        "adapters",
        "Gated LoRA against training from scratch, full fine-tuning and other small adapters",
        (
            Cell("lora", {"method": "lora", **budget}),
            *(
                Cell(f"gate {gate}", {"gate": gate, **gated}, gate == "self")
                for gate in ("self", "hidden", "low-rank", "cross")
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


def _rates() -> Plan:
    """What the study of adapters takes its learning rates from: people and sentences that no result uses."""
    budget: dict[str, Value] = {"parameter-budget": 589_824}
    rates: dict[str, tuple[float, ...]] = {
        "lora": (1e-3, 4e-3, 1.6e-2),
        "bottleneck": (1e-3, 4e-3, 1.6e-2),
        "prefix": (1e-3, 4e-3, 1.6e-2, 6.4e-2),
        "bitfit": (1e-3, 4e-3, 1.6e-2, 6.4e-2),
        "full": (1e-5, 4e-5, 8e-5, 1.6e-4, 6.4e-4),
    }
    cells = (
        Cell(
            f"{method} {rate:g}",
            {"method": method, "learning-rate": rate, **(budget if method not in UNSIZED_METHODS else {})},
            (method, rate) in (("lora", 4e-3), ("prefix", 1e-3)),
        )
        for method, several in rates.items()
        for rate in several
    )
    return Plan(
        "rates",
        "Which learning rate for which kind of adapter? (validation data)",
        tuple(cells),
        "lora 0.004",
        arms=("centralized",),
        compared=("centralized",),
        base={"cohort": 1, "final-split": "validation", "data-seed": 101},
    )


def _utterances() -> Plan:
    counts = (1, 2, 5, 10, 20, 40)
    return Plan(
        "utterances",
        "How much speech of one's own does it take?",
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
        axis="train-utterances",
    )


def _devices() -> Plan:
    return Plan(
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


def _switching() -> Plan:
    return Plan(
        "switching",
        "At which kind of switch, and how much switching, does it fail?",
        (Cell("default", {}),),
        "default",
        compared=("global", "personalized"),
        slices=("level", "mixing"),
    )


def _tasks() -> Plan:
    return Plan(
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


def _tokens() -> Plan:
    """An English recognizer that learns Hangul, and a CTC recognizer whose vocabulary has it."""
    forms = ("syllables", "jamo", "compat-jamo")
    english: dict[str, Value] = {"base": "whisper-tiny.en"}
    ctc: dict[str, Value] = {"base": SPANISH_CTC}
    return Plan(
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


def _ctc() -> Plan:
    """The small size adapts random weights: it shows that this runs without an hour of pretraining."""
    return Plan(
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


def _ctc_tokens() -> Plan:
    """All weights and thousands of sentences: new symbols of a CTC head want more than an adapter's few steps."""
    return Plan(
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


def _search() -> Plan:
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

    return Plan(
        "search",
        "Which hyperparameters matter? (validation data)",
        (Cell("default", {}), *(draw(i) for i in range(24))),
        "default",
        compared=("global", "personalized"),
        base={"final-split": "validation", "data-seed": 101},
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
PLANS: dict[str, Plan] = {plan.name: plan for plan in (make() for make in _MAKERS)}
