"""What tasks with a classifier on a frozen transformer encoder have in common: modules, targets, the head, losses, memory."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fl.core.errors import ConfigError
from fl.core.rng import derive_seed
from fl.settings.config import SETTINGS, RunConfig

ENCODER_SELF, FFN = "encoder.self", "ffn"
HEAD = "head"  # what a model's classifier is called
HEAD_STD = 0.02  # as transformers draws the heads of its models
FLOAT = 4  # bytes

Module = TypeVar("Module", bound=nn.Module)


def own_base(config: RunConfig, default: str) -> str:
    """The base that was asked for; ``default`` where the setting ``base`` was left as it is, since that is a recognizer."""
    return default if config.base.base == SETTINGS["base"].default else config.base.base


def twin(model: Module) -> Module:
    """A further model of its own modules on the same parameters and buffers."""
    kept = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, kept)


def site_targets(sites: Sequence[str], patterns: Mapping[str, str]) -> str:
    """A pattern over full module names: the linear maps of the base at ``sites``, and its head.

    The head is adapted like any other linear map, so that it is trained, shared and saved with the adapter.
    Raises :class:`ConfigError` if the base has none of the sites.
    """
    chosen = [patterns[site] for site in sites if site in patterns]
    if not chosen:
        raise ConfigError(f"sites = {', '.join(sites)}: this base is an encoder, choose among {', '.join(patterns)}")
    return rf"(?:.*\.)?(?:{'|'.join([*chosen, HEAD])})"


def make_head(states: int, classes: int, rank: int, seed: str, start: Mapping[str, Tensor] | None = None) -> nn.Linear:
    """A frozen linear map from ``states`` numbers to the logits of ``classes``, whose values are drawn or those of ``start``.

    It has at least ``rank`` outputs, because a low-rank pair is no wider than its map; those beyond ``classes`` are zero and
    not read.
    """
    head = nn.Linear(states, max(classes, rank))
    generator = torch.Generator().manual_seed(derive_seed("head", seed, classes))
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        if start is None:
            head.weight[:classes] = HEAD_STD * torch.randn(classes, states, generator=generator)
        else:
            head.weight[:classes], head.bias[:classes] = start["weight"], start["bias"]
    return head.requires_grad_(False)


def summed_cross_entropy(logits: Tensor, labels: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's cross-entropy in nats, summed over its labels (N,), and how many it has (N,).

    ``logits`` are (N, L, classes), ``labels`` (N, L), ``labelled`` (N, L) is False where a row has no label.
    """
    each = functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    return (each * labelled).sum(1), labelled.sum(1)


def weights_digest(model: nn.Module) -> str:
    """16 hexadecimal digits over names, shapes and float32 values of all parameters."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def encoder_bytes(positions: int, *, width: int, inner: int, heads: int, layers: int) -> int:
    """Bytes of activations of one row in a training step, estimated from above.

    For each position and layer about 20 numbers of the encoder's width (inputs of both layer norms, normed states, q, k, v,
    attention output, low-rank updates) and 4 of the inner width, and the attention weights twice.
    """
    layer = positions * (20 * width + 4 * inner) + 2 * heads * positions**2
    return FLOAT * (layers * layer + 8 * positions * width)
