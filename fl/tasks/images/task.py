"""Reading digits as a federated task: a frozen vision transformer, writers with hands of their own, errors over images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from fl.core.compute import choose_device, precision
from fl.core.errors import ConfigError
from fl.data.partition import split_sizes
from fl.metrics import Counts
from fl.settings.config import RunConfig
from fl.settings.names import DIGITS
from fl.tasks import classifier
from fl.tasks.classifier import ENCODER_SELF, FFN
from fl.tasks.images.base import DEFAULT, Reader, load_reader
from fl.tasks.images.scores import score_digit
from fl.tasks.images.writers import CLASSES, SIDE, Writer, as_text, draw_writers, images_of
from fl.tasks.task import Device, Example

SITE_PATTERNS = {
    ENCODER_SELF: r"vit\.layers\.\d+\.attention\.[qkvo]_proj",
    FFN: r"vit\.layers\.\d+\.mlp\.fc[12]",
}
POSITIONS = (SIDE // 2) ** 2 + 1  # patches and the class token
PREDICTION_ROWS = 256


class DigitsTask:
    """See :class:`fl.tasks.task.Task`. The input of an example is an image (8, 8), its target the digit that its writer means."""

    def __init__(self, config: RunConfig) -> None:
        if config.data.manifest:
            raise ConfigError(
                f"manifest = {config.data.manifest!r} holds speech, and task {DIGITS} has its own images: "
                "leave it out, or choose another task"
            )
        data = config.data
        if data.validation_share + data.test_share >= 1:
            raise ConfigError(
                f"validation-share = {data.validation_share} and test-share = {data.test_share} leave nothing to train on"
            )
        self.compute = choose_device(config.base.compute)
        self.base_name = classifier.own_base(config, DEFAULT)
        base = load_reader(self.base_name)
        self._vit = base.vit.config
        start = {"weight": base.head.weight, "bias": base.head.bias}
        head = classifier.make_head(self._vit.hidden_size, CLASSES, config.adapter.rank, DIGITS, start)
        self.fingerprint = (
            f"vit:{self._vit.hidden_size}x{self._vit.num_hidden_layers}:{classifier.weights_digest(base)}"
        )
        self._template = Reader(base.vit, head).to(self.compute).eval()
        self.model: nn.Module = self.new_model()
        self.targets: str | list[str] = classifier.site_targets(config.sites, SITE_PATTERNS)
        self.learns = True
        self.adapter_facts: Mapping[str, str] = {"window": "", "language": ""}
        self._writers = {w.name: w for w in draw_writers(data.devices, data.new_people, config.data_seed)}
        self._sizes = split_sizes(data.sentences, data.validation_share, data.test_share)
        self._new_tests = min(data.new_people_tests, data.sentences)
        self._seed = config.data_seed
        self._device = lru_cache(maxsize=64)(self._load_device)

    def device_ids(self) -> tuple[str, ...]:
        """All writers, new ones last."""
        return tuple(self._writers)

    def is_new(self, device_id: str) -> bool:
        """Whether this writer never trains."""
        return device_id in self._writers and self._writers[device_id].new_person

    def device(self, device_id: str) -> Device:
        """One writer's images."""
        if device_id not in self._writers:
            raise ConfigError(f"unknown device {device_id!r}: known are {', '.join(list(self._writers)[:10])}")
        return self._device(device_id)

    def _load_device(self, device_id: str) -> Device:
        writer = self._writers[device_id]
        sizes = {"train": 0, "validation": 0, "test": self._new_tests} if writer.new_person else self._sizes
        train, validation, test = (self._examples(writer, s, sizes[s]) for s in ("train", "validation", "test"))
        return Device(device_id, train, validation, test, writer.new_person)

    def _examples(self, writer: Writer, split: str, count: int) -> tuple[Example, ...]:
        chosen, found = images_of(writer, split, count, self._seed)
        return tuple(
            Example(f"{writer.name}-{index:04d}", image, str(int(digit)), POSITIONS, {"image": as_text(image)})
            for index, image, digit in zip(chosen, found.images, found.digits, strict=True)
        )

    def new_model(self) -> nn.Module:
        """A further reader of its own modules on the same frozen tensors."""
        return classifier.twin(self._template)

    def _logits(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        images = torch.stack([e.inputs for e in examples]).to(self.compute)
        with precision(self.compute):
            logits: Tensor = model(images)
        return logits

    def loss(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        """Mean cross-entropy in nats."""
        sums, images = self.losses(model, examples)
        return sums.sum() / images.sum()

    def losses(self, model: nn.Module, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Each image's cross-entropy in nats (N,), and ones (N,)."""
        labels = torch.tensor([[int(e.target)] for e in examples], device=self.compute)
        logits = self._logits(model, examples)[:, None]
        return classifier.summed_cross_entropy(logits, labels, torch.ones_like(labels, dtype=torch.bool))

    def training_bytes(self, example: Example) -> int:
        """Bytes of activations in a training step."""
        vit = self._vit
        return classifier.encoder_bytes(
            POSITIONS,
            width=vit.hidden_size,
            inner=vit.intermediate_size,
            heads=vit.num_attention_heads,
            layers=vit.num_hidden_layers,
        )

    def prediction_rows(self, examples: Sequence[Example], *, adapted: bool) -> int:
        """A good number: all images are equal in size."""
        return PREDICTION_ROWS

    def predict(self, model: nn.Module, examples: Sequence[Example], *, adapted: bool, beams: int) -> list[str]:
        """The digits that were read."""
        with torch.inference_mode():
            return [str(digit) for digit in self._logits(model, examples).argmax(1).tolist()]

    def score(self, example: Example, prediction: str) -> Mapping[str, Counts]:
        """One image, right or wrong."""
        return score_digit(example.target, prediction).metrics
