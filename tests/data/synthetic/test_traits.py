"""Traits: what is written differs without a change of sound, what is heard is in the text, and words of one's own are one's own."""

import random
import re
from functools import partial

import pytest

from fl.core.errors import ConfigError
from fl.data.synthetic import known_pairs, load_pair
from fl.data.synthetic.grammar import LEVELS, generate
from fl.data.synthetic.phonology import Accent
from fl.data.synthetic.population import population_digest
from fl.data.synthetic.traits import as_said, check_traits, with_own_words
from fl.metrics.languages import check_spans

MATRIX, LATIN = (lambda *_: False), (lambda *_: True)


def sentences(pair, traits, count=40, person="anna", seed=3):
    draws = random.Random(5)
    for number in range(count):
        topic = draws.choice(pair.topics).name
        said = generate(pair, level=LEVELS[number % 4], topic=topic, register=1, random=draws)
        yield as_said(said, pair, traits, person, seed, draws)


@pytest.mark.parametrize("name", known_pairs())
def test_digits_and_fillers_are_said_as_they_are_spelled(name):
    pair = load_pair(name)
    traits = {"numbers": 1.0, "fillers": 1.0}
    found = list(sentences(pair, traits))
    digits = [sentence.write(pair, LATIN) for sentence in found]
    words = [sentence.write(pair, MATRIX) for sentence in found]
    assert sum(bool(re.search(r"\d", written.text)) for written in digits) > 8
    assert not any(re.search(r"\d", written.text) for written in words)
    for sentence, written in zip(found, digits, strict=True):
        check_spans(written.text, written.spans)
        assert any(filler in written.text for filler in pair.traits.fillers)
        assert not any(re.search(r"\d", text) for text, _ in sentence.segments(pair))


def test_without_traits_a_sentence_stays_as_it_is():
    pair = load_pair("ko-en")
    assert list(sentences(pair, {})) == list(sentences(pair, {"accent": 1.0, "spacing": 1.0}))


def test_spaces_left_out_change_the_text_alone():
    pair = load_pair("ko-en")
    joined = 0
    for sentence in sentences(pair, {}):
        apart, together = (sentence.write(pair, MATRIX, joining=joining) for joining in (False, True))
        assert apart.text.replace(" ", "") == together.text.replace(" ", "")
        assert apart.spans == together.spans
        check_spans(together.text, together.spans)
        joined += apart.text != together.text
    assert joined > 5


@pytest.mark.parametrize("name", known_pairs())
def test_names_and_terms_are_used_by_one_person_alone(name):
    pair = load_pair(name)
    own = [with_own_words(pair, {"names": 1.0, "jargon": 1.0}, place, seed=1) for place in range(18)]

    def said(pair, kind, category):
        entries = {phrase.sound for topic in pair.topics for frame in topic.frames for phrase in frame[kind, category]}
        return entries

    names = [said(one, "matrix", "person") for one in own]
    shared = said(pair, "embedded", "object")
    terms = [said(one, "embedded", "object") - shared for one in own]
    for words in (names, terms):
        assert [len(one) for one in words] == [2] * 18
        assert len(set.union(*words)) == 36
    assert with_own_words(pair, {"names": 1.0}, 0, seed=2) != with_own_words(pair, {"names": 1.0}, 0, seed=1)


def test_a_korean_accent_has_no_f_v_z_th_and_no_clusters():
    korean = Accent("ko", 1.0, "anna")
    assert korean("fˈIl vˈIn zˈu θˈɪŋk", "en-us") == "pʰˈIl bˈIn ʥˈu sˈɪŋkɯ"
    assert korean("stɹˈIk bˈʌs fˈɪnɪʃ lˈʌnʧ", "en-us") == "sɯtɯɾˈIkɯ bˈʌsɯ pʰˈɪnɪʃi lˈʌnʧi"
    assert Accent("es", 1.0, "anna")("stˈAbəl", "en-us") == "estˈAbel"
    assert Accent("ja", 1.0, "anna")("lˈɪst", "en-us") == "ɾˈisɯto"


def test_an_accent_has_a_degree_is_always_the_same_and_leaves_the_first_language():
    text = "fˈIl vˈIv zˈu fˈɪʃ væn zɪp fˈæst vˈOt zˈɛd fˈʊt"
    half = Accent("ko", 0.5, "anna")
    assert half(text, "en-us") == half(text, "en-us")
    assert half(text, "en-us") != Accent("ko", 0.5, "ben")(text, "en-us")
    changed = [one != other for one, other in zip(half(text, "en-us").split(), text.split(), strict=True)]
    assert 2 <= sum(changed) <= 9
    assert Accent("ko", 0.0, "anna")(text, "en-us") == text == half(text, "ko")


def test_what_cannot_be_asked_for_names_what_can():
    pair = load_pair("es-en")
    with pytest.raises(ConfigError, match=r"unknown trait 'lisp'; known: accent, numbers"):
        check_traits("numbers,lisp", pair)
    with pytest.raises(ConfigError, match=r"es-en has no trait 'spacing': give joined under \[traits\]"):
        check_traits("spacing", pair)
    digest = partial(population_digest, pair="es-en", devices=2, new_people=0, sentences=2, seed=0)
    with pytest.raises(ConfigError, match="espeak cannot speak with an accent"):
        digest(traits="accent")
    with pytest.raises(ConfigError, match=r"unknown voices 'opera'; known: espeak, neural"):
        digest(voices="opera")
    assert len({digest(), digest(matched=True), digest(voices="neural"), digest(traits="numbers")}) == 4


def test_every_japanese_word_has_a_reading():
    pair = load_pair("ja-en")
    for sentence in sentences(pair, {"numbers": 1.0, "fillers": 0.5}, count=300):
        for text, language in sentence.segments(pair):
            assert language == "en-us" or re.fullmatch(r"[ァ-ヺー ]+", text), text
