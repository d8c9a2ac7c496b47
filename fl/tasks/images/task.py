"""Reading digits as a federated task: a frozen vision transformer, simulated writers, errors over images."""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from fl.metrics import Counts
from fl.settings.config import RunConfig
from fl.tasks.classifier import ENCODER_SELF, FFN, ClassifierTask, example_counts, make_head, weights_digest
from fl.tasks.images.base import Reader, load_reader
from fl.tasks.images.kind import DIGITS, score_digit
from fl.tasks.images.writers import CLASSES, SIDE, as_text, draw_writers, images_of
from fl.tasks.kind import Progress
from fl.tasks.task import Example

POSITIONS = (SIDE // 2) ** 2 + 1  # patches and the class token


def load_base(config: RunConfig, progress: Progress) -> None:
    """Make the base of a run, once, before its processes start."""
    load_reader(DIGITS.base_of(config), progress)


class DigitsTask(ClassifierTask):
    """See :class:`fl.tasks.task.Task`. The input of an example is an image (8, 8), its target the digit that its writer means."""

    sites: ClassVar = {
        ENCODER_SELF: r"vit\.layers\.\d+\.attention\.[qkvo]_proj",
        FFN: r"vit\.layers\.\d+\.mlp\.fc[12]",
    }
    rows = 256

    def __init__(self, config: RunConfig) -> None:
        data, self._seed = config.data, config.data_seed
        self._counts = {new: example_counts(data, new) for new in (False, True)}
        self._writers = {w.name: w for w in draw_writers(data.devices, data.new_people, config.data_seed)}
        self.base_name = DIGITS.base_of(config)
        base = load_reader(self.base_name)
        vit = base.vit.config
        self.fingerprint = f"vit:{vit.hidden_size}x{vit.num_hidden_layers}:{weights_digest(base)}"
        start = {"weight": base.head.weight, "bias": base.head.bias}
        head = make_head(vit.hidden_size, CLASSES, config.adapter.rank, "digits", start)
        super().__init__(config, Reader(base.vit, head), vit, {w.name: w.new_person for w in self._writers.values()})
        self.adapter_facts = {"window": "", "language": ""}

    def _examples_of(self, device_id: str) -> Mapping[str, Iterable[Example]]:
        counts = self._counts[self.is_new(device_id)]
        return {split: self._examples(device_id, split, count) for split, count in counts.items()}

    def _examples(self, device_id: str, split: str, count: int) -> Iterable[Example]:
        chosen, found = images_of(self._writers[device_id], split, count, self._seed)
        for index, image, digit in zip(chosen, found.images, found.digits, strict=True):
            key = f"{device_id}-{index:04d}"
            yield Example(key, image, str(int(digit)), POSITIONS, {"image": as_text(image)})

    def _batch(self, examples: Sequence[Example]) -> tuple[Tensor, ...]:
        """Images (N, 8, 8)."""
        return (torch.stack([e.inputs for e in examples]).to(self.compute),)

    def _labels(self, examples: Sequence[Example]) -> Tensor:
        """The digits (N, 1)."""
        return torch.tensor([[int(e.target)] for e in examples])

    def predict(self, model: nn.Module, examples: Sequence[Example], *, adapted: bool, beams: int) -> list[str]:
        """The digits that were read."""
        return [str(digit) for (digit,) in self.classes(model, examples)]

    def score(self, example: Example, prediction: str) -> Mapping[str, Counts]:
        """One image, right or wrong."""
        return score_digit(example.target, prediction).metrics
