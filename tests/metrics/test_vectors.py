"""Every case of vectors.json, with no case left out and no exceptions."""

import re
import unicodedata
from dataclasses import asdict

import pytest

from fl.metrics import score_utterance

JER_METRICS = {"nfd": "jer_nfd", "compat": "jer_compat", "compat_split": "jer_compat_split", "cer": "cer"}


def _check(counts, expected):
    assert asdict(counts) == {name: expected[name] for name in asdict(counts)}
    assert counts.rate == pytest.approx(expected["rate"], abs=1e-6)


def test_mixed_word_and_character_error_rates_match_the_worked_examples(vectors):
    for case in vectors["mer"]["cases"]:
        scores = score_utterance(case["reference"], case["hypothesis"]).metrics
        for name in ("mer", "wer", "cer"):
            _check(scores[name], case[name])


def test_jamo_error_rates_match_the_worked_examples_in_all_three_decompositions(vectors):
    for case in vectors["jer"]["cases"]:
        scores = score_utterance(case["reference"], case["hypothesis"]).metrics
        for form, name in JER_METRICS.items():
            _check(scores[name], case[form])


def _spans(tagged: str) -> list[tuple[str, str]]:
    pieces = re.findall(r"<tag (\S+)>|(\S+)", tagged)
    return [(point, "en") if point else (word, "ko") for point, word in pieces]


def test_points_of_interest_match_the_worked_examples(vectors):
    for case in vectors["pier"]["cases"]:
        spans = _spans(case["reference"])
        text = " ".join(word for word, _ in spans)
        for used in (spans, ()):  # for Korean and English the script alone says as much as the spans
            pier = score_utterance(text, case["hypothesis"], spans=used, matrix="ko").metrics["pier"]
            assert (pier.errors, pier.reference) == (case["errors"], case["reference_words"]), case


def test_nfc_and_nfd_of_the_same_text_score_zero_on_every_metric(vectors):
    text = vectors["unicode"]["cases"][0]["text"]
    for reference, hypothesis in (
        (text, unicodedata.normalize("NFD", text)),
        (unicodedata.normalize("NFD", text), text),
    ):
        assert all(counts.errors == 0 for counts in score_utterance(reference, hypothesis).metrics.values())


def test_compatibility_jamo_are_not_fused_by_nfkc(vectors):
    case = vectors["unicode"]["cases"][1]
    assert unicodedata.normalize("NFKC", case["text"]) == case["nfkc"]
    cer = score_utterance(case["text"], case["nfkc"]).metrics["cer"]
    assert cer.reference == len(case["text"])
    assert cer.errors > 0
