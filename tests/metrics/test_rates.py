import unicodedata

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.core.errors import ConfigError, MetricError
from fl.metrics import METRICS, Counts, score_utterance
from fl.metrics.align import align
from fl.metrics.languages import check_spans, language_tags, matrix_language, switch_words
from fl.metrics.tokens import normalize_for_scoring

WORDS = ["나", "커피는", "coffee", "bug는", "값", "meeting", "에", "갔어", "3시", "the", "我想", "niño", "각"]
SENTENCES = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)
COUNTS = st.builds(Counts, *[st.integers(0, 50)] * 4)
TOKENS = st.lists(st.sampled_from(["a", "b", "", " ", "a b", "\n", "가"]), max_size=7)
COFFEE = [("커피", "coffee")]


@given(SENTENCES)
def test_a_text_scores_zero_against_itself_and_against_its_decomposition(text):
    for other in (text, unicodedata.normalize("NFD", text), text.upper(), text + " !"):
        scores = score_utterance(text, other, loanwords=COFFEE)
        assert all(counts.errors == 0 for counts in [*scores.metrics.values(), *scores.by_language.values()])


@given(st.lists(COUNTS))
def test_counts_add_up_in_any_order(parts):
    total = sum(parts, Counts())
    assert total == sum(parts) or not parts
    assert total == sum(reversed(parts), Counts())
    assert total.errors == sum(part.errors for part in parts)
    assert total.reference == sum(part.reference for part in parts)


def test_a_rate_without_reference_is_none_and_not_a_division_by_zero():
    assert Counts(insertions=3).rate is None


@given(TOKENS, TOKENS)
def test_an_alignment_is_a_path_whose_edits_are_its_counts(reference, hypothesis):
    alignment = align(reference, hypothesis)
    kinds = [edit.operation for edit in alignment.edits]
    counts = alignment.counts
    assert (kinds.count("substitute"), kinds.count("delete"), kinds.count("insert")) == (
        counts.substitutions,
        counts.deletions,
        counts.insertions,
    )
    assert [edit.reference for edit in alignment.edits if edit.operation != "insert"] == list(range(len(reference)))
    assert [edit.hypothesis for edit in alignment.edits if edit.operation != "delete"] == list(range(len(hypothesis)))
    for edit in alignment.edits:
        if edit.operation in ("equal", "substitute"):
            same = reference[edit.reference] == hypothesis[edit.hypothesis]
            assert same == (edit.operation == "equal")
    consumed = 0
    for edit in alignment.edits:  # an insertion stands before the next reference token that is still to come
        assert edit.reference == consumed
        consumed += edit.operation != "insert"
    assert abs(len(reference) - len(hypothesis)) <= counts.errors <= max(len(reference), len(hypothesis))
    assert counts.reference == len(reference)


@given(SENTENCES.filter(bool), SENTENCES)
def test_word_and_character_rates_agree_with_jiwer(reference, hypothesis):
    metrics = score_utterance(reference, hypothesis).metrics
    reference, hypothesis = normalize_for_scoring(reference), normalize_for_scoring(hypothesis)
    assert metrics["wer"].rate == pytest.approx(jiwer.wer(reference, hypothesis))
    assert metrics["cer"].rate == pytest.approx(jiwer.cer(reference, hypothesis))


def test_an_empty_hypothesis_is_all_deletions_and_an_empty_reference_all_insertions():
    silent = score_utterance("나 coffee 마셔", "")
    noisy = score_utterance("", "나 coffee 마셔")
    for name in METRICS:
        if name not in ("wrong_script", "other_language"):
            assert silent.metrics[name].deletions == silent.metrics[name].reference > 0, name
            assert noisy.metrics[name].reference == 0
    assert noisy.metrics["wer"] == Counts(insertions=3)
    assert noisy.by_language == {"en": Counts(insertions=1), "ko": Counts(insertions=2)}
    assert score_utterance("", "").metrics["wer"] == Counts()


def test_folding_forgives_the_spelling_of_a_loanword_and_nothing_else():
    metrics = score_utterance("나 커피를 마셔", "너 coffee를 마셔", loanwords=COFFEE).metrics
    assert metrics["wer"] == Counts(substitutions=2, reference=3)
    assert metrics["wer_folded"] == Counts(substitutions=1, reference=3)
    assert metrics["mer_folded"] == Counts(substitutions=1, reference=5)  # 나 coffee 를 마 셔
    assert metrics["cer_folded"] == Counts(substitutions=1, reference=len("나 coffee를 마셔"))
    assert metrics["wrong_script"] == Counts(substitutions=1, reference=3)
    assert metrics["other_language"].errors == 0


def test_a_word_of_another_language_is_counted_and_another_spelling_is_not():
    def found(hypothesis: str) -> Counts:
        return score_utterance("나 coffee를 마셔", hypothesis, loanwords=COFFEE).metrics["other_language"]

    assert found("나 coffee를 drink") == Counts(substitutions=1, reference=4)  # 나 coffee 를 마셔: translated
    assert found("나 커피를 마셔") == Counts(reference=4)  # the same word
    assert found("나 toffee를 마셔") == Counts(reference=4)  # misheard, in the same script
    assert found("나 코피를 마셔") == Counts(substitutions=1, reference=4)  # heard as Korean


@given(SENTENCES, SENTENCES)
def test_without_loanwords_folded_rates_are_the_plain_ones(reference, hypothesis):
    metrics = score_utterance(reference, hypothesis).metrics
    for name in ("wer", "mer", "cer"):
        assert metrics[f"{name}_folded"] == metrics[name]
    assert metrics["wrong_script"].errors == 0


def test_the_particle_is_split_from_a_point_of_interest_on_both_sides():
    spans = [("이번", "ko"), ("bug는", "en"), ("고쳤어", "ko")]
    for hypothesis in ("이번 bug는 고쳤어", "이번 bug 는 고쳤어", "이번 bug 은 고쳤어"):
        assert score_utterance("이번 bug는 고쳤어", hypothesis, spans=spans).metrics["pier"] == Counts(reference=1)
    assert score_utterance("이번 bug는 고쳤어", "이번 버그 는 고쳤어", spans=spans).metrics["pier"].substitutions == 1


def test_spans_may_cut_a_word_into_its_parts():
    spans = [("이번", "ko"), ("bug", "en"), ("는", "ko"), ("고쳤어", "ko")]
    assert score_utterance("이번 bug는 고쳤어", "이번 bug을 고쳤어", spans=spans).by_language == {
        "en": Counts(reference=1),
        "ko": Counts(substitutions=1, reference=3),
    }


def test_a_loanword_in_the_matrix_script_is_a_point_of_interest_if_its_span_says_so():
    spans = [("나", "ko"), ("커피", "en"), ("마셔", "ko")]
    assert score_utterance("나 커피 마셔", "나 코피 마셔", spans=spans).metrics["pier"] == Counts(1, 0, 0, 1)


def test_the_language_of_most_words_is_the_matrix_and_a_tie_goes_to_the_first():
    assert matrix_language(["en", "ko", "ko", None]) == "ko"
    assert matrix_language(["en", "ko", None, None]) == "en"
    assert matrix_language([None]) is None


def test_an_utterance_wholly_in_the_embedded_language_has_points_only_if_the_matrix_is_given():
    spans = [("hello", "en"), ("world", "en")]
    assert score_utterance("hello world", "hello word", spans=spans).metrics["pier"] == Counts()
    assert score_utterance("hello world", "hello word", spans=spans, matrix="ko").metrics["pier"] == Counts(1, 0, 0, 2)


def test_two_languages_of_one_script_are_told_apart_by_spans():
    spans = [("quiero", "es"), ("un", "es"), ("deadline", "en")]
    scores = score_utterance("quiero un deadline", "quiero a deadlines now", spans=spans)
    assert scores.metrics["pier"] == Counts(1, 0, 0, 1)
    # the script of "now" does not tell its language, and it follows the last word: the matrix language has it
    assert scores.by_language == {"en": Counts(1, 0, 0, 1), "es": Counts(1, 0, 1, 2)}
    # and here it precedes an English word
    scores = score_utterance("quiero un deadline", "quiero un big deadline", spans=spans)
    assert scores.by_language == {"en": Counts(0, 0, 1, 1), "es": Counts(0, 0, 0, 2)}


def test_an_insertion_is_charged_to_the_language_of_the_inserted_word():
    scores = score_utterance("나 meeting 갔어", "나 어제 meeting the 갔어")
    assert scores.by_language == {"en": Counts(0, 0, 1, 1), "ko": Counts(0, 0, 1, 2)}


@given(SENTENCES, SENTENCES)
def test_errors_by_language_add_up_to_one_alignment(reference, hypothesis):
    by_language = score_utterance(reference, hypothesis).by_language
    said, heard = (switch_words(normalize_for_scoring(text)) for text in (reference, hypothesis))
    assert sum(by_language.values(), Counts()) == align(said, heard).counts


def test_numbers_belong_to_no_language():
    spans = [("3.5", "other"), ("bugs", "en"), ("나왔어", "ko")]
    scores = score_utterance("3.5 bugs, 나왔어.", "4 bugs 나왔어", spans=spans)
    assert scores.by_language["other"] == Counts(1, 0, 0, 1)
    assert language_tags("100 bug는") == [None, "en", "ko"]


def test_spans_that_do_not_spell_the_reference_are_refused_with_both_texts():
    with pytest.raises(MetricError, match=r"나 갔어.*나 meeting 갔어"):
        score_utterance("나 meeting 갔어", "나", spans=[("나", "ko"), ("갔어", "ko")])
    check_spans("나, Meeting 갔어!", [("나,", "ko"), ("meeting", "en"), ("갔어!", "ko")])


def test_an_unknown_metric_is_refused_by_a_list_of_the_known_ones():
    with pytest.raises(ConfigError, match=r"'weer'.*wer, cer, mer.*pier"):
        METRICS.find("weer")


@settings(max_examples=300)
@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_can_be_scored(reference, hypothesis):
    scores = score_utterance(reference, hypothesis, loanwords=COFFEE)
    assert set(scores.metrics) == set(METRICS)
    for counts in scores.metrics.values():
        assert counts.substitutions + counts.deletions <= counts.reference
