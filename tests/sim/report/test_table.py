import io
import re

import pytest
from rich.console import Console

from fl.runs.files import read_run
from sim.report.summary import summarize
from sim.report.table import print_summary
from sim.report.words import comparison, duration, size

OF_MER = {"run": {"main_metric": "mer", "measures": {"mer": {"label": "MER"}}}}


@pytest.fixture(scope="module")
def summary(finished_run):
    return summarize([read_run(finished_run)], samples=100)


def printed(summary, width=100):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    print_summary(summary, console)
    return console.file.getvalue()


def test_all_arms_and_metrics_fit_in_100_columns(summary):
    text = printed(summary)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100
    for name in (*summary["arms"], "WER", "CER", "MER", "JER", "PIER", "MER folded"):
        assert name in text
    assert "…" not in text


def test_the_best_arm_is_marked_without_colour(summary):
    row = next(line for line in printed(summary).splitlines() if "│ personalized" in line)
    assert f"{100 * summary['arms']['personalized']['mer']['rate']:.1f}*" in row


def test_the_sentence_claims_what_the_interval_allows(summary):
    found = summary["comparisons"]["personalized_vs_global"]["mer"]
    assert comparison(summary, "personalized", "global") == (
        f"personalized beats global by {-100 * found['relative']:.0f} % relative MER "
        f"(95 % CI {-100 * found['relative_high']:.0f} to {-100 * found['relative_low']:.0f})"
    )


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.02, 0.01, "no significant difference between a and b in MER (−0.5 points, 95 % CI −2.0 to +1.0)"),
        (0.001, 0.03, "is worse than"),
        (-0.03, -0.01, "beats"),
    ],
)
def test_only_an_interval_without_zero_names_a_winner(low, high, words):
    found = {"difference": (low + high) / 2, "low": low, "high": high, "relative": (low + high)}
    found |= {"relative_low": 2 * low, "relative_high": 2 * high, "excludes_zero": low > 0 or high < 0}
    assert words in comparison(OF_MER | {"comparisons": {"a_vs_b": {"mer": found}}}, "a", "b")


def test_an_arm_that_is_not_there_is_not_compared(summary):
    assert comparison(summary, "personalized", "nobody") is None


def test_costs_and_the_harmed_are_said(summary):
    text = re.sub(r"\s+", " ", printed(summary))
    assert "2.4 MB up" in text
    assert "made 1 of 8 devices worse: speaker-07" in text


@pytest.mark.parametrize(("count", "text"), [(999, "999 bytes"), (2_361_000, "2.4 MB"), (290_403_936, "290 MB")])
def test_sizes_are_readable(count, text):
    assert size(count).replace("\u202f", " ") == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.21, "3.2 s"), (59.4, "59 s"), (72, "1 min 12 s"), (3720, "1 h 2 min")]
)
def test_durations_are_readable(seconds, text):
    assert duration(seconds).replace("\u202f", " ") == text
