"""From the bytes that somebody sent to an adapter that may be a row of a batch: everything is checked, cheapest first.

What a sender writes is never compiled or matched as a pattern of their own, because a regular expression can run for hours:
``target_modules`` is a list of names, or one of the patterns that :func:`fl.adapters.config.target_pattern` makes.
"""

import math
import re
from collections.abc import Collection
from functools import cache, lru_cache
from itertools import permutations, product, starmap
from typing import Any

import torch
from torch import nn

from fl.adapters.config import ATTENTION_TARGETS, SITES, GatedLoraConfig, target_pattern
from fl.adapters.correction import require_fingerprint
from fl.adapters.files import AdapterInfo
from fl.adapters.gates.table import GATES
from fl.adapters.stacked import Slot
from fl.adapters.state import Shapes, check_tensors, tensor_name
from fl.bases.whisper.base import WhisperBase
from fl.core.errors import AdapterError, AdapterMismatchError, ConfigError
from fl.packed.blob import PackedInfo, digest, read_info, unpack
from fl.packed.folder import PEFT_TYPE, require_low_rank
from fl.serving.engine.requests import ServedAdapter
from fl.serving.engine.settings import MAX_BYTES
from fl.speech.features import WINDOWS

MAX_TENSORS = 2_048
MAX_RANK = 64
_IGNORED = ("exclude_modules", "layers_to_transform", "layers_pattern")  # settings that would change what is adapted


@lru_cache(maxsize=4)
def linear_maps(base: WhisperBase) -> dict[str, tuple[int, int]]:
    """``(d_in, d_out)`` of the linear maps that an adapter may sit on, by name: those of all sites."""
    anywhere = re.compile(target_pattern(tuple(SITES)))
    return {
        name: (module.in_features, module.out_features)
        for name, module in base.model.named_modules()
        if isinstance(module, nn.Linear) and anywhere.fullmatch(name)
    }


@lru_cache(maxsize=4)
def served_tokenizer(base: WhisperBase) -> str:
    """The digest of the base's tokenizer, computed once: it is over the whole vocabulary."""
    return base.tokenizer.digest


def admit(data: bytes, base: WhisperBase, *, max_bytes: int = MAX_BYTES) -> ServedAdapter:
    """The packed adapter ``data``, checked against ``base``.

    Raises :class:`AdapterMismatchError` for a sound one of another base, tokenizer or configuration and
    :class:`AdapterError` for any other bytes; nothing else. Nothing is allocated before its size is known and allowed.
    """
    if len(data) > max_bytes:
        raise AdapterError(f"the adapter has {len(data):,} bytes, and at most {max_bytes:,} are taken: pack it as int8")
    packed = read_info(data)
    require_low_rank({"peft_type": PEFT_TYPE, **packed.config}, "what was sent")
    require_fingerprint(packed.base_fingerprint[:200], base.fingerprint)
    if packed.base_fingerprint != base.fingerprint:
        raise AdapterMismatchError(
            f"the adapter was made for base {packed.base_name[:80]!r} ({packed.base_fingerprint[:80]}); this server has "
            f"{base.name!r} ({base.fingerprint}): send it to a server with its own base"
        )
    own = served_tokenizer(base)
    if packed.tokenizer and own and packed.tokenizer != own:
        raise AdapterMismatchError(
            f"the adapter was trained with another tokenizer ({packed.tokenizer[:12]}...) than that of this server "
            f"({own[:12]}...): its words would come out as others; train it again or use a server with that tokenizer"
        )
    if packed.tensors > MAX_TENSORS:
        raise AdapterError(f"the adapter has {packed.tensors:,} tensors, and at most {MAX_TENSORS:,} are taken")
    config = _config(packed.config, base)
    _check_use(packed, base)
    shapes = _shapes(config, base)
    if packed.tensors != len(shapes):
        raise AdapterMismatchError(
            f"the adapter has {packed.tensors} tensors, and its configuration means {len(shapes)} on this base: "
            "was it packed whole, and for this base?"
        )
    size, most = 4 * sum(math.prod(shape) for shape in shapes.values()), 4 * max_bytes
    if size > most:
        raise AdapterError(f"the adapter would have {size:,} bytes in memory, and at most {most:,} are allowed")
    arrays, _ = unpack(data)
    tensors = {name: torch.from_numpy(array) for name, array in sorted(arrays.items())}
    check_tensors(tensors, shapes)
    info = AdapterInfo(
        base.name, base.fingerprint, packed.split, config, window=packed.window, language=packed.language
    )
    return ServedAdapter(tensors, Slot.of(config), info, digest(data))


def _config(values: dict[str, Any], base: WhisperBase) -> GatedLoraConfig:
    """The configuration with ``target_modules`` as the full names of the modules that it selects on this base."""
    for key in _IGNORED:
        if values.get(key) not in (None, [], ""):
            raise AdapterError(f"the adapter sets {key!r}, which is not served: name its modules in 'target_modules'")
    modules = _modules(values.get("target_modules"), base)
    try:
        config = GatedLoraConfig(
            r=values.get("r", 0),
            lora_alpha=float(values.get("lora_alpha", 0)),
            gate=values.get("gate", ""),
            target_modules=modules,
        )
    except (ConfigError, TypeError, ValueError, OverflowError) as error:
        raise AdapterError(f"the adapter's configuration is not one: {str(error)[:200]}; pack it again") from None
    if config.r > MAX_RANK:
        raise AdapterError(f"the adapter has rank {config.r}, and at most {MAX_RANK} are served: train a smaller one")
    maps = linear_maps(base)
    smallest = min(min(maps[name]) for name in modules)
    if config.r > smallest:
        raise AdapterMismatchError(f"rank {config.r} exceeds a map of {smallest} of this base: was it for another?")
    return config


def _modules(targets: object, base: WhisperBase) -> list[str]:
    maps = linear_maps(base)
    if isinstance(targets, str):
        if targets not in _own_patterns():
            raise AdapterError("the adapter's 'target_modules' is a pattern that 'sites' does not make: list modules")
        found = [name for name in maps if re.fullmatch(targets, name)]
    elif isinstance(targets, list) and 0 < len(targets) <= MAX_TENSORS and all(map(_is_name, targets)):
        endings, whole = tuple(f".{target}" for target in targets), frozenset(targets)
        found = [name for name in maps if name in whole or name.endswith(endings)]
    else:
        raise AdapterError("the adapter's 'target_modules' is no list of module names nor a pattern; pack it again")
    if not found:
        raise AdapterMismatchError("the adapter's 'target_modules' match no map of this base: check sites and base")
    return found


def _is_name(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.]{1,200}", value) is not None


@cache
def _own_patterns() -> frozenset[str]:
    """All that :func:`target_pattern` makes, of sites and targets in any order."""
    sites, targets = _orders(SITES), _orders(ATTENTION_TARGETS)
    return frozenset({target_pattern(("ffn",), ()), *starmap(target_pattern, product(sites, targets))})


def _orders(names: Collection[str]) -> list[tuple[str, ...]]:
    return [order for count in range(1, len(names) + 1) for order in permutations(names, count)]


def _shapes(config: GatedLoraConfig, base: WhisperBase) -> Shapes:
    """Names and shapes of the tensors that ``config`` implies on ``base``."""
    shapes: Shapes = {}
    assert isinstance(config.target_modules, list)
    for module in config.target_modules:
        d_in, d_out = linear_maps(base)[module]
        for what, shape in GATES[config.gate].shapes(d_in, d_out, config.r).items():
            shapes[tensor_name(module, what)] = shape
    return shapes


def _check_use(packed: PackedInfo, base: WhisperBase) -> None:
    if packed.window not in WINDOWS:
        raise AdapterError(f"the adapter's window {packed.window[:20]!r} is none of {', '.join(WINDOWS)}: pack it anew")
    known = base.languages or ("en",)
    if packed.language and packed.language not in known:
        raise AdapterMismatchError(f"the adapter's language {packed.language[:20]!r} is unknown to base {base.name!r}")
