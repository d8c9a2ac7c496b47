"""What federated training needs of a task, and nothing more.

Clients and strategies see a :class:`Task`: examples, a loss, predictions and counts. Whether an example is speech, text or
an image is the task's own business.
"""

from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from torch import Tensor, nn

from fl.core.errors import ConfigError
from fl.metrics import Counts
from fl.runs.schema import LeftOutRow

KEPT = 64  # devices whose examples stay in memory


@dataclass(frozen=True)
class Example:
    """One labelled example of one device. ``size`` is proportional to its cost (frames, tokens) and serves bucketing."""

    key: str
    inputs: Any
    target: str
    size: int
    details: Mapping[str, Any]


@dataclass(frozen=True)
class DeviceExamples:
    """The examples of one device by split."""

    device_id: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    new_person: bool = False

    def split(self, name: str) -> tuple[Example, ...]:
        """The examples of ``train``, ``validation`` or ``test``."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


class Task(Protocol):
    """A frozen base, examples, and how to learn from and score them. A subclass may leave out what has a body here.

    ``targets`` are ``target_modules`` of the adapter, as PEFT takes them. ``learns`` is False where nothing is to be learnt: no step
    is taken then, and nothing evaluated. ``left_out`` are examples that cannot be used, which no device has; ``notes`` are what a
    person should know of the data. ``adapter_facts`` are what an adapter's folder says of how it is used: fields of
    :class:`fl.adapters.files.AdapterInfo`.
    """

    fingerprint: str
    base_name: str
    model: nn.Module
    targets: str | list[str]
    learns: bool = True
    left_out: Sequence[LeftOutRow] = ()
    notes: Sequence[str] = ()
    adapter_facts: Mapping[str, str] = {}

    def device_ids(self) -> tuple[str, ...]:
        """All devices, in a stable order; people who never train come last."""

    def is_new(self, device_id: str) -> bool:
        """Whether this person never takes part in training."""

    def device(self, device_id: str) -> DeviceExamples:
        """The data of one device, loaded on demand."""

    def varied(self, examples: Sequence[Example], seed: int) -> Sequence[Example]:
        """Training examples for one local phase, a function of ``seed``: varied, so that a model does not learn what is accidental
        in them, or ``examples`` themselves."""
        return examples

    def new_model(self) -> nn.Module:
        """A further model of its own modules on the same frozen tensors as :attr:`model`."""

    def loss(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        """Mean loss over all labels of a batch, a scalar with a gradient."""
        sums, labels = self.losses(model, examples)
        return sums.sum() / labels.sum()

    def losses(self, model: nn.Module, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Each example's summed loss (N,), with a gradient, and the number of its labels (N,).

        A row does not depend on the other rows of the batch (up to rounding), so sums over any grouping of rows are right.
        """

    def precomputed(self, model: nn.Module, examples: Sequence[Example], trained: Collection[str]) -> Sequence[Example]:
        """``examples`` with what ``model`` makes of them before they come to the first of its modules in ``trained``, or as they are.

        Their losses are those of ``examples``, and so are the gradients of ``trained``, while nothing else of the model changes.
        """
        return examples

    def training_bytes(self, example: Example) -> int:
        """Bytes of activations that this example needs in a training step, estimated from above."""

    def prediction_rows(self, examples: Sequence[Example], *, adapted: bool) -> int:
        """How many of these examples to predict together at most."""

    def predict(self, model: nn.Module, examples: Sequence[Example], *, adapted: bool, beams: int) -> list[str]:
        """One prediction for each example. ``adapted`` is False for the frozen base alone."""

    def score(self, example: Example, prediction: str) -> Mapping[str, Counts]:
        """Additive counts by metric."""


class NamedDevices(Task):
    """A task that knows its devices by name and loads each when it is asked for.

    ``held_out`` says of each device by name whether it is a held-out person, who is tested and never trains; these come last.
    """

    def __init__(self, held_out: Mapping[str, bool]) -> None:
        self._held_out = held_out
        self._loaded = lru_cache(maxsize=KEPT)(self._load)

    def device_ids(self) -> tuple[str, ...]:
        """Devices in the order of the population, held-out people last."""
        return tuple(self._held_out)

    def is_new(self, device_id: str) -> bool:
        """Whether this person never trains."""
        return self._held_out.get(device_id, False)

    def device(self, device_id: str) -> DeviceExamples:
        """One device's examples; :class:`ConfigError` for an unknown one."""
        if device_id not in self._held_out:
            raise ConfigError(f"unknown device {device_id!r}: known are {', '.join(list(self._held_out)[:10])}")
        return self._loaded(device_id)

    def _load(self, device_id: str) -> DeviceExamples:
        found = {split: tuple(examples) for split, examples in self._examples_of(device_id).items()}
        return DeviceExamples(device_id, **found, new_person=self.is_new(device_id))

    @abstractmethod
    def _examples_of(self, device_id: str) -> Mapping[str, Iterable[Example]]:
        """The examples of one device by split: train, validation, test."""
