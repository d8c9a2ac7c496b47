import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.report.diff import align
from sim.report.page import templates

MARKS = templates().get_template("samples.html").module
TEXTS = st.text(alphabet="가나다커피coffee 를 the.<>&'\"", max_size=20)


def changes(reference, hypothesis, loanwords=()):
    return [
        (part.kind, part.reference.strip(), part.hypothesis.strip())
        for part in align(reference, hypothesis, loanwords)
        if part.kind != "equal"
    ]


def test_a_wrong_syllable_does_not_mark_its_word():
    assert changes("이번 버그는 고쳤어", "이번 버그는 고쳐어") == [("substitution", "쳤", "쳐")]


def test_the_other_spelling_of_a_loanword_is_told_from_a_wrong_word():
    pairs = [("커피", "coffee")]
    assert changes("커피를 마셔", "Coffee을 마셔", pairs) == [
        ("spelling", "커피", "Coffee"),
        ("substitution", "를", "을"),
    ]
    assert changes("coffee 마셔", "커피 마셔", pairs) == [("spelling", "coffee", "커피")]
    assert changes("coffee 마셔", "커피 마셔") == [("substitution", "coffee", "커피")]


def test_lost_and_added_words_and_spaces_are_told_apart():
    assert changes("나 어제 갔어", "나 갔어") == [("deletion", "어제", "")]
    assert changes("나 갔어", "나 또 갔어") == [("insertion", "", "또")]
    assert changes("bug는", "bug 는") == [("spacing", "", "")]
    assert changes("갔어.", "갔어") == [("spacing", ".", "")]


def test_the_same_sentence_in_nfd_has_no_difference():
    assert changes("커피 마실래", unicodedata.normalize("NFD", "커피 마실래")) == []


@given(TEXTS, TEXTS)
def test_segments_join_to_both_texts(reference, hypothesis):
    segments = align(reference, hypothesis, [("커피", "coffee")])
    assert "".join(part.reference for part in segments) == reference.strip()
    assert "".join(part.hypothesis for part in segments) == hypothesis.strip()


@given(TEXTS, TEXTS)
def test_nothing_a_transcript_holds_becomes_markup(reference, hypothesis):
    html = MARKS.diff(reference, hypothesis)
    bare = re.sub(r"</?(?:span|del|ins)(?: (?:class|lang|title|aria-hidden)=\"[^\"<>]*\")*>", "", html)
    assert "<" not in bare
    assert ">" not in bare


@pytest.mark.parametrize(
    ("reference", "hypothesis", "mark"),
    [("a b", "a", "<del"), ("a", "a b", "<ins"), ("a b", "a c", "d-substitution"), ("ab", "a b", "d-substitution")],
)
def test_each_kind_of_difference_has_an_element_of_its_own(reference, hypothesis, mark):
    assert mark in MARKS.diff(reference, hypothesis)


def test_an_empty_hypothesis_is_said_in_words():
    assert "(nothing)" in MARKS.diff("커피", " ")


def test_hangul_carries_its_language():
    assert MARKS.korean("a 커피 b") == 'a <span lang="ko">커피 </span>b'
