import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.core.errors import ConfigError
from fl.data.synthetic import korean, spanish

PAST, FUTURE, IF, AND = "A(ㅆ)어", "U(ㄹ) 거야", "U면", "S고"


@pytest.mark.parametrize(
    ("noun", "topic", "subject", "object_", "with_", "by"),
    [
        ("버그", "는", "가", "를", "와", "로"),
        ("데드라인", "은", "이", "을", "과", "으로"),
        ("파일", "은", "이", "을", "과", "로"),
        ("회의", "는", "가", "를", "와", "로"),
        ("집", "은", "이", "을", "과", "으로"),
    ],
)
def test_particles_follow_the_final_consonant(noun, topic, subject, object_, with_, by):
    chosen = [korean.particle(noun, name) for name in ("은", "이", "을", "과", "으로")]
    assert chosen == [topic, subject, object_, with_, by]


@given(st.integers(0xAC00, 0xD7A3))
def test_every_syllable_is_put_together_again_and_takes_some_particle(code):
    syllable = chr(code)
    assert korean.compose(*korean.decompose(syllable)) == syllable
    has_tail = (code - 0xAC00) % 28 != 0
    assert korean.particle(syllable, "을") == ("을" if has_tail else "를")


@pytest.mark.parametrize(
    ("verb", "past", "future", "condition"),
    [
        ("먹다", "먹었어", "먹을 거야", "먹으면"),
        ("가다", "갔어", "갈 거야", "가면"),
        ("보다", "봤어", "볼 거야", "보면"),
        ("마시다", "마셨어", "마실 거야", "마시면"),
        ("배우다", "배웠어", "배울 거야", "배우면"),
        ("보내다", "보냈어", "보낼 거야", "보내면"),
        ("켜다", "켰어", "켤 거야", "켜면"),
        ("쉬다", "쉬었어", "쉴 거야", "쉬면"),
        ("쓰다", "썼어", "쓸 거야", "쓰면"),
        ("바쁘다", "바빴어", "바쁠 거야", "바쁘면"),
        ("모으다", "모았어", "모을 거야", "모으면"),
        ("따르다", "따랐어", "따를 거야", "따르면"),
        ("만들다", "만들었어", "만들 거야", "만들면"),
        ("받다", "받았어", "받을 거야", "받으면"),
        ("하다", "했어", "할 거야", "하면"),
        ("준비하다", "준비했어", "준비할 거야", "준비하면"),
        ("듣다/ㄷ", "들었어", "들을 거야", "들으면"),
        ("맵다/ㅂ", "매웠어", "매울 거야", "매우면"),
        ("돕다/ㅂ", "도왔어", "도울 거야", "도우면"),
        ("낫다/ㅅ", "나았어", "나을 거야", "나으면"),
        ("고르다/르", "골랐어", "고를 거야", "고르면"),
        ("부르다/르", "불렀어", "부를 거야", "부르면"),
        ("끝내다", "끝냈어", "끝낼 거야", "끝내면"),
        ("되다", "됐어", "될 거야", "되면"),
    ],
)
def test_verbs_of_every_class_conjugate(verb, past, future, condition):
    assert [korean.conjugate(verb, ending) for ending in (PAST, FUTURE, IF)] == [past, future, condition]


def test_stems_in_rieul_lose_it_before_some_consonants_only():
    assert korean.conjugate("만들다", "U니까") == "만드니까"
    assert korean.conjugate("만들다", "U세요") == "만드세요"
    assert korean.conjugate("만들다", AND) == "만들고"


@pytest.mark.parametrize(
    ("verb", "ending"),
    [
        ("커피", PAST),
        ("가다/ㅎ", PAST),
        ("가다", "X고"),
        ("가다", ""),
        ("가다", "A("),
        ("먹다", "S(ㄴ)다"),
        ("가다", "U(ㅋ)다"),
    ],
)
def test_what_is_not_a_verb_or_an_ending_is_refused(verb, ending):
    with pytest.raises(ConfigError):
        korean.conjugate(verb, ending)


def test_a_particle_cannot_follow_a_latin_letter_or_be_unknown():
    with pytest.raises(ConfigError, match="not a Hangul syllable"):
        korean.particle("bug", "은")
    with pytest.raises(ConfigError, match="unknown Korean particle"):
        korean.particle("버그", "였")


@pytest.mark.parametrize(
    ("infinitive", "form", "expected"),
    [
        ("buscar", "past.yo", "busqué"),
        ("pagar", "past.yo", "pagué"),
        ("organizar", "past.yo", "organicé"),
        ("usar", "past.yo", "usé"),
        ("compartir", "past.ella", "compartió"),
        ("comer", "gerund", "comiendo"),
        ("usar", "infinitive", "usar"),
    ],
)
def test_spanish_verbs_keep_their_sound_in_spelling(infinitive, form, expected):
    assert spanish.conjugate(infinitive, form) == expected


def test_spanish_articles_and_adjectives_agree():
    assert spanish.article("el", spanish.gender("oficina", "")) == "la"
    assert spanish.article("del", spanish.gender("informe", "")) == "del"
    assert spanish.article("al", spanish.gender("canción", "")) == "a la"
    assert spanish.gender("problema", "m") == "m"
    assert [spanish.agree(word, "f") for word in ("caro", "importante")] == ["cara", "importante"]
