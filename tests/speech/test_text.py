import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.core.errors import TextError
from fl.speech.text import fold_text, normalize_text, script


def test_decomposed_korean_and_spanish_become_composed():
    for text in ("회의 미팅", "fútbol mañana"):
        decomposed = unicodedata.normalize("NFD", text)
        assert decomposed != text
        assert normalize_text(decomposed) == text


def test_compatibility_jamo_survive():
    assert normalize_text("ㅋㅋ 좋아") == "ㅋㅋ 좋아"


def test_all_white_space_is_one_space():
    assert normalize_text("\u3000 bug는\t오늘\u00a0\n fix ") == "bug는 오늘 fix"


@pytest.mark.parametrize("text", ["", "   ", "\u3000\n"])
def test_empty_text_is_refused(text):
    with pytest.raises(TextError, match="empty"):
        normalize_text(text)


def test_control_characters_are_refused_by_name():
    with pytest.raises(TextError, match=r"U\+0000"):
        normalize_text("a\0b")


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))))
def test_normalizing_twice_changes_nothing(text):
    try:
        once = normalize_text(text)
    except TextError:
        return
    assert normalize_text(once) == once


@pytest.mark.parametrize(
    ("chars", "name"),
    [
        ("가힣ㅋ가", "hangul"),
        ("azAZéñß", "latin"),
        ("漢語", "han"),
        ("ひらカタ", "kana"),
        ("09٣", "digit"),
        (" .-×÷я", "other"),
    ],
)
def test_each_character_has_its_script(chars, name):
    assert {script(char) for char in chars} == {name}


def test_two_spellings_of_a_loanword_fold_to_one_key():
    pairs = [("커피", "coffee"), ("미팅", "meeting")]
    assert (
        fold_text("Meeting에서 coffee를 마셨어.", pairs)
        == fold_text("미팅에서 커피를 마셨어", pairs)
        == "미팅에서 커피를 마셨어"
    )


def test_a_loanword_inside_another_latin_word_is_left_alone():
    assert fold_text("smart apples", [("앱", "app"), ("마트", "mart")]) == "smart apples"


def test_a_loanword_with_a_backslash_is_text_not_a_template():
    assert fold_text("x app", [(r"\1앱", "app")]) == "x 1앱"
