"""What federated training needs of a task, and nothing more.

Clients and strategies see a :class:`Task`: examples, a loss, predictions and counts. Whether an example is speech, text or
an image is the task's own business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from fl.metrics import Counts


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


@runtime_checkable
class Varying(Protocol):
    """A task that can vary its training examples, so that a model does not learn what is accidental in them."""

    def varied(self, examples: Sequence[Example], seed: int) -> Sequence[Example]:
        """Examples for one local phase, a function of ``seed``; ``examples`` themselves where nothing is to be varied."""
        ...


class Task(Protocol):
    """A frozen base, examples, and how to learn from and score them."""

    fingerprint: str
    base_name: str
    model: nn.Module
    targets: str | list[str]  # target_modules of the adapter, as PEFT takes them
    learns: bool  # False where nothing is to be learnt: no step is taken then, and nothing evaluated
    adapter_facts: Mapping[
        str, str
    ]  # what an adapter's folder says of how it is used: fields of fl.adapters.files.AdapterInfo

    def device_ids(self) -> tuple[str, ...]:
        """All devices, in a stable order; people who never train come last."""
        ...

    def is_new(self, device_id: str) -> bool:
        """Whether this person never takes part in training."""
        ...

    def device(self, device_id: str) -> DeviceExamples:
        """The data of one device, loaded on demand."""
        ...

    def new_model(self) -> nn.Module:
        """A further model of its own modules on the same frozen tensors as :attr:`model`."""
        ...

    def loss(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        """Mean loss over all labels of a batch (a scalar with a gradient): ``losses(...)[0].sum() / losses(...)[1].sum()``."""
        ...

    def losses(self, model: nn.Module, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Each example's summed loss (N,), with a gradient, and the number of its labels (N,).

        A row does not depend on the other rows of the batch (up to rounding), so sums over any grouping of rows are right.
        """
        ...

    def training_bytes(self, example: Example) -> int:
        """Bytes of activations that this example needs in a training step, estimated from above."""
        ...

    def prediction_rows(self, examples: Sequence[Example], *, adapted: bool) -> int:
        """How many of these examples to predict together at most."""
        ...

    def predict(self, model: nn.Module, examples: Sequence[Example], *, adapted: bool, beams: int) -> list[str]:
        """One prediction for each example. ``adapted`` is False for the frozen base alone."""
        ...

    def score(self, example: Example, prediction: str) -> Mapping[str, Counts]:
        """Additive counts by metric."""
        ...
