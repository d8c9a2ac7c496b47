"""The table of what new people get."""

from benchmarks.new_people import Scored, table
from fl.metrics import Counts


def scored(person: str, errors: int) -> Scored:
    counts = Counts(substitutions=errors, reference=10)
    return Scored(person, {"mer": counts, "wer": counts, "mer_folded": Counts(reference=10)})


def test_errors_are_pooled_and_compared_in_pairs() -> None:
    scores = {
        "global": [scored("a", 2), scored("a", 4), scored("b", 0)],
        "neutral": [scored("a", 3), scored("a", 5), scored("b", 1)],
    }
    lines = table(scores, [7]).splitlines()
    assert lines[2].startswith("| global | 20.0 (")
    assert lines[3].startswith("| neutral | 30.0 (")
    assert lines[4].startswith(
        "| neutral against global, points | +10.0 (+10.0 to +10.0)"
    )  # each sentence has one more
    assert "Seeds 7; 2 new people, 3 sentences" in lines[-1]
