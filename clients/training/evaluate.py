"""Evaluation of one device: predictions, and counts that add up."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

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
