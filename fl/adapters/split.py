"""Which tensors of an adapter are shared, private, or fixed by the seed: a rule over names.

A split is *disjoint and complete*: a rule gives each tensor exactly one role or raises, so that nothing private can leave by
being forgotten.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fl.core.errors import ConfigError, SplitError
from fl.settings.names import LAST_PREFIX, LAYERS_PREFIX

Rule = Callable[[str], str]
CONTROL = "control:"  # of the names of SCAFFOLD's control variates, which have the role of the tensor that they are for
OWN = "personal:"  # of the names of tensors that a person has beside the adapter's: never shared, whatever the preset


def tensor_kind(name: str) -> str:
    """``A``, ``B`` or ``gate``: what the tensor ``...q_proj.gated_lora_A`` is. Anything else is its last name part."""
    last = name.rsplit(".", 1)[-1]
    if last.startswith("gated_lora_gate"):
        return "gate"
    return last.removeprefix("gated_lora_")


@dataclass(frozen=True)
class Split:
    """Sorted tensor names by role. ``fixed`` tensors are derived from the seed on each side and never travel."""

    preset: str
    shared: tuple[str, ...]
    private: tuple[str, ...]
    fixed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [*self.shared, *self.private, *self.fixed]
        twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if twice:
            raise SplitError(
                f"split {self.preset!r} gives two roles to {', '.join(twice)}: each tensor needs exactly one"
            )

    @property
    def trained(self) -> tuple[str, ...]:
        """Names that a device trains."""
        return (*self.shared, *self.private)


def _by_kind(**roles: str) -> Rule:
    def rule(name: str) -> str:
        kind = tensor_kind(name)
        if kind not in roles:
            raise SplitError(f"tensor {name!r} is of unknown kind {kind!r}: known kinds are {', '.join(roles)}")
        return roles[kind]

    return rule


def in_part(part: str) -> Callable[[str], bool]:
    """Whether a tensor is in ``part``, a choice of an adapter's tensors: ``KINDS`` or ``KINDS@PATTERN``.

    Kinds are ``A``, ``B``, ``gate`` or one of its parameters (``gate_bias``), several with commas between, or ``all``; the pattern
    is a regular expression that the name of the adapted module holds. ``B@decoder`` is B in the decoder alone, ``B@model.encoder`` in
    Whisper's encoder alone; ``B@encoder`` would have the decoder's attention to it too, which is called ``encoder_attn``. Raises
    :class:`ConfigError` for a kind that there cannot be, or a pattern that is none.
    """
    given, _, where = part.partition("@")
    kinds = {kind.strip() for kind in given.split(",")}
    odd = sorted(kind for kind in kinds if kind not in ("all", "A", "B", "gate") and not kind.startswith("gate_"))
    try:
        pattern = re.compile(where)
    except re.error as error:
        raise ConfigError(f"part {part!r}: {where!r} is not a regular expression: {error}") from error
    if odd:
        raise ConfigError(
            f"part {part!r} names {odd[0]!r}: give A, B, gate or a parameter of it as gate_bias, several with commas between, or "
            "all; and behind an @, if you like, a pattern of modules, as in B@decoder"
        )

    def chosen(name: str) -> bool:
        module, _, last = name.rpartition(".")
        return bool(kinds & {"all", tensor_kind(name), last.removeprefix("gated_lora_")} and pattern.search(module))

    return chosen


PRESETS: dict[str, Rule] = {  # the names are those of fl.settings.names.SPLITS
    "gates": _by_kind(A="shared", B="shared", gate="private"),
    "fedsa": _by_kind(A="shared", B="private", gate="private"),  # FedSA-LoRA, arXiv 2410.01463
    "ffa": _by_kind(A="fixed", B="shared", gate="private"),  # FFA-LoRA, arXiv 2403.12313
    "all-shared": lambda name: "shared",
    "all-private": lambda name: "private",
}


def make_split(preset: str, names: Iterable[str]) -> Split:
    """Build the split ``preset`` over an adapter's tensor names.

    ``layers:<regular expression>`` keeps the layers whose name matches private and shares the rest (FedPer, arXiv 1912.00818).
    ``last:<k>`` does so with the k last adapted layers (:func:`layers`), of which there must be more.
    Raises :class:`ConfigError` for an unknown preset, :class:`SplitError` if a tensor would have no role or nothing matches.
    """
    names = sorted(names)
    rule = _last(preset, names) if preset.startswith(LAST_PREFIX) else _rule(preset)
    roles: dict[str, list[str]] = {"shared": [], "private": [], "fixed": []}
    for name in names:
        roles[rule(name)].append(name)
    if preset.startswith(LAYERS_PREFIX) and not roles["private"]:
        raise SplitError(f"split {preset!r} matches no tensor: names look like {names[0] if names else '(none)'!r}")
    return Split(preset, *(tuple(found) for found in roles.values()))


def covering(preset: str, names: Iterable[str], private: Iterable[str]) -> str:
    """``preset`` where it keeps all tensors of ``private`` to the device, else the narrowest preset that does."""
    names, wanted = sorted(names), {*private}
    presets = (preset, "gates", "fedsa", "all-private")
    return next(one for one in presets if wanted <= {*make_split(one, names).private})


def role_of(preset: str, name: str) -> str:
    """``shared``, ``private`` or ``fixed``: the role that ``preset`` gives to one tensor name.

    Not for ``last:<k>``, where it depends on the other names: :func:`make_split` tells.
    """
    return "private" if name.startswith(OWN) else _rule(preset)(name.removeprefix(CONTROL))


def _rule(preset: str) -> Rule:
    if not preset.startswith(LAYERS_PREFIX):
        if preset not in PRESETS:
            raise ConfigError(
                f"unknown split {preset!r}: known splits are {', '.join(PRESETS)}, {LAYERS_PREFIX}<pattern>"
            )
        return PRESETS[preset]
    try:
        pattern = re.compile(preset.removeprefix(LAYERS_PREFIX))
    except re.error as error:
        raise ConfigError(f"split {preset!r} is not a regular expression: {error}") from error
    return lambda name: "private" if pattern.search(name) else "shared"


LAYER = re.compile(r"(.*?)\b(?:layers|layer|blocks|h)\.(\d+)\.")


def layers(names: Iterable[str]) -> list[list[str]]:
    """An adapter's tensor names by layer, in the order in which a model uses them: a decoder comes after its encoder.

    A layer is a numbered block of a transformer (``...decoder.layers.3.``) with all its adapted maps; where there are no blocks,
    each adapted map is one.
    """
    found: dict[tuple[bool, str, int], list[str]] = {}
    for name in sorted(names):
        block = LAYER.match(name)
        stack = block.group(1) if block else name.rpartition(".")[0]
        key = ("decoder" in stack, stack, int(block.group(2)) if block else 0)
        found.setdefault(key, []).append(name)
    return [found[key] for key in sorted(found)]


def _last(preset: str, names: Iterable[str]) -> Rule:
    """The rule of ``last:<k>``, which needs all names of the adapter."""
    number = preset.removeprefix(LAST_PREFIX)
    groups = layers(names)
    if not number.isdecimal() or not 1 <= int(number) < len(groups):
        raise ConfigError(
            f"split {preset!r} keeps the last layers private and shares the others, and {len(groups)} layers are adapted: "
            f"give a number from 1 to {len(groups) - 1} (setting fedper.layers or fedrep.layers), or adapt more sites"
        )
    private = {name for group in groups[-int(number) :] for name in group}
    return lambda name: "private" if name in private else "shared"
