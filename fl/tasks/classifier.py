"""A task of classes on a frozen transformer encoder: the model with its head, losses, memory; a subclass has the examples."""

import copy
import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fl.core.compute import autocast, choose_device, choose_precision
from fl.core.errors import ConfigError
from fl.core.rng import derive_seed
from fl.data.partition import split_sizes
from fl.settings.config import RunConfig
from fl.settings.tables import DataTable
from fl.tasks.task import Example, NamedDevices

ENCODER_SELF, FFN = "encoder.self", "ffn"
HEAD = "head"  # what a model's classifier is called
HEAD_STD = 0.02  # as transformers draws the heads of its models
FLOAT = 4  # bytes


class ClassifierTask(NamedDevices):
    """What is left to a subclass are examples, batches, predictions and scores.

    ``model`` is an encoder with a head of :func:`make_head`, ``encoder`` the encoder's configuration as transformers has it.
    """

    sites: ClassVar[Mapping[str, str]]  # a pattern over names of linear maps for each site
    rows: ClassVar[int]  # to predict together

    def __init__(self, config: RunConfig, model: nn.Module, encoder: Any, held_out: Mapping[str, bool]) -> None:
        super().__init__(held_out)
        self.compute = choose_device(config.base.compute)
        self.precision = choose_precision(config.base.precision, self.compute)
        self._frozen = model.to(self.compute).eval()
        self._encoder = encoder
        self.model = self.new_model()
        chosen = [self.sites[site] for site in config.sites if site in self.sites]
        if not chosen:
            known = ", ".join(self.sites)
            raise ConfigError(f"sites = {', '.join(config.sites)}: this base is an encoder, choose among {known}")
        # The head is adapted like any other linear map, so that it is trained, shared and saved with the adapter.
        self.targets = rf"(?:.*\.)?(?:{'|'.join([*chosen, HEAD])})"

    def new_model(self) -> nn.Module:
        """A further model of its own modules on the same frozen tensors."""
        kept = {id(tensor): tensor for tensor in (*self._frozen.parameters(), *self._frozen.buffers())}
        return copy.deepcopy(self._frozen, kept)

    @abstractmethod
    def _batch(self, examples: Sequence[Example]) -> tuple[Tensor, ...]:
        """What the model takes, where the base computes; its logits are (N, L, classes)."""

    @abstractmethod
    def _labels(self, examples: Sequence[Example]) -> Tensor:
        """The class of each label (N, L), -1 where a row has none."""

    def losses(self, model: nn.Module, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Each example's cross-entropy in nats, summed over its labels (N,), and how many it has (N,)."""
        labels = self._labels(examples).to(self.compute)
        with autocast(self.compute, self.precision):
            logits = model(*self._batch(examples))
        wanted = labels.clamp(min=0).flatten()
        each = functional.cross_entropy(logits.float().flatten(0, 1), wanted, reduction="none").view(labels.shape)
        return (each * (labels >= 0)).sum(1), (labels >= 0).sum(1)

    def classes(self, model: nn.Module, examples: Sequence[Example]) -> list[list[int]]:
        """The likeliest class of each label (N, L)."""
        with torch.inference_mode(), autocast(self.compute, self.precision):
            found: list[list[int]] = model(*self._batch(examples)).argmax(2).tolist()
        return found

    def training_bytes(self, example: Example) -> int:
        """Bytes of activations of one row in a training step, estimated from above.

        For each position and layer about 20 numbers of the encoder's width (inputs of both layer norms, normed states, q, k, v,
        attention output, low-rank updates) and 4 of the inner width, and the attention weights twice.
        """
        shape, positions = self._encoder, example.size
        numbers = positions * (20 * shape.hidden_size + 4 * shape.intermediate_size)
        layer = numbers + 2 * shape.num_attention_heads * positions**2
        return int(FLOAT * (shape.num_hidden_layers * layer + 8 * positions * shape.hidden_size))

    def prediction_rows(self, examples: Sequence[Example], *, adapted: bool) -> int:
        """A good number, whatever the examples."""
        return self.rows


def example_counts(data: DataTable, new_person: bool) -> dict[str, int]:
    """How many examples of each split a device has, of those that a task makes itself; a held-out person has tests alone.

    Raises :class:`ConfigError` for shares that leave nothing to train on.
    """
    made = data.synthetic.sentences
    if new_person:
        return {"train": 0, "validation": 0, "test": min(data.new_people_tests, made)}
    return split_sizes(made, data.validation_share, data.test_share)


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


def weights_digest(model: nn.Module) -> str:
    """16 hexadecimal digits over names, shapes and float32 values of all parameters."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
