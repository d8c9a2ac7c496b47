"""The tables of settings that no algorithm owns. A table is owned by what reads it: its options stand in its own file."""

from collections.abc import Iterable
from typing import Annotated

from fl.adapters.gates.table import GATES
from fl.methods.table import METHODS
from fl.settings import names
from fl.settings.fields import Table, Words, one_of, setting


class BaseTable(Table):
    """The frozen model and how speech enters it."""

    name: str = setting(
        "whisper-base", "the base: a directory, a Hub name, whisper-base, whisper-tiny.en, random:<architecture>"
    )
    compute: Annotated[str, one_of("auto", "cpu", "cuda")] = setting(
        "auto", "where it computes; auto takes a GPU if there is one"
    )
    precision: Annotated[str, one_of("auto", "float32", "bf16")] = setting(
        "auto",
        "of the frozen weights and activations; auto takes bf16 on a GPU or a processor with AMX tiles; a run keeps it",
    )
    tokens: Annotated[str, Words(lambda: names.TOKENS)] = setting(
        names.OWN,
        "what Korean is written in: the base's own tokens, or new ones that are trained and shared with the adapter",
    )
    window: Annotated[str, one_of("trimmed", "full")] = setting(
        "trimmed", "audio at its own length plus a margin, or zero-padded to 30 s"
    )
    language: str = setting("", "language, e.g. ko, ko-KR or Korean; empty takes the matrix language of the data")


class AdapterTable(Table):
    """The Gated LoRA adapter and which part of it is shared."""

    method: Annotated[str, Words(lambda: METHODS)] = setting(
        "gated-lora", "what is trained, and how it changes the base; see docs/methods.md"
    )
    rank: int = setting(8, "rank of A and B, width of a bottleneck, length of a prefix", low=1, high=names.MAX_RANK)
    parameter_budget: int = setting(
        0, "chooses the rank that best matches this number of trained parameters; alpha / rank is kept; 0: off", low=0
    )
    alpha: float = setting(16.0, "the update is scaled by alpha / rank", low=1e-6)
    gate: Annotated[str, Words(lambda: GATES)] = setting(
        names.NONE, "what gates the low-rank path of method gated-lora, and is then personal; see docs/gated-lora.md"
    )
    gated_arms: Annotated[str, one_of("personalized", "all")] = setting(
        "personalized", "which arms have the gate: the personalized one, beside arms of plain LoRA, or all"
    )
    prefix_gate: bool = setting(True, "method prefix: it enters through a gate that starts at zero, or as in the paper")
    sites: Annotated[str, Words(lambda: names.SITES, several=True)] = setting(
        "encoder.self,decoder.self,decoder.cross", "where adapters sit"
    )
    split: str = setting("gates", "gates, fedsa, ffa, all-shared, all-private or layers:<pattern>")
    device_ranks: str = setting(
        "", "ranks with commas between, at most rank: each device has one, drawn by the seed; empty gives all rank"
    )


def _voices() -> Iterable[str]:
    from fl.data.synthetic.engines import ENGINES

    return ENGINES


class SyntheticTable(Table):
    """The synthetic population that stands in for a manifest."""

    pair: str = setting("ko-en", "language pair")
    sentences: int = setting(120, "sentences of each person", low=1, high=100_000)
    new_people_sentences: int = setting(0, "sentences of each held-out speaker; 0: as many", low=0, high=100_000)
    voices: Annotated[str, Words(_voices)] = setting("espeak", "who speaks: espeak, or neural for natural voices")
    matched: bool = setting(False, "people come in pairs who sound alike and write the opposite way")
    traits: str = setting(
        "", "what else people differ in, separated by commas: accent, numbers, spacing, fillers, names, jargon"
    )


class DataTable(Table):
    """Whose speech: a manifest, or a synthetic population made on the spot."""

    manifest: str = setting(
        "", "absolute path of a manifest.jsonl; own: each deployed device names its own; empty: a synthetic population"
    )
    strict: bool = setting(False, "stop where an utterance cannot be used, instead of leaving it out and naming it")
    devices: int = setting(6, "devices that take part", low=1, high=1_000_000)
    new_people: int = setting(2, "held-out speakers: people who never take part in training", low=0, high=1_000_000)
    validation_share: float = setting(0.1, "share of a device's utterances for validation", low=0.0, high=0.9)
    test_share: float = setting(0.15, "share of a device's utterances for testing", low=0.0, high=0.9)
    new_people_tests: int = setting(12, "sentences on which a held-out speaker is tested, at most", low=1, high=100_000)
    train_utterances: int = setting(
        0, "training utterances of a device that are used, at most; 0 uses all", low=0, high=1_000_000
    )
    seed: int = setting(0, "seed of the population and of its division; 0 takes the run's seed", low=0)
    synthetic: SyntheticTable = SyntheticTable()


class AugmentationTable(Table):
    """How training speech is varied."""

    spec_augment: float = setting(
        0.0, "SpecAugment: width of masked bands and spans, as a share of its policies", low=0.0, high=1.0
    )
    speed_perturbation: float = setting(
        0.0, "training speech is played up to this share faster or slower; 0.1 is usual", low=0.0, high=0.5
    )
    noise_snr: float = setting(
        0.0, "dB of training speech over white noise, drawn between this and 20 more; 0 adds none", low=0.0, high=100.0
    )


class TrainTable(Table):
    """Local training."""

    local_steps: int = setting(12, "optimizer steps of a device in a round", low=1, high=100_000)
    batch_size: int = setting(2, "utterances in a local step", low=1, high=4096)
    learning_rate: float = setting(4e-3, "learning rate of shared tensors", low=0.0, high=1.0)
    local_rate: float = setting(
        0.125, "learning rate of the arm local, as a multiple of learning-rate", low=0.0, high=100.0
    )
    weight_decay: float = setting(0.0, "decoupled weight decay of shared tensors", low=0.0, high=1.0)
    clipping_norm: float = setting(
        1.0, "largest gradient norm of a step, for shared and for private tensors each", low=1e-9
    )
    schedule: Annotated[str, one_of("constant", "linear", "cosine")] = setting(
        "cosine", "learning rate over the rounds"
    )
    cohort: int = setting(
        0, "devices that train in one computation; 0 as many as fill 6 rows of a step", low=0, high=100_000
    )
    augmentation: AugmentationTable = AugmentationTable()


class FederationTable(Table):
    """Arms, rounds, sampling and what is evaluated when."""

    arms: Annotated[str, Words(lambda: names.ARMS, several=True)] = setting(
        ",".join(names.ARMS), "what to train and compare"
    )
    rounds: int = setting(12, "federated rounds", low=1, high=100_000)
    sample: float = setting(
        1.0, "devices that train in a round: up to 1 a share of them, above 1 their number", low=1e-9, high=1_000_000
    )
    aggregation: Annotated[str, one_of(names.DEVICE, names.EDGE)] = setting(
        names.DEVICE, "whether a node returns each device's update, or one weighted sum over its devices"
    )
    evaluate_every: int = setting(4, "rounds between evaluations on validation data; 0 for never", low=0, high=100_000)
    final_split: Annotated[str, one_of("test", "validation")] = setting(
        "test", "data of the final comparison; validation while settings are being chosen"
    )
    beams: int = setting(1, "beam width of decoding", low=1, high=16)
    round_timeout: float = setting(3600.0, "seconds to wait for the devices of a round", low=1.0)
    max_examples: int = setting(
        1000, "training examples of a device that count in a mean, at most, whatever it says; 0 believes all", low=0
    )
    device_keys: str = setting(
        "", "path of a file at the aggregator: each device's id and its SuperNode's public key; others are left out"
    )


class ServerOptimizerTable(Table):
    """The optimizer that takes the step towards the aggregate (Reddi et al. 2021)."""

    name: Annotated[str, Words(lambda: names.SERVER_OPTIMIZERS)] = setting(names.NONE, "which one takes the step")
    rate: float = setting(
        0.0, "its learning rate; 0 takes 1 for fedavgm, 0.01 for fedadagrad, 0.003 for the others", low=0.0, high=100.0
    )
    momentum: float = setting(
        0.9, "momentum (beta) of fedavgm, fedyogi and fedadam; fedadagrad has none", low=0.0, high=0.9999
    )


class AttackTable(Table):
    """Hostile devices, for studies."""

    name: Annotated[str, Words(lambda: names.ATTACKS)] = setting(
        names.NONE, "what hostile devices do; only in a simulation, and loudly logged"
    )
    attacker_share: float = setting(
        0.2, "share of the devices that are hostile, rounded up, drawn by the seed", low=1e-9, high=1.0
    )

    @property
    def swaps_labels(self) -> bool:
        """Whether it is an attack on data."""
        return self.name == names.LABEL_SWAP

    @property
    def attacks_updates(self) -> bool:
        """Whether the aggregator's part of a simulation replaces updates."""
        return self.name not in (names.NONE, names.LABEL_SWAP)


class DpTable(Table):
    """Differential privacy of persons."""

    mode: Annotated[str, one_of(names.NONE, names.SERVER_NOISE, names.DISTRIBUTED_NOISE, names.LOCAL_NOISE)] = setting(
        names.NONE, "who adds the noise"
    )
    noise_multiplier: float = setting(
        0.0,
        "standard deviation of the noise over the clipping norm; 0 takes the least that epsilon-budget allows for all rounds",
        low=0.0,
        high=1e6,
    )
    epsilon_budget: float = setting(8.0, "epsilon at which the run stops", low=1e-6, high=1e9)
    delta: float = setting(1e-5, "delta of the guarantee; far below 1 / devices", low=1e-30, high=0.5)
    sampling: Annotated[str, one_of("fixed", "poisson")] = setting(
        "fixed", "how a round's devices are drawn: sample of them, or each independently with that probability"
    )
    accountant: Annotated[str, one_of("auto", "pld", "rdp")] = setting(
        "auto", "how epsilon is computed; auto takes pld where it can, else rdp"
    )
    dropout_share: float = setting(
        0.3, "mode distributed: largest share of a round's participants that may drop out", low=0.0, high=0.49
    )
    colluding_share: float = setting(
        0.0, "mode distributed: share of the participants that may tell the aggregator their noise", low=0.0, high=0.49
    )


class SecureSumTable(Table):
    """Secure aggregation."""

    mode: Annotated[str, one_of(names.NONE, names.PAIRWISE)] = setting(
        names.NONE, "whether the aggregator sees only sums of masked updates"
    )
    threshold: float = setting(
        0.0,
        "share of a secure sum's participants that must stay, above one half; 0 takes more than two thirds",
        low=0.0,
        high=1.0,
    )


class PrivacyTable(Table):
    """What is done to a shared update before it is released. See docs/privacy.md."""

    update_norm: float = setting(
        1.0, "clipping norm of a device's update with dp or secure sums; the first one with clip-quantile", low=1e-9
    )
    update_clipping: Annotated[str, one_of("flat", "per-layer")] = setting(
        "flat", "one norm for the whole update, or the same share of it for each layer"
    )
    clip_quantile: float = setting(
        0.0, "update-norm follows this quantile of the norms, privately; 0 keeps it fixed", low=0.0, high=0.99
    )
    example_cap: int = setting(
        0,
        "with dp or secure sums a device weighs min(examples, cap) / cap; 0 weighs all the same",
        low=0,
        high=1_000_000,
    )
    dp: DpTable = DpTable()
    secure_sum: SecureSumTable = SecureSumTable()


class CodecTable(Table):
    """How an update is compressed."""

    name: str = setting("fp32", "fp32, fp16, int8, int4, int8:LIMIT, top-k:SHARE, top-k:SHARE+int8 and so on")
    error_feedback: bool = setting(
        False, "a device adds what compression lost to its next update; kept on the device as private state"
    )
