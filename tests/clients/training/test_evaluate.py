"""Evaluation: the same transcripts in whatever batches, and counts that add up."""

from dataclasses import replace

import numpy as np
import pytest

from clients.training.evaluate import evaluate
from clients.worker import Worker
from fl.adapters.state import load_state
from fl.core.rng import derive_generator
from fl.protocol.wire import add_counts
from fl.tasks.task import Example


@pytest.fixture
def examples(worker: Worker) -> list[Example]:
    """Recordings of several speakers, of different lengths, not in the order of their length."""
    people = [worker.task.device(device_id) for device_id in worker.task.device_ids()]
    chosen = [example for person in people for example in (*person.train, *person.test)][:9]
    assert len({example.size for example in chosen}) > 5
    return chosen[::2]


@pytest.fixture
def adapted(worker: Worker) -> Worker:
    """The worker with an adapter that changes what is heard."""
    initial = worker.initial("self")
    noise = {n: t + 0.3 * t.new_tensor(derive_generator(1, n).standard_normal(t.shape)) for n, t in initial.items()}
    load_state(worker.adapted, noise, worker.slot("self"))
    return worker


def test_batches_do_not_change_predictions(
    adapted: Worker, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [evaluate(adapted.adapted, adapted.task, [example]).predictions[0] for example in examples]
    assert len(set(alone)) > 1
    assert list(evaluate(adapted.adapted, adapted.task, examples[::-1]).predictions) == alone[::-1]
    monkeypatch.setattr(adapted.task, "prediction_rows", lambda examples, *, adapted: 2)
    assert list(evaluate(adapted.adapted, adapted.task, examples).predictions) == alone


def test_counts_are_the_sum_over_utterances(adapted: Worker, examples: list[Example]) -> None:
    result = evaluate(adapted.adapted, adapted.task, examples)
    single = [adapted.task.score(e, p) for e, p in zip(examples, result.predictions, strict=True)]
    assert result.counts == add_counts(single)
    assert result.counts["wer"].reference == sum(len(e.target.split()) for e in examples)
    assert {"wer", "cer", "mer"} <= result.counts.keys()


def test_an_adapter_that_is_switched_off_changes_nothing(adapted: Worker, examples: list[Example]) -> None:
    base = adapted.task.base
    with adapted.adapted.disable_adapter():
        off = evaluate(adapted.adapted, adapted.task, examples[:3], adapted=False).predictions
    plain = evaluate(base.new_model(), adapted.task, examples[:3], adapted=False).predictions
    assert off == plain


def test_a_device_without_examples_has_no_counts(adapted: Worker) -> None:
    result = evaluate(adapted.adapted, adapted.task, [])
    assert (result.predictions, result.counts) == ((), {})


def test_examples_keep_their_order_whatever_their_length(examples: list[Example]) -> None:
    class Echo:
        def prediction_rows(self, examples: list[Example], *, adapted: bool) -> int:
            return 2

        def predict(self, model: object, batch: list[Example], *, adapted: bool, beams: int) -> list[str]:
            sizes = [e.size for e in batch]
            assert sizes == sorted(sizes)  # similar sizes stand together, so that little is padding
            return [e.key for e in batch]

        def score(self, example: Example, prediction: str) -> dict[str, object]:
            assert prediction == example.key
            return {}

    shuffled = [examples[i] for i in np.random.default_rng(0).permutation(len(examples))]
    assert list(evaluate(None, Echo(), shuffled).predictions) == [e.key for e in shuffled]  # type: ignore[arg-type]


def test_sentences_of_about_the_same_length_decode_in_one_batch(examples: list[Example]) -> None:
    asked: list[list[int]] = []

    class Echo:
        def prediction_rows(self, examples: list[Example], *, adapted: bool) -> int:
            return 32

        def predict(self, model: object, batch: list[Example], *, adapted: bool, beams: int) -> list[str]:
            asked.append([e.size for e in batch])
            return [""] * len(batch)

        def score(self, example: Example, prediction: str) -> dict[str, object]:
            return {}

    sentences, long = [256, 280, 290, 300, 306, 318, 330, 356, 360, 378], [1400] * 10  # frames: 2.6 to 3.8 s, and 14 s
    sized = [replace(examples[0], size=size) for size in (*sentences, *long)]
    evaluate(None, Echo(), sized)  # type: ignore[arg-type]
    assert asked == [sentences, long]
