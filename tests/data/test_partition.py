from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.core.errors import ConfigError
from fl.data.manifest import Utterance
from fl.data.partition import split_population
from fl.speech.text import fold_text


def sizes(device):
    return len(device.train), len(device.validation), len(device.test)


def folded(utterances):
    return {fold_text(u.text, u.loanwords) for u in utterances}


def people(say, speakers, count, sessions=0, text=None):
    return [
        say(name, n, text(name, n) if text else None, session=f"day {n * sessions // count}" if sessions else None)
        for name in speakers
        for n in range(count)
    ]


def test_sixty_sentences_give_about_36_to_train_on_8_to_tune_on_and_16_to_test(say):
    for sessions in (0, 2, 5, 6, 12):
        (device,) = split_population(people(say, ["a"], 60, sessions), seed=1).devices
        train, validation, test = sizes(device)
        assert train + validation + test == 60
        assert 30 <= train <= 42
        assert 5 <= validation <= 12
        assert 10 <= test <= 20


def test_a_session_never_lies_in_two_splits(say):
    (device,) = split_population(people(say, ["a"], 60, 6), seed=3).devices
    homes = [{u.session for u in part} for part in (device.train, device.validation, device.test)]
    assert all(homes)
    assert sum(map(len, homes)) == len(set.union(*homes)) == 6


def test_three_sessions_of_very_unlike_size_still_give_one_to_each_split(say):
    utterances = [say("a", n, session="big" if n < 50 else "mid" if n < 58 else "small") for n in range(60)]
    (device,) = split_population(utterances, seed=0).devices
    assert all(sizes(device))


def test_other_seeds_give_other_splits_and_the_order_of_lines_does_not_matter(say):
    utterances = people(say, ["a", "b", "c"], 30, 6)
    first = split_population(utterances, seed=1, new_people=1)
    reversed_lines = split_population(utterances[::-1], seed=1, new_people=1)
    for one, other in zip(
        first.devices + first.new_people, reversed_lines.devices + reversed_lines.new_people, strict=True
    ):
        assert one.device_id == other.device_id
        assert {u.id for u in one.test} == {u.id for u in other.test}
        assert {u.id for u in one.train} == {u.id for u in other.train}
    tests = {frozenset(u.id for d in split_population(utterances, seed=s).devices for u in d.test) for s in range(8)}
    assert len(tests) > 4


@pytest.mark.parametrize("sessions", [0, 6])
def test_speakers_who_read_the_same_sentences_keep_useful_splits(say, sessions):
    utterances = people(say, ["a", "b", "c", "d"], 40, sessions, text=lambda _name, n: f"prompt {n}")
    population = split_population(utterances, seed=0)
    held_out = folded(u for d in population.devices for u in d.test + d.validation)
    assert not held_out & folded(u for d in population.devices for u in d.train)
    assert population.dropped == 0
    assert all(sizes(device) == (24, 6, 10) for device in population.devices)


def test_a_text_in_the_other_spelling_of_a_loanword_is_the_same_text(say):
    pair = (("커피", "coffee"),)
    utterances = [say("a", n, split="train") for n in range(4)]
    utterances += [say("a", 9, "coffee를 마셨어", split="test", loanwords=pair)]
    utterances += [say("b", 1, "커피를 마셨어", split="train", loanwords=pair), say("b", 2, split="train")]
    population = split_population(utterances, seed=0)
    assert population.dropped == 1
    assert [u.id for u in population.devices[1].train] == ["b-2"]


def test_what_a_new_person_says_is_never_trained_on(say):
    utterances = [*people(say, ["a", "b"], 20, 5), say("a", 99, "shared words", session="day 0")]
    utterances += [say("guest", 1, "Shared words!"), say("guest", 2, split="train")]
    population = split_population(utterances, seed=0, new_people=["guest"])
    (guest,) = population.new_people
    assert sizes(guest) == (0, 0, 2)
    trained = [u for d in population.devices for u in d.train]
    assert "shared words" not in folded(trained)
    assert "guest" not in {u.speaker for u in trained}


def test_new_people_by_number_are_drawn_by_the_seed_and_take_part_nowhere(say):
    utterances = people(say, "abcdefgh", 5)
    chosen = {
        tuple(d.device_id for d in split_population(utterances, seed=seed, new_people=2).new_people)
        for seed in range(6)
    }
    assert len(chosen) > 1
    population = split_population(utterances, seed=0, new_people=2)
    assert len(population.devices) == 6
    assert not {d.device_id for d in population.devices} & {d.device_id for d in population.new_people}


@pytest.mark.parametrize(("count", "expected"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1))])
@pytest.mark.parametrize("sessions", [0, 1, 4])
def test_a_device_with_very_few_utterances_trains_before_it_is_tested(say, count, expected, sessions):
    population = split_population(people(say, ["few"], count, sessions), seed=0)
    assert sizes(population.devices[0]) == expected


def test_an_utterance_keeps_the_split_that_the_manifest_gives_it(say):
    utterances = [say("a", n, split=("train", "validation", "test")[n % 3], session=f"s{n}") for n in range(9)]
    (device,) = split_population(utterances, seed=5).devices
    assert {u.id for u in device.test} == {"a-2", "a-5", "a-8"}
    assert {u.id for u in device.validation} == {"a-1", "a-4", "a-7"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test_share": 0.9, "validation_share": 0.2}, "test-share = 0.9"),
        ({"test_share": -0.1}, r"test-share = -0.1"),
        ({"new_people": 2}, "leaves none of the 2 speakers"),
        ({"new_people": -1}, "must be 0 or more"),
        ({"new_people": ["nobody"]}, r"unknown speakers \['nobody'\]; the manifest has a, b"),
        ({"new_people": "a"}, "must be a number or a list"),
    ],
)
def test_impossible_splits_are_refused_by_key_and_value(say, arguments, message):
    with pytest.raises(ConfigError, match=message):
        split_population(people(say, "ab", 4), seed=0, **arguments)


def test_no_utterances_at_all_is_an_error():
    with pytest.raises(ConfigError, match="no utterances"):
        split_population([], seed=0)


words = st.sampled_from(["커피 좋아", "coffee 좋아", "회의", "meeting", "bug", "하나", "둘", "셋"])
line = st.tuples(
    st.sampled_from("abcd"), words, st.sampled_from([None, "x", "y", "z"]), st.sampled_from([None, "train", "test"])
)


@settings(max_examples=150, deadline=None)
@given(st.lists(line, min_size=1, max_size=40), st.integers(0, 3))
def test_no_held_out_text_is_ever_trained_on_and_nothing_is_counted_twice(tmp_path_factory, rows, seed):
    loans = (("커피", "coffee"), ("회의", "meeting"))
    utterances = [
        Utterance(
            str(n), tmp_path_factory.getbasetemp() / "x.wav", text, who, session=day, split=split, loanwords=loans
        )
        for n, (who, text, day, split) in enumerate(rows)
    ]
    people_there = len({u.speaker for u in utterances})
    population = split_population(utterances, seed=seed, new_people=min(1, people_there - 1))
    everyone = population.devices + population.new_people
    held_out = folded(u for d in everyone for u in d.test + d.validation)
    assert not held_out & folded(u for d in everyone for u in d.train)
    assert not folded(u for d in everyone for u in d.test) & folded(u for d in everyone for u in d.validation)
    kept = Counter(u.id for d in everyone for u in d.train + d.validation + d.test)
    assert set(kept.values()) <= {1}
    assert len(kept) + population.dropped == len(utterances)
