import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from fl.metrics.languages import switch_words
from fl.metrics.tokens import fold_loanwords, jamo, mixed_tokens, normalize_for_scoring, words

MIXED_TEXT = st.text(
    alphabet=st.one_of(st.characters(), st.sampled_from("가각값한글 bugé 我想,.!'\"-[]()12 ㄱㅄ")), max_size=30
)


def test_a_particle_is_its_own_mixed_token():
    assert mixed_tokens("이번 bug는 我想 camp") == ["이", "번", "bug", "는", "我", "想", "camp"]


def test_japanese_without_spaces_is_told_apart_from_the_english_in_it():
    assert mixed_tokens("昨日bugをcheckした") == ["昨", "日", "bug", "を", "check", "し", "た"]


def test_the_three_jamo_forms_take_a_cluster_apart_differently():
    assert jamo("값", "nfd") == ["\u1100", "\u1161", "\u11b9"]
    assert jamo("값", "compat") == ["ㄱ", "ㅏ", "ㅄ"]
    assert jamo("값", "compat_split") == ["ㄱ", "ㅏ", "ㅂ", "ㅅ"]


def test_a_double_consonant_is_one_letter_and_a_space_is_one_letter():
    assert jamo("갂 e", "compat_split") == ["ㄱ", "ㅏ", "ㄲ", " ", "e"]


def test_every_modern_syllable_agrees_with_unicode_decomposition():
    for code in range(0xAC00, 0xD7A4):
        syllable = chr(code)
        conjoining = unicodedata.normalize("NFD", syllable)
        assert jamo(syllable, "nfd") == list(conjoining)
        # Unicode's compatibility decomposition leads from U+31xx back to the lead or vowel of U+11xx
        compat = jamo(syllable, "compat")
        assert [unicodedata.normalize("NFKD", letter) for letter in compat[:2]] == list(conjoining[:2])
        assert len(compat) == len(conjoining)
        if len(conjoining) == 3:
            tail_name = unicodedata.name(conjoining[2]).removeprefix("HANGUL JONGSEONG ")
            first_part = unicodedata.name(jamo(syllable, "compat_split")[2]).removeprefix("HANGUL LETTER ")
            assert tail_name.split("-")[0] == first_part


def test_accented_latin_letters_stay_one_letter_in_every_form():
    assert all(jamo("café", form) == list("café") for form in ("nfd", "compat", "compat_split"))


def test_words_are_cut_where_the_script_changes_and_numbers_stay_with_the_letters_before_them():
    assert switch_words("bug는 mp3를 3시 meeting에서 我想 camp") == (
        ["bug", "는", "mp3", "를", "3시", "meeting", "에서", "我", "想", "camp"]
    )


def test_scoring_form_drops_case_punctuation_and_events_but_not_numbers():
    text = '[웃음] "Bug"는, Don\'t  worry… 3.5% of 10,000—네~'
    assert normalize_for_scoring(text) == "bug는 dont worry 3.5% of 10000 네"


def test_scoring_form_of_punctuation_alone_is_empty():
    assert normalize_for_scoring(" ...!? ") == ""


@given(MIXED_TEXT)
def test_scoring_form_is_idempotent_and_composed(text):
    once = normalize_for_scoring(text)
    assert normalize_for_scoring(once) == once
    assert unicodedata.is_normalized("NFC", once)


@given(MIXED_TEXT)
def test_tokens_of_every_kind_keep_every_letter(text):
    joined = "".join(words(text))
    assert "".join(mixed_tokens(text)) == joined
    assert "".join(switch_words(text)) == joined
    assert unicodedata.normalize("NFC", "".join(jamo(text, "nfd"))) == " ".join(words(text))


def test_folding_turns_a_loanword_with_its_particle_into_latin():
    assert fold_loanwords("커피는 맛있다", [("커피", "coffee")]) == "coffee는 맛있다"


def test_folding_prefers_the_longest_spelling_and_never_rewrites_its_own_output():
    pairs = [("커피", "coffee"), ("커피숍", "coffee shop"), ("숍", "shop")]
    assert fold_loanwords("커피숍", pairs) == "coffee shop"
    assert fold_loanwords("가나", [("가", "나"), ("나", "x")]) == "나x"


def test_folding_is_case_sensitive_and_respects_word_edges_of_alphabets():
    pairs = [("mol", "mall"), ("Web", "web page")]
    assert fold_loanwords("el mol molesto web", pairs) == "el mall molesto web"


def test_folding_finds_a_spelling_given_in_nfd():
    assert fold_loanwords("커피", [(unicodedata.normalize("NFD", "커피"), "coffee")]) == "coffee"
