"""Evaluation of one device: predictions, and counts that add up."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from torch import nn

from fl.data.batching import buckets
from fl.metrics import Counts
from fl.protocol.wire import add_counts
from fl.tasks.task import Example, Task

# A batch decodes as long as its longest transcript, and a step of the decoder reads all of its weights for however few rows: one
# more batch costs about as much as encoding eight more rows of 3 s (whisper-base), and padding only costs the encoder.
BATCH_COST, PADDING = 8.0, 0.3


@dataclass(frozen=True)
class Evaluation:
    """Predictions in the order of the examples, summed counts, seconds."""

    predictions: tuple[str, ...]
    counts: dict[str, Counts]
    seconds: float


def evaluate(
    model: nn.Module, task: Task, examples: Sequence[Example], *, adapted: bool = True, beams: int = 1
) -> Evaluation:
    """Predict and score ``examples``, in few batches of similar size."""
    started = time.perf_counter()
    predictions = [""] * len(examples)
    rows = task.prediction_rows(examples, adapted=adapted)
    sizes = [example.size for example in examples]
    for chosen in buckets(sizes, rows=rows, padding=PADDING, group_cost=BATCH_COST):
        texts = task.predict(model, [examples[i] for i in chosen], adapted=adapted, beams=beams)
        for i, text in zip(chosen, texts, strict=True):
            predictions[i] = text
    counts = add_counts([task.score(e, p) for e, p in zip(examples, predictions, strict=True)])
    return Evaluation(tuple(predictions), counts, time.perf_counter() - started)


@dataclass
class KnownEvaluations:
    """The last evaluations of a process, so that arms which decode a device's examples with the same tensors do so once."""

    most: int = 1024
    _found: OrderedDict[Hashable, Evaluation] = field(default_factory=OrderedDict)

    def once(self, what: Hashable, run: Callable[[], Evaluation]) -> Evaluation:
        """The evaluation of ``what`` decodes what: the known one, with the seconds that it took, or that which ``run`` makes."""
        known = self._found.get(what)
        if known is None:
            known = self._found[what] = run()
            while len(self._found) > self.most:
                self._found.popitem(last=False)
        return known
