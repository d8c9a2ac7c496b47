import re
from collections import Counter

import pytest

from fl.core.errors import ConfigError
from fl.core.rng import derive_random
from fl.data.synthetic import known_pairs, korean, load_pair
from fl.data.synthetic.grammar import LEVELS, generate
from fl.data.synthetic.pairs import PAIRS_FOLDER
from fl.speech.text import normalize_text, script

CHOICES = {
    "은": "는", "이": "가", "을": "를", "과": "와", "이랑": "랑",
}  # fmt: skip


@pytest.fixture(scope="module", params=["ko-en", "es-en"])
def pair(request):
    return load_pair(request.param)


@pytest.fixture(scope="module")
def korean_english():
    return load_pair("ko-en")


def sentences(pair, count, level=None, seed=0):
    random = derive_random(seed, "test sentences")
    topics = [topic.name for topic in pair.topics]
    for index in range(count):
        wanted = level or LEVELS[index % len(LEVELS)]
        yield generate(pair, level=wanted, topic=topics[index % len(topics)], register=index % 2, random=random)


def test_the_lexicon_is_a_language_and_not_a_handful_of_words(korean_english):
    entries = list(korean_english.entries())
    matrix = {word[0].text for kind, entry in entries if kind == "matrix" for word in entry.words}
    embedded = {word[0].text.lower() for kind, entry in entries if kind == "embedded" for word in entry.words}
    assert len(matrix) >= 300
    assert len(embedded) >= 150
    assert len(korean_english.loanwords()) >= 60
    assert len(korean_english.topics) >= 8
    assert len(load_pair("es-en").loanwords()) >= 25


def test_every_entry_is_composed_and_in_the_script_of_its_language(pair):
    for kind, entry in pair.entries():
        for word in entry.words:
            text = word[0].text
            assert normalize_text(text) == text
            scripts = {script(char) for char in text}
            assert scripts == ({"hangul"} if kind != "embedded" and pair.matrix == "ko" else {"latin"}), text
            if word[0].latin is not None:
                assert {script(char) for char in word[0].latin} == {"latin"}
                assert word[0].latin != text


def test_a_loanword_has_one_pair_of_spellings(pair):
    pairs = {(w[0][0].text, w[0][0].latin) for kind, e in pair.entries() if kind == "loan" for w in [e.words]}
    for side in (0, 1):
        counts = Counter(item[side] for item in pairs)
        assert not [word for word, count in counts.items() if count > 1]


def test_every_pattern_expands_in_every_topic(pair):
    for topic in pair.topics:
        for level in LEVELS:
            random = derive_random(1, topic.name, level)
            for _ in range(60):
                for register in (0, 1):
                    sentence = generate(pair, level=level, topic=topic.name, register=register, random=random)
                    assert 3 <= len(sentence.words) <= 16


def test_the_written_text_is_its_spans_put_together(pair):
    for sentence in sentences(pair, 200):
        written = sentence.write(pair, lambda matrix, _latin: len(matrix) % 2 == 0)
        assert "".join(text for text, _ in written.spans) == written.text.replace(" ", "")
        assert {language for _, language in written.spans} <= {pair.matrix, pair.embedded}
        assert normalize_text(written.text) == written.text


def test_korean_parts_are_in_hangul_and_english_parts_in_latin(korean_english):
    for sentence in sentences(korean_english, 400):
        written = sentence.write(korean_english, lambda matrix, _latin: len(matrix) % 2 == 0)
        for text, language in written.spans:
            assert {script(char) for char in text} == {"hangul" if language == "ko" else "latin"}


def test_levels_switch_as_much_as_they_say(korean_english):
    for level, english in (
        ("none", {0}),
        ("word", {1}),
        ("phrase", {2, 3, 4, 5, 6, 7}),
        ("sentence", set(range(3, 14))),
    ):
        for sentence in sentences(korean_english, 200, level):
            parts = [part for word in sentence.words for part in word]
            assert sum(part.kind == "embedded" for part in parts) in english
            assert any(part.kind == "loan" for part in parts)


def test_spelling_changes_letters_only_and_never_what_is_said(pair):
    for sentence in sentences(pair, 100):
        native, latin = sentence.write(pair, lambda *_: False), sentence.write(pair, lambda *_: True)
        assert native.loanwords == latin.loanwords
        assert len(native.text.split()) == len(latin.text.split())
        for matrix, other in native.loanwords:
            assert matrix in native.text
            assert other in latin.text
        spoken = " ".join(text for text, _ in sentence.segments(pair))
        for matrix, _ in native.loanwords:
            assert matrix in spoken
        assert spoken.replace(" ", "") == native.text.replace(" ", "")


def test_particles_on_english_words_follow_their_korean_sound(korean_english):
    entries = [entry for kind, entry in korean_english.entries() if kind == "embedded"]
    sounds = {e.words[-1][0].text: e.sound for e in entries if script(e.sound[0]) == "hangul"}
    seen = 0
    for sentence in sentences(korean_english, 600):
        for word in sentence.words:
            if len(word) == 2 and word[0].kind == "embedded" and word[1].text in {*CHOICES, *CHOICES.values()}:
                after_consonant = korean.decompose(sounds[word[0].text][-1])[2] != 0
                assert word[1].text in (CHOICES if after_consonant else CHOICES.values())
                seen += 1
    assert seen > 100


def test_known_sentences_of_the_issue_are_in_the_language(korean_english):
    texts = {"".join(part.text for part in word) for s in sentences(korean_english, 4000, "word") for word in s.words}
    assert {"bug는", "deadline을", "download했어", "confirm해"} <= texts


def test_two_hundred_sentences_are_two_hundred_different_ones(pair):
    assert len({sentence.key() for sentence in sentences(pair, 200)}) > 190


def test_an_unknown_pair_lists_the_known_ones():
    assert known_pairs() == ["es-en", "ja-en", "ko-en"]
    with pytest.raises(ConfigError, match="'xx-en' not found; known: es-en, ja-en, ko-en"):
        load_pair("xx-en")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('id = "ko-en"', "id = ", "not a TOML file"),
        ("커피=coffee", "커피", "unknown"),
        ("[rules]", "[ruls]", "rules"),
        ("요구르트=yogurt", "요구르트=frozen_yogurt", "one word in both spellings"),
        ("none = [", "nothing = [", "no patterns for none"),
        ('id = "ko-en"', 'id = "../ko"', "id '../ko'"),
        ('variants = "m1', 'variants = "" # "', "no voice variants"),
    ],
)
def test_a_broken_pair_file_is_named(tmp_path, old, new, message):
    text = (PAIRS_FOLDER / "ko-en.toml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    if message == "unknown":
        message = "a loanword is written matrix=latin"
    with pytest.raises(ConfigError, match=rf"{re.escape(str(path))}.*{message}"):
        load_pair(str(path))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{unheard}", "matrix:unheard, which a topic lacks"),
        ("{loan:object|fly:high}", "unknown function 'fly'"),
        ("{loan:object|particle:}", "cannot read the slot"),
        ("{loan:object|particle:응}", "unknown Korean particle"),
        ("{verb|ending:someday}", "unknown ending 'someday'"),
        ("{time} {none}", "rule 'none' leads back to itself"),
    ],
)
def test_a_broken_pattern_is_found_when_the_pair_is_loaded(tmp_path, pattern, message):
    text = (PAIRS_FOLDER / "ko-en.toml").read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("none = [", f'none = [\n "{pattern}",', 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_pair(str(path))
