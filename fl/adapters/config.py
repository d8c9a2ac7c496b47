"""Configuration of a Gated LoRA adapter, as PEFT sees it.

PEFT refuses new names in its ``PeftType`` enumeration, and ships an unrelated method called GLORA (Generalized LoRA), so
the type here is ``GATED_LORA``, a one-member enumeration of our own that behaves as a string wherever PEFT looks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib import import_module
from math import inf

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from fl.adapters.gates.table import GATES, SELF
from fl.core.errors import ConfigError
from fl.settings.names import MAX_RANK
from fl.settings.names import SITES as SITE_NAMES

PREFIX = "gated_lora_"


class GatedLoraType(str, Enum):  # noqa: UP042 - PEFT compares the value as a plain str and serializes it by ``str.__str__``
    """The ``peft_type`` of this method."""

    GATED_LORA = "GATED_LORA"


# Where an adapter may sit in an encoder-decoder transformer: site -> the names of the linear maps there, for the
# naming of transformers' Whisper (and Bart-like) modules. A Wav2Vec2-like encoder has encoder.self and ffn only.
_PATTERNS = (
    r"encoder\.layers\.\d+\.(?:self_attn|attention)\.(?:{targets})",
    r"decoder\.layers\.\d+\.self_attn\.(?:{targets})",
    r"decoder\.layers\.\d+\.encoder_attn\.(?:{targets})",
    r"(?:encoder|decoder)\.layers\.\d+\.(?:feed_forward\.)?(?:fc1|fc2|intermediate_dense|output_dense)",
)
SITES: dict[str, str] = dict(zip(SITE_NAMES, _PATTERNS, strict=True))
ATTENTION_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


def target_pattern(sites: Sequence[str], targets: Sequence[str] = ATTENTION_TARGETS) -> str:
    """A regular expression, matched against full module names, that selects ``targets`` at ``sites``.

    ``ffn`` always means both linear maps of the feed-forward block. Raises :class:`ConfigError` on an unknown site or target.
    """
    if not sites:
        raise ConfigError(f"sites is empty: name at least one of {', '.join(SITES)}")
    for site in sites:
        if site not in SITES:
            raise ConfigError(f"unknown site {site!r}: known sites are {', '.join(SITES)}")
    for target in targets:
        if target not in ATTENTION_TARGETS:
            raise ConfigError(f"unknown target {target!r}: known targets are {', '.join(ATTENTION_TARGETS)}")
    if not targets and set(sites) != {"ffn"}:
        raise ConfigError(f"targets is empty: name at least one of {', '.join(ATTENTION_TARGETS)}")
    wanted = "|".join(targets)
    patterns = [SITES[site].format(targets=wanted) for site in dict.fromkeys(sites)]
    return r"(?:.*\.)?(?:" + "|".join(patterns) + ")"


@dataclass
class GatedLoraConfig(PeftConfig):
    """Settings of :class:`fl.adapters.model.GatedLoraModel`.

    ``r`` is the rank, ``lora_alpha`` the numerator of the scale ``s = lora_alpha / r``, ``gate`` one of :data:`GATES`,
    ``target_modules`` a list of module-name endings or a regular expression over full names (see :func:`target_pattern`).
    """

    r: int = field(default=8, metadata={"help": "Rank of the low-rank pair A (r x d_in), B (d_out x r)."})
    lora_alpha: float = field(default=16.0, metadata={"help": "The update is scaled by lora_alpha / r."})
    gate: str = field(default=SELF.name, metadata={"help": "A name in fl.adapters.gates.table.GATES."})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Names or a pattern."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Names or a pattern to leave out."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Only these layer indices."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of layers."})
    init_seed: int | None = field(default=None, metadata={"help": "Seed of A. None takes torch's global generator."})

    def __post_init__(self) -> None:
        super().__post_init__()
        import_module("fl.adapters.model")  # whoever has a configuration can inject it
        self.peft_type = GatedLoraType.GATED_LORA
        if isinstance(self.r, bool) or not isinstance(self.r, int) or not 1 <= self.r <= MAX_RANK:
            raise ConfigError(f"rank {self.r!r} is not allowed: give a whole number from 1 to {MAX_RANK}")
        if not 0 < self.lora_alpha < inf:
            raise ConfigError(f"alpha {self.lora_alpha!r} is not allowed: give a positive number")
        GATES.find(self.gate)

    def targeted(self, model: nn.Module) -> list[tuple[str, nn.Linear]]:
        """The linear maps that are adapted, by name. Raises :class:`ConfigError` if there is none.

        A map that carries an adapter of PEFT already, which wraps it, is found by the name that it had without.
        """
        maps = [
            (name.removesuffix(".base_layer"), module)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
        ]
        if self.target_modules is not None:
            maps = [(name, module) for name, module in maps if name and check_target_module_exists(self, name)]
        if not maps or self.target_modules is None:
            raise ConfigError(f"target_modules {self.target_modules!r} matches no linear map of this base: check sites")
        return maps

    @property
    def scaling(self) -> float:
        """The factor ``s = alpha / r`` in front of the low-rank update."""
        return self.lora_alpha / self.r


PEFT_TYPE_TO_CONFIG_MAPPING[GatedLoraType.GATED_LORA] = GatedLoraConfig
PEFT_TYPE_TO_PREFIX_MAPPING[GatedLoraType.GATED_LORA] = PREFIX
