"""Rows of different lengths side by side in one cache attend as each would alone."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import WhisperConfig

from fl.bases.whisper.cache import RowCache, shelf_width

LAYERS, HEADS, WIDTH = 2, 2, 4
SHAPE = WhisperConfig(
    decoder_layers=LAYERS, decoder_attention_heads=HEADS, d_model=HEADS * WIDTH, max_target_positions=40
)


@dataclass
class Person:
    """One row as it would be kept alone: keys and values by layer, (heads, tokens, d) and (heads, states, d)."""

    own: list[tuple[Tensor, Tensor]]
    speech: list[tuple[Tensor, Tensor]]
    states: int


def person(seed: int, tokens: int, states: int) -> Person:
    generator = torch.Generator().manual_seed(seed)

    def pair(length: int) -> tuple[Tensor, Tensor]:
        made = torch.randn(2, HEADS, length, WIDTH, generator=generator)
        return made[0], made[1]

    return Person([pair(tokens) for _ in range(2)], [pair(states) for _ in range(2)], states)


def join(cache: RowCache, one: Person) -> None:
    cache.join(one.own, one.speech, one.states)


def step(cache: RowCache, people: list[Person], seed: int) -> None:
    """One more token in every row: what the cache attends to is what each row has, and what it adds is kept."""
    generator = torch.Generator().manual_seed(seed)
    cache.begin_step()
    assert cache.positions.tolist() == [one.own[0][0].shape[1] for one in people]
    for layer in range(LAYERS):
        query, key, value = torch.randn(3, len(people), HEADS * WIDTH, generator=generator)
        own, speech = cache.attend_own(layer, query, key, value, attend), cache.attend_speech(layer, query, attend)
        for row, one in enumerate(people):
            keys, values = one.own[layer]
            new = [t[row].view(HEADS, 1, WIDTH) for t in (key, value)]
            one.own[layer] = (torch.cat((keys, new[0]), 1), torch.cat((values, new[1]), 1))
            q = query[row].view(HEADS, 1, WIDTH)
            assert torch.allclose(own[row], _alone(q, *one.own[layer]), atol=1e-5)
            assert torch.allclose(speech[row], _alone(q, *one.speech[layer]), atol=1e-5)
    cache.end_step()


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    return functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=1.0)


def _alone(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(query, keys, values, scale=1.0).reshape(-1)


def test_rows_of_all_lengths_come_and_go() -> None:
    cache = RowCache(SHAPE, 16, torch.zeros(1))
    people: list[Person] = []
    for seed, (tokens, states) in enumerate([(4, 60), (4, 64), (3, 65), (4, 200), (1, 1500), (4, 700), (2, 90)]):
        join(cache, person(seed, tokens, states))
        people.append(person(seed, tokens, states))
        step(cache, people, seed)
    for seed, row in enumerate([2, 0, 4, 2]):
        last = cache.leave(row)
        assert last == len(people) - 1
        people[row] = people[last]
        people.pop()
        step(cache, people, 50 + seed)
    join(cache, person(99, 4, 70))
    people.append(person(99, 4, 70))
    for seed in range(35 - max(cache.lengths)):
        step(cache, people, 100 + seed)


def test_rows_that_come_together_find_room_that_is_made_once() -> None:
    cache = RowCache(SHAPE, 16, torch.zeros(1))
    people = [person(seed, 4, 60) for seed in range(11)]
    made = []
    for coming, one in zip((3, 2, 1, 8, 7, 6, 5, 4, 3, 2, 1), people, strict=True):
        cache.join(one.own, one.speech, one.states, coming)
        made.append(cache._shelves[64].kept[0][0].shape[0])
    assert made == [4] * 4 + [11] * 7
    step(cache, people, 1)


def test_what_a_damaged_row_left_does_not_reach_its_successor() -> None:
    """A masked entry has a weight of zero, and zero times infinity is not a number."""
    cache = RowCache(SHAPE, 4, torch.zeros(1))
    bad = person(1, 6, 64)
    for pairs in (bad.own, bad.speech):
        pairs[:] = [(k * float("inf"), v * float("nan")) for k, v in pairs]
    keeper = person(2, 2, 50)
    join(cache, keeper)
    join(cache, bad)
    cache.leave(1)
    join(cache, person(3, 3, 40))
    step(cache, [person(2, 2, 50), person(3, 3, 40)], 1)


def test_beams_go_on_from_each_other() -> None:
    cache = RowCache(SHAPE, 4, torch.zeros(1))
    people = [person(seed, 3, 60) for seed in range(3)]
    for one in people:
        join(cache, one)
    step(cache, people, 1)
    cache.reorder([0, 2], [2, 2])
    people[0] = Person(list(people[2].own), people[0].speech, 60)
    step(cache, people, 2)


def test_an_empty_cache_holds_nothing() -> None:
    cache = RowCache(SHAPE, 4, torch.zeros(1))
    for seed in range(3):
        join(cache, person(seed, 3, 60 + seed))
    assert cache.bytes > 0
    for _ in range(3):
        cache.leave(0)
    assert cache.bytes == 0
    assert cache.count == 0


@pytest.mark.parametrize(("states", "width"), [(1, 64), (64, 64), (65, 128), (512, 512), (513, 768), (1400, 1500)])
def test_shelves_are_not_much_wider_than_what_lies_on_them(states: int, width: int) -> None:
    assert shelf_width(states, 1500) == width
