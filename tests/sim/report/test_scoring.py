"""What an interval is over: people, and of one who is alone the sentences."""

import pytest

from fl.runs.schema import PredictionRow
from sim.report.scoring import ScoredRow, compare, intervals, score

SENTENCES = 20


def heard(arm: str, device: str, *, right: bool) -> list[ScoredRow]:
    rows = [
        PredictionRow(
            arm=arm,
            device=device,
            new_person=False,
            utterance=str(number),
            reference="one two",
            hypothesis="one two" if right else "no no",
        )
        for number in range(SENTENCES)
    ]
    return score(rows)


@pytest.mark.parametrize("wrong", [1, 2])
def test_many_sentences_of_a_person_are_one_draw(wrong):
    people = [row for n in range(4) for row in heard("global", f"p{n}", right=n >= wrong)]
    found = intervals(people, seed=1)["wer"]
    assert found["rate"] == wrong / 4
    assert (found["low"], found["high"]) == (
        0.0,
        (wrong + 2) / 4,
    )  # 4 draws of people; sentences would be within a tenth


def test_a_difference_that_one_person_makes_alone_is_not_decided():
    before = [row for n in range(4) for row in heard("global", f"p{n}", right=False)]
    after = [row for n in range(4) for row in heard("personalized", f"p{n}", right=n == 0)]
    found = compare(after, before, seed=1)["wer"]
    assert found["difference"] == pytest.approx(-1 / 4)
    assert not found["excludes_zero"]


def test_of_one_person_the_sentences_are_drawn():
    rows = [*heard("global", "p", right=True)[: SENTENCES // 2], *heard("global", "p", right=False)[SENTENCES // 2 :]]
    found = intervals(rows, seed=1)["wer"]
    assert 0.2 < found["low"] < 0.5 < found["high"] < 0.8
