"""A task that learns nothing, to measure the framework around training: devices by number and one small linear map.

A device is an id and three examples without audio, the same for all; none is kept, so that 100,000 of them cost no more than
their ids. The adapted module is one small linear map: adapters, private state and messages are real, only training is not.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fl.core.errors import ConfigError
from fl.core.rng import derive_seed
from fl.metrics import Counts
from fl.settings.config import RunConfig
from fl.tasks.task import DeviceExamples, Example, Task

NAME = "no-op"  # of the base: it is the task alone
WIDTH = 8  # of the linear map: A, B and a gate of a few hundred bytes
DIGITS = 6
PREFIX = "device-"


def device_name(number: int) -> str:
    """``device-000042``: ids sort as their numbers do."""
    return f"{PREFIX}{number:0{DIGITS}d}"


def _linear() -> nn.Module:
    """One frozen linear map, called ``map``."""
    linear = nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False)
    linear.weight.copy_(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(derive_seed(0, NAME))))
    return nn.Sequential(OrderedDict(map=linear))


class NoOpTask(Task):
    """See :class:`fl.tasks.task.Task`. Device ``i`` of ``devices`` is called ``device-00000i``; the last ``new_people`` are new."""

    learns = False

    def __init__(self, config: RunConfig) -> None:
        self.base_name = NAME
        self.fingerprint = f"{NAME}:{WIDTH}"
        self.targets = ["map"]
        self.model = _linear()
        self._training, self._all = config.data.devices, config.data.devices + config.data.new_people
        names = [f"{NAME}-{split}" for split in ("train", "validation", "test")]
        self._splits = [(Example(name, torch.ones(WIDTH), "", 1, {"seconds_audio": 0.0}),) for name in names]

    def device_ids(self) -> tuple[str, ...]:
        """All ids, made on each call: nothing is kept of a device."""
        return tuple(map(device_name, range(self._all)))

    def is_new(self, device_id: str) -> bool:
        """Whether this device never trains."""
        return self._number(device_id) >= self._training

    def _number(self, device_id: str) -> int:
        digits = device_id.removeprefix(PREFIX)
        number = int(digits) if digits.isdecimal() else -1
        if not 0 <= number < self._all or device_name(number) != device_id:
            raise ConfigError(
                f"unknown device {device_id!r}: known are {device_name(0)} to {device_name(self._all - 1)}"
            )
        return number

    def device(self, device_id: str) -> DeviceExamples:
        """One device: the same three examples as every other."""
        new = self.is_new(device_id)
        train, validation, test = self._splits
        return DeviceExamples(device_id, () if new else train, () if new else validation, test, new)

    def new_model(self) -> nn.Module:
        """A further linear map with the same values."""
        return _linear()

    def losses(self, model: nn.Module, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Zero for each example."""
        rows = model(torch.stack([e.inputs for e in examples]))
        return 0.0 * rows.sum(dim=1), torch.ones(len(examples))

    def training_bytes(self, example: Example) -> int:
        """A few numbers."""
        return 4 * WIDTH

    def prediction_rows(self, examples: Sequence[Example], *, adapted: bool) -> int:
        """All of them."""
        return max(1, len(examples))

    def predict(self, model: nn.Module, examples: Sequence[Example], *, adapted: bool, beams: int) -> list[str]:
        """Empty texts."""
        return [""] * len(examples)

    def score(self, example: Example, prediction: str) -> Mapping[str, Counts]:
        """One word of reference, heard rightly."""
        return {"wer": Counts(0, 0, 0, 1)}
