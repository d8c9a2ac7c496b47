"""Evaluation of one device: predictions, and counts that add up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fl.data.batching import buckets
from fl.metrics import Counts
from fl.task import Example, Task
from fl.wire import add_counts

# A batch decodes as long as its longest row needs, so two batches where one would do cost nearly twice. Long rows, and
# those of the frozen base, which listens to 30 s whatever was said, would take too much memory.
EVALUATION_BATCH, LONG_BATCH = 32, 16
LONG_FRAMES = 1_000


@dataclass(frozen=True)
class Evaluation:
    """Predictions in the order of the examples, summed counts, seconds."""

    predictions: tuple[str, ...]
    counts: dict[str, Counts]
    seconds: float


def evaluate(
    model: nn.Module, task: Task, examples: Sequence[Example], *, adapted: bool = True, beams: int = 1
) -> Evaluation:
    """Predict and score ``examples``, in batches of similar size so that little is padding."""
    started = time.perf_counter()
    predictions = [""] * len(examples)
    short = adapted and all(example.size <= LONG_FRAMES for example in examples)
    rows = EVALUATION_BATCH if short else LONG_BATCH
    for chosen in buckets([example.size for example in examples], rows=rows):
        texts = task.predict(model, [examples[i] for i in chosen], adapted=adapted, beams=beams)
        for i, text in zip(chosen, texts, strict=True):
            predictions[i] = text
    counts = add_counts([task.score(e, p) for e, p in zip(examples, predictions, strict=True)])
    return Evaluation(tuple(predictions), counts, time.perf_counter() - started)
