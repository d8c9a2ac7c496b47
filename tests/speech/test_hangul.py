"""Korean text as symbols and back: nothing is lost in any form."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.core.errors import ConfigError
from fl.speech.hangul import ALL_SYLLABLES, BREAK, COMPAT_JAMO, FORMS, JAMO, SYLLABLES, compose, inventory, join, split

EVERY = [chr(code) for code in range(0xAC00, 0xD7A4)]
mixed = st.text(st.sampled_from("가각갉까뷁ㄱㄳㄸㅋㅏㅘㅣ aB7?é한값"), max_size=12)


@pytest.mark.parametrize("form", FORMS)
def test_every_syllable_comes_back_alone_and_between_any_neighbours(form: str) -> None:
    assert [join(split(syllable, form), form) for syllable in EVERY] == EVERY
    text = "".join(EVERY)  # every tail before every lead that follows it in the order
    assert join(split(text, form), form) == text
    for tail_before in ("가", "각", "값"):
        text = "".join(tail_before + syllable for syllable in EVERY)
        assert join(split(text, form), form) == text


@pytest.mark.parametrize("form", FORMS)
@given(text=mixed)
def test_mixed_text_comes_back(form: str, text: str) -> None:
    assert join(split(text, form), form) == unicodedata.normalize("NFC", text)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
def test_any_text_comes_back_in_its_nfc(text: str) -> None:
    for form in FORMS:
        assert join(split(text, form), form) == unicodedata.normalize("NFC", text)


def test_the_forms_are_the_letters_that_they_name() -> None:
    assert split("값이", SYLLABLES) == ["값", "이"]
    assert split("값이", JAMO) == ["\u1100", "\u1161", "\u11b9", "\u110b", "\u1175"]
    assert split("값이 ok", COMPAT_JAMO) == [*"ㄱㅏㅄㅇㅣ ok"]
    assert split(unicodedata.normalize("NFD", "값이"), COMPAT_JAMO) == [*"ㄱㅏㅄㅇㅣ"]


def test_a_consonant_goes_to_the_vowel_behind_it() -> None:
    assert compose([*"ㅎㅏㄴㄱㅜㄱㅓ"]) == "한구거"
    assert compose([*"ㅎㅏㄴㄱㅜㄱㅇㅓ"]) == "한국어"
    assert compose([*"ㄱㅏㄸ"]) == "가ㄸ"  # ㄸ is never a tail


def test_only_letters_that_stand_alone_need_a_break() -> None:
    assert BREAK not in split("".join(EVERY), COMPAT_JAMO)
    assert split("가ㅋㅋ", COMPAT_JAMO) == ["ㄱ", "ㅏ", BREAK, "ㅋ", "ㅋ"]
    assert split("각ㅋ", COMPAT_JAMO) == [*"ㄱㅏㄱㅋ"]
    assert split("ㄱㅏ", COMPAT_JAMO) == ["ㄱ", BREAK, "ㅏ"]
    assert compose(["ㄱ", BREAK, "ㅏ"]) == "ㄱㅏ"


@given(symbols=st.lists(st.sampled_from([*"ㄱㄳㄸㅏㅘ a", BREAK]), max_size=10))
def test_whatever_a_model_writes_is_text_without_breaks(symbols: list[str]) -> None:
    assert BREAK not in join(symbols, COMPAT_JAMO)


def test_inventories_hold_what_their_form_writes_and_nothing_twice() -> None:
    assert [len(inventory(form)) for form in (SYLLABLES, ALL_SYLLABLES, JAMO, COMPAT_JAMO)] == [2401, 11223, 118, 52]
    for form in FORMS:
        assert len(set(inventory(form))) == len(inventory(form))
    for form in (ALL_SYLLABLES, JAMO, COMPAT_JAMO):
        assert {s for syllable in EVERY for s in split(syllable, form)} <= set(inventory(form))
    with pytest.raises(ConfigError, match=r"'nfkc'.*compat-jamo"):
        inventory("nfkc")
