"""Groups of similar size: everything once, little padding, few groups, and no dependence on the order."""

from itertools import combinations, pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fl.data.batching import buckets

SIZES = st.lists(st.integers(1, 3_000), max_size=60)
ROWS = st.integers(1, 17)


def computed(sizes, groups):
    return sum(len(group) * max(sizes[i] for i in group) for group in groups)


@given(SIZES, ROWS)
def test_every_index_is_in_exactly_one_group_of_at_most_the_rows(sizes, rows):
    groups = buckets(sizes, rows=rows)
    assert sorted(i for group in groups for i in group) == list(range(len(sizes)))
    assert all(1 <= len(group) <= rows for group in groups)


@given(SIZES, ROWS, st.sampled_from([0.0, 0.02, 0.1, 0.5]))
@example([1, 2, 4, 8, 16, 32], 6, 0.1)
def test_the_padded_share_is_at_most_what_was_asked_for(sizes, rows, padding):
    groups = buckets(sizes, rows=rows, padding=padding)
    total = computed(sizes, groups)
    assert total - sum(sizes) <= padding * total


@given(SIZES, ROWS, st.randoms(use_true_random=False))
def test_the_order_of_the_examples_does_not_change_the_grouping_of_sizes(sizes, rows, random):
    shuffled = list(sizes)
    random.shuffle(shuffled)
    before, after = ([[of[i] for i in group] for group in buckets(of, rows=rows)] for of in (sizes, shuffled))
    assert before == after


@given(SIZES, ROWS)
def test_groups_and_their_members_go_from_short_to_long(sizes, rows):
    flat = [sizes[i] for group in buckets(sizes, rows=rows) for i in group]
    assert flat == sorted(flat)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 8), st.floats(0.0, 3.0))
def test_no_other_division_of_the_sorted_sizes_is_cheaper(sizes, rows, group_cost):
    """Against all of them."""
    ordered, n = sorted(sizes), len(sizes)
    overhead = group_cost * sum(sizes) / n

    def cost(cuts):
        ends = [0, *cuts, n]
        parts = [ordered[a:b] for a, b in pairwise(ends)]
        if any(len(part) > rows for part in parts):
            return float("inf")
        return sum(len(part) * part[-1] + overhead for part in parts)

    cheapest = min(cost(cuts) for count in range(n) for cuts in combinations(range(1, n), count))
    groups = buckets(sizes, rows=rows, padding=0.999, group_cost=group_cost)
    assert computed(sizes, groups) + overhead * len(groups) == pytest.approx(cheapest)


def test_similar_sizes_share_a_group_and_one_outlier_does_not_pad_the_rest():
    assert buckets([300, 310, 305, 1_500], rows=8) == [[0, 2, 1], [3]]


def test_equal_sizes_fill_as_few_groups_as_can_be():
    assert [len(group) for group in buckets([7] * 20, rows=8, padding=0.0)] == [4, 8, 8]
    assert buckets([7] * 3, rows=8) == [[0, 1, 2]]


def test_a_spread_as_in_speech_keeps_batches_large():
    sizes = [100 + 7 * i for i in range(64)]  # 1 to 5.5 s
    assert len(buckets(sizes, rows=8)) == 8  # all full: 7 % padding costs less than further groups


def test_nothing_gives_no_groups():
    assert buckets([], rows=4) == []


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ([1], {"rows": 0}),
        ([0], {"rows": 2}),
        ([1], {"rows": 2, "padding": 1.0}),
        ([1], {"rows": 2, "padding": -0.1}),
        ([1], {"rows": 2, "group_cost": -1.0}),
    ],
)
def test_what_cannot_be_grouped_is_refused(sizes, options):
    with pytest.raises(ValueError, match="at least one row"):
        buckets(sizes, **options)
