"""Client-rounds per second: what is counted, and what it is held against."""

from typing import Any

import pytest

import benchmarks.client_round as client_round
from benchmarks.client_round import Measured, RoundClock, after_first, final_counts, make_row, rates, wer
from fl.metrics import Counts
from fl.settings.config import RunConfig


def measured(*seconds: float, errors: int = 3) -> Measured:
    return Measured(seconds, sum(seconds), Counts(errors, 0, 0, 10), 100.0)


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_the_first_round_is_not_measured() -> None:
    assert after_first([60.0, 4.0, 5.0]) == (4.0, 5.0)
    assert after_first([60.0]) == (60.0,)


def test_a_round_lasts_from_its_message_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 13.0, 14.5, 20.0, 21.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    clock = RoundClock()
    for done in range(3):
        clock("global", done, 2)
    for done in range(2):
        clock("test: global", done, 1)
    assert clock.round_seconds("global") == (3.0, 1.5)


def test_rates_count_every_device_of_every_round() -> None:
    assert rates([measured(2.0, 4.0), measured(1.0)], devices=8) == [4.0, 2.0, 8.0]


def test_the_final_error_rate_is_of_the_final_model_on_test_data_alone() -> None:
    def row(arm: str, split: str, number: int, errors: int, **metrics: Any) -> dict[str, Any]:
        counts = {"substitutions": errors, "deletions": 0, "insertions": 0, "reference": 10}
        return {"arm": arm, "split": split, "round": number, "metrics": {"wer": counts}, **metrics}

    rows = [
        row("global", "test", 8, 1),
        row("global", "test", 8, 2),
        row("global", "test", 7, 10),
        row("global", "validation", 8, 10),
        row("personalized", "test", 8, 10),
        {**row("global", "test", 8, 10), "metrics": {}},
    ]
    assert final_counts(rows, "global", "test", 8) == Counts(3, 0, 0, 20)


def test_error_rates_of_repeats_are_pooled_by_counts() -> None:
    assert wer([measured(1.0, errors=1), measured(1.0, errors=4)]) == 0.25


def test_the_ratio_is_of_medians_and_the_note_has_both_error_rates() -> None:
    ours, stock = [measured(1.0, 1.0, 9.0, errors=2)], [measured(20.0, 30.0, 25.0, errors=3)]
    row = make_row("global", ours, stock, 6, {"seed": 1})
    assert (row.name, row.value, row.ratio, row.target) == ("client_round", 6.0, 25.0, 12.0)
    assert row.conditions["note"] == "WER 20.0 %, stock 30.0 %"
    assert row.conditions["wer_not_worse"]
    assert row.conditions["seed"] == 1


def test_a_faster_round_with_more_errors_says_so() -> None:
    row = make_row("personalized", [measured(1.0, errors=4)], [measured(20.0, errors=3)], 6, {})
    assert row.name == "client_round_personalized"
    assert not row.conditions["wer_not_worse"]
    assert str(row.conditions["note"]).endswith("worse")


def test_on_a_gpu_it_is_another_figure_with_another_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(client_round, "machine", dict)
    row = make_row("global", [measured(1.0)], [measured(20.0)], 6, {})
    assert (row.name, row.target) == ("gpu_client_round", 15.0)


def test_settings_reach_ours_and_the_sizes_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, RunConfig] = {}

    def stock(config: RunConfig, *_: Any) -> Measured:
        seen["stock"] = config
        return measured(20.0)

    def ours(config: RunConfig, *_: Any) -> dict[str, Measured]:
        seen["ours"] = config
        return {arm: measured(1.0) for arm in config.arms}

    monkeypatch.setattr(client_round, "measure_stock", stock)
    monkeypatch.setattr(client_round, "step_seconds", lambda *_: {"float32": 2.0, "bf16": 1.0})
    monkeypatch.setattr(client_round, "measure_ours", ours)
    monkeypatch.setattr(client_round, "training_people", lambda _: range(6))
    monkeypatch.setattr(client_round, "write_row", lambda row: row.name)
    monkeypatch.setattr("sys.argv", ["client_round", "--rounds", "8", "--steps", "5", "--set", "gate=cross"])
    assert client_round.main() == 0
    assert seen["ours"].adapter.gate == "cross"
    for config in seen.values():
        assert (config.federation.rounds, config.train.local_steps, config.federation.evaluate_every) == (8, 5, 0)
    assert seen["stock"].data == seen["ours"].data
    assert (seen["stock"].base.precision, seen["ours"].base.precision) == ("bf16", "auto")  # each as it is fastest
