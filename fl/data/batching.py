"""Which examples to compute together, so that little of a batch is padding and there are few batches."""

from collections.abc import Sequence

# Measured on whisper-base with utterances of 3 s: a step takes 0.34 s with one of them and 1.2 to 1.7 s with eight, so
# starting a batch costs about as much as one more row in it. Training has its own (clients/training/cohort.py).
GROUP_COST = 1.0  # rows of mean size


def buckets(
    sizes: Sequence[int], *, rows: int, padding: float = 0.10, group_cost: float = GROUP_COST
) -> list[list[int]]:
    """Group the indices of ``sizes`` by similar size: groups of at most ``rows``, shortest first, each shortest first.

    A group is padded to its longest member and costs ``longest * (rows in it) + overhead``, in units of size, where the
    overhead of one more group is ``group_cost`` rows of the mean size. Over the sorted sizes the cheapest division into
    consecutive groups is found by dynamic programming in O(n * rows), exactly. If more than ``padding`` of all computed
    positions would be padding, the overhead is halved until it is not; groups of equal sizes, where it ends, have none.

    Deterministic, and a function of the sizes alone: equal sizes are taken in the order of their indices. ``sizes`` must
    be positive. Raises ``ValueError`` for sizes, ``rows`` or ``padding`` that are out of range.
    """
    if rows < 1 or not 0 <= padding < 1 or group_cost < 0 or any(size < 1 for size in sizes):
        raise ValueError(
            f"rows={rows}, padding={padding}, group_cost={group_cost}: needs at least one row, a share of padding "
            "in [0, 1), a cost of at least 0 and positive sizes"
        )
    if not sizes:
        return []
    order = sorted(range(len(sizes)), key=lambda index: sizes[index])
    ordered = [sizes[index] for index in order]
    real = sum(ordered)
    overhead = group_cost * real / len(sizes)
    while True:
        ends = _cheapest(ordered, rows, overhead)
        starts = [0, *ends[:-1]]
        computed = sum((end - start) * ordered[end - 1] for start, end in zip(starts, ends, strict=True))
        if computed - real <= padding * computed:
            return [order[start:end] for start, end in zip(starts, ends, strict=True)]
        overhead = overhead / 2 if overhead > 1e-3 else 0.0


def _cheapest(ordered: Sequence[int], rows: int, overhead: float) -> list[int]:
    """Ends (exclusive) of the consecutive groups of ascending sizes with the least total cost."""
    best, start_of = [0.0], [0]
    for end in range(1, len(ordered) + 1):
        longest = ordered[end - 1]
        # Among equal costs the longest group: fewer groups.
        cost, start = min(
            (best[start] + (end - start) * longest + overhead, start) for start in range(max(0, end - rows), end)
        )
        best.append(cost)
        start_of.append(start)
    ends = [len(ordered)]
    while start_of[ends[-1]]:
        ends.append(start_of[ends[-1]])
    return ends[::-1]
