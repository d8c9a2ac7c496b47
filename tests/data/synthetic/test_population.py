import dataclasses
import errno
import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from fl.core.errors import ConfigError
from fl.core.rng import derive_random
from fl.data.manifest import read_manifest
from fl.data.partition import split_population
from fl.data.synthetic import load_pair, new_people_of, population, synthesize, voices
from fl.data.synthetic.engines import EspeakEngine
from fl.data.synthetic.grammar import generate
from fl.data.synthetic.population import session_numbers
from fl.data.synthetic.voices import draw_profiles
from fl.speech.audio import check_speech, load_audio
from fl.speech.text import fold_text


def fingerprints(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_seed_gives_the_same_bytes_in_another_process(tiny, settings, tmp_path):
    code = f"from fl.data.synthetic import synthesize; synthesize({str(tmp_path / 'again')!r}, **{settings!r})"
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=300)
    assert fingerprints(tmp_path / "again") == fingerprints(tiny.parent)


def test_another_seed_gives_other_people(settings):
    pair = load_pair("ko-en")
    first, second = (draw_profiles(pair, devices=4, new_people=0, seed=seed) for seed in (0, 1))
    assert all(one.acoustics != other.acoustics for one, other in zip(first, second, strict=True))


def test_everyone_speaks_as_often_as_asked_and_every_recording_is_usable_speech(tiny):
    utterances = read_manifest(tiny)
    assert Counter(u.speaker for u in utterances) == dict.fromkeys(
        ("ko-en-00", "ko-en-01", "ko-en-02", "ko-en-new-00"), 7
    )
    for utterance in utterances:
        audio = load_audio(utterance.audio)
        check_speech(audio, utterance.id)
        assert 1.2 < len(audio) / 16_000 < 4.0
        assert 0.02 < np.abs(audio).max() < 0.95
        level = np.sqrt(np.mean(audio[: len(audio) // 1600 * 1600].reshape(-1, 1600) ** 2, axis=1))
        assert level.max() > 3 * level.min()  # there is speech above the noise
        assert utterance.loanwords
        assert utterance.level in (None, "word", "phrase", "sentence")


def test_no_text_is_said_twice_in_either_spelling(tiny):
    utterances = read_manifest(tiny)
    assert len({fold_text(u.text, u.loanwords) for u in utterances}) == len(utterances)
    people = split_population(utterances, seed=0, new_people=new_people_of(tiny))
    assert people.dropped == 0
    assert [d.device_id for d in people.new_people] == ["ko-en-new-00"]


def test_a_sentence_that_somebody_said_is_drawn_again(settings):
    pair = load_pair(settings["pair"])
    (person,) = draw_profiles(pair, devices=1, new_people=0, seed=0)
    first, _ = population._draw_sentence(pair, person, set(), EspeakEngine(), random.Random(4), 0)
    second, _ = population._draw_sentence(pair, person, {first.key()}, EspeakEngine(), random.Random(4), 0)
    assert second.key() != first.key()


def test_spelling_habits_change_the_text_and_not_one_sample(settings, tmp_path, monkeypatch):
    texts, sounds = [], []
    for share in (0.0, 1.0):
        monkeypatch.setattr(voices, "SPELLING_HABITS", (("any", share),))
        manifest = synthesize(tmp_path / str(share), **{**settings, "devices": 1, "new_people": 0})
        texts.append([u.text for u in read_manifest(manifest)])
        sounds.append({k: v for k, v in fingerprints(manifest.parent).items() if k.endswith(".wav")})
    assert sounds[0] == sounds[1]
    assert all(one != other for one, other in zip(*texts, strict=True))


def test_each_person_spells_a_word_always_the_same_way_and_people_differ():
    pair = load_pair("ko-en")
    people = draw_profiles(pair, devices=8, new_people=2, seed=0)
    shares = {}
    for person in people:
        choices = [person.writes_latin(*words) for words in pair.loanwords().items()]
        assert choices == [person.writes_latin(*words) for words in pair.loanwords().items()]
        shares[person.name] = sum(choices) / len(choices)
        assert shares[person.name] == pytest.approx(person.latin_share, abs=0.15)
    assert sum(share > 0.85 for share in shares.values()) >= 3
    assert sum(share < 0.15 for share in shares.values()) >= 3
    assert sum(0.2 < share < 0.8 for share in shares.values()) >= 2
    mixed = [person for person in people if person.habit == "mixed"]
    one, other = ([person.writes_latin(*words) for words in pair.loanwords().items()] for person in mixed[:2])
    assert one != other


def test_people_have_their_own_voice_room_topics_and_switching():
    people = draw_profiles(load_pair("ko-en"), devices=8, new_people=2, seed=0)
    assert len({person.voice.variant for person in people}) == 10
    assert len({person.acoustics for person in people}) == 10
    assert len({person.topics for person in people}) >= 4
    assert {len(person.topics) for person in people} <= {2, 3}
    rates = [person.switching_rate for person in people]
    assert max(rates) - min(rates) > 0.15
    assert [person.new_person for person in people] == [False] * 8 + [True] * 2


@pytest.mark.parametrize("seed", range(4))
def test_people_of_opposite_habits_talk_about_the_same_things(seed):
    # A word that only one person says could be spelled right without knowing who is speaking.
    people = draw_profiles(load_pair("ko-en"), devices=8, new_people=0, seed=seed)
    for one, other in ((people[0], people[1]), (people[2], people[3]), (people[6], people[7])):
        assert one.topics == other.topics
        assert abs(one.latin_share - other.latin_share) > 0.85


def test_no_spelling_of_each_word_suits_everybody():
    pair = load_pair("ko-en")
    people = draw_profiles(pair, devices=6, new_people=0, seed=101)
    latin, written = Counter(), []
    for person in people:
        random = derive_random(101, "test", person.name)
        for _ in range(60):
            topic = random.choice(person.topics)
            sentence = generate(pair, level="none", topic=topic, register=0, random=random)
            for loan in sentence.write(pair, person.writes_latin).loanwords:
                choice = person.writes_latin(*loan)
                latin[loan] += 1 if choice else -1
                written.append((loan, choice))
    # What the other occurrences say about each one, a tie being half an error: the best that one spelling a word can do.
    votes = [(latin[loan] - (1 if choice else -1)) * (1 if choice else -1) for loan, choice in written]
    errors = sum(1.0 if vote < 0 else 0.5 if vote == 0 else 0.0 for vote in votes)
    assert errors / len(written) > 0.35


def test_a_profile_does_not_depend_on_who_else_is_there():
    pair = load_pair("ko-en")
    small, large = (draw_profiles(pair, devices=count, new_people=0, seed=3) for count in (2, 40))
    assert small == large[:2]


def test_more_people_than_voices_still_differ():
    people = draw_profiles(load_pair("ko-en"), devices=40, new_people=0, seed=0)
    assert len({dataclasses.astuple(person.voice) for person in people}) == 40


@pytest.mark.parametrize("count", [1, 2, 3, 10, 60, 61])
def test_sessions_follow_each_other_and_none_is_empty(count):
    for seed in range(20):
        sessions = session_numbers(count, random.Random(seed))
        assert len(sessions) == count
        assert sessions == sorted(sessions)
        assert set(sessions) == set(range(max(sessions) + 1))
        assert count < 9 or 7 <= max(sessions) + 1 <= 9


def test_the_profiles_stand_beside_the_manifest(tiny):
    content = json.loads((tiny.parent / "population.json").read_text(encoding="utf-8"))
    assert content["settings"]["seed"] == 5
    assert [person["name"] for person in content["people"]] == ["ko-en-00", "ko-en-01", "ko-en-02", "ko-en-new-00"]
    for person in content["people"]:
        assert {"voice", "acoustics", "topics", "switching_rate", "habit", "latin_share"} <= set(person)


def test_a_finished_folder_is_reused_without_speaking(tiny, settings, monkeypatch):
    monkeypatch.setattr(population, "_speak_all", lambda *_: pytest.fail("it spoke again"))
    assert synthesize(tiny.parent, **settings) == tiny


def test_other_settings_or_foreign_files_are_not_overwritten(tiny, settings, tmp_path):
    before = fingerprints(tiny.parent)
    with pytest.raises(ConfigError, match=r"other settings \(seed\)"):
        synthesize(tiny.parent, **{**settings, "seed": 6})
    assert fingerprints(tiny.parent) == before
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds no synthetic population"):
        synthesize(tmp_path, **settings)


def test_a_stopped_synthesis_leaves_nothing_that_looks_finished(settings, tmp_path):
    def stop(done: int, total: int) -> None:
        assert total == 28
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "people", **settings, progress=stop)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_that_looks_finished(settings, tmp_path, monkeypatch):
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        synthesize(tmp_path / "people", **settings)
    assert not list(tmp_path.iterdir())


def test_when_another_process_was_first_its_folder_is_taken(tiny, settings, tmp_path):
    other = tmp_path / "people"

    def race(done: int, total: int) -> None:
        if done == total:
            synthesize(other, **settings)

    assert synthesize(other, **settings, progress=race) == other / "manifest.jsonl"
    assert [entry.name for entry in tmp_path.iterdir()] == ["people"]
    assert fingerprints(other) == fingerprints(tiny.parent)


@pytest.mark.parametrize("wrong", [{"devices": 0}, {"new_people": -1}, {"sentences": 0}])
def test_settings_out_of_range_are_refused_by_key_and_value(wrong, tmp_path):
    ((key, value),) = wrong.items()
    with pytest.raises(ConfigError, match=f"{key}={value} is not allowed: from"):
        synthesize(tmp_path / "people", **wrong)


def test_a_second_pair_comes_from_its_data_file_alone(settings, tmp_path):
    manifest = synthesize(tmp_path / "es", pair="es-en", devices=1, new_people=1, sentences=4)
    utterances = read_manifest(manifest)
    assert {u.speaker for u in utterances} == {"es-en-00", "es-en-new-00"}
    assert {u.lang for u in utterances} == {"es"}
    assert {language for u in utterances for _, language in u.spans} <= {"es", "en"}


def test_a_manifest_of_recordings_names_no_new_people(tmp_path):
    assert new_people_of(tmp_path / "manifest.jsonl") == ()
