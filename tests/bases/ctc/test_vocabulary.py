"""What a CTC head writes: text to symbols and exactly back, or a refusal that says what is missing."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.bases.ctc.vocabulary import COMMON, load_vocabulary, make_vocabulary
from fl.core.errors import BaseModelError, ConfigError, VocabularyError
from fl.settings.names import OWN, TOKENS
from fl.speech.hangul import ALL_SYLLABLES, BREAK, COMPAT_JAMO, FORMS, JAMO, SYLLABLES

EVERY = "".join(chr(code) for code in range(0xAC00, 0xD7A4))
words = st.text(st.sampled_from([*COMMON, *"가각값뷁ㄱㅋㅏ"]), min_size=1, max_size=6)


@pytest.mark.parametrize("tokens", [ALL_SYLLABLES, JAMO, COMPAT_JAMO])
def test_every_syllable_can_be_written(tokens: str) -> None:
    vocabulary = make_vocabulary(tokens)
    assert vocabulary.decode(vocabulary.encode(EVERY)) == EVERY


@pytest.mark.parametrize("tokens", [ALL_SYLLABLES, JAMO, COMPAT_JAMO])
@given(text=st.lists(words, min_size=1, max_size=4))
def test_mixed_sentences_come_back(tokens: str, text: list[str]) -> None:
    vocabulary = make_vocabulary(tokens)
    sentence = " ".join(text)
    assert vocabulary.decode(vocabulary.encode(sentence)) == sentence


def test_sizes_are_those_of_the_inventories() -> None:
    common = 2 + len(COMMON)  # the blank and the space
    sizes = {tokens: len(make_vocabulary(tokens)) - common for tokens in TOKENS if tokens != OWN}
    assert sizes == {"latin": 0, SYLLABLES: 2401, ALL_SYLLABLES: 11223, JAMO: 118, COMPAT_JAMO: 52}


def test_what_is_missing_is_listed_with_counts() -> None:
    vocabulary = make_vocabulary(SYLLABLES)
    with pytest.raises(VocabularyError) as refused:
        vocabulary.require(["뷁 뷁 커피", "咖啡", "뷁"], "two transcripts")
    text = str(refused.value)
    assert text.startswith("two transcripts has 5 characters")
    assert "'뷁' (U+BDC1) 3x, '咖' (U+5496) 1x" in text
    assert "all-syllables" in text
    with pytest.raises(VocabularyError, match="'뷁'"):
        vocabulary.encode("뷁")
    vocabulary.require(["커피 coffee?"])


def test_a_vocabulary_without_korean_lacks_all_of_it() -> None:
    assert make_vocabulary("latin").missing(["커피 cup", "커"]) == {"커": 2, "피": 1}
    with pytest.raises(ConfigError, match="compat-jamo"):
        make_vocabulary(OWN)


@pytest.mark.parametrize("form", FORMS)
def test_an_extended_vocabulary_keeps_its_ids_and_writes_korean_too(form: str) -> None:
    plain = make_vocabulary("latin")
    wide = plain.extended(form)
    assert wide.symbols[: len(plain)] == plain.symbols
    assert set(wide.symbols) == set(make_vocabulary(form).symbols)
    text = "오늘 meeting 있어요 ㅋㅋ"
    assert wide.decode(wide.encode(text)) == text
    assert wide.encode("cup") == plain.encode("cup")


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    for form in (SYLLABLES, JAMO, COMPAT_JAMO):
        made = make_vocabulary(form)
        made.save(tmp_path)
        found = load_vocabulary(tmp_path, size=len(made), blank=0)
        assert found.symbols == made.symbols
        assert found.form == form
        assert found.digest == made.digest


def test_upper_case_letters_only_take_text_in_upper_case(tmp_path: Path) -> None:
    symbols = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABC'"]
    (tmp_path / "vocab.json").write_text(json.dumps({s: i for i, s in enumerate(symbols)}))
    vocabulary = load_vocabulary(tmp_path, size=len(symbols), blank=0)
    assert vocabulary.decode(vocabulary.encode("cab a'b")) == "CAB A'B"
    assert vocabulary.decode([1, 5, 3, 6, 4, 4, 7, 2]) == "AB C"
    wide = vocabulary.extended(COMPAT_JAMO)
    assert "a" not in wide.symbols
    assert "Z" in wide.symbols
    assert BREAK in wide.symbols
    assert wide.decode(wide.encode("가방 bag")) == "가방 BAG"


@pytest.mark.parametrize(
    ("vocabulary", "reason"),
    [(None, "no vocab.json"), ({"a": 9}, "from 0 to 3"), ({"a": 0, "b": "1"}, "from 0 to 3"), ({}, "from 0 to 3")],
)
def test_a_vocabulary_that_does_not_fit_the_head_is_refused(tmp_path: Path, vocabulary: object, reason: str) -> None:
    if vocabulary is not None:
        (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(BaseModelError, match=reason):
        load_vocabulary(tmp_path, size=4, blank=0)
