"""The directions in which devices' updates differ most: eigenvoices (Kuhn et al. 2000) of updates."""

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from fl.aggregation.updates import CACHE_NUMBERS, Tensors, places

MOST = 256  # devices that are looked at: of more, the first
SMALLEST = 1e-5  # of the largest singular value: what is below it is rounding


def main_directions(rows: Sequence[Tensors], names: Collection[str], count: int) -> dict[str, np.ndarray]:
    """The ``count`` orthonormal directions that have the most of ``rows``, of which each has the tensors ``names``.

    By name (directions, numbers) float32, the tensors of a direction end to end have norm 1. Fewer where the rows span fewer; none
    where nothing moves. They are the right singular vectors of all rows, uncentred, by way of the rows' products with each other.
    """
    rows = rows[:MOST]
    if not rows or not names or not count:
        return {}
    products = sum(block @ block.T for name in names for _, block in _blocks(rows, name))
    squares, vectors = np.linalg.eigh(products)  # ascending
    largest = squares[-1]
    kept = [i for i in reversed(range(len(rows))) if squares[i] > SMALLEST**2 * largest][:count]
    if not kept or not largest > 0:
        return {}
    mixed = (vectors[:, kept] / np.sqrt(squares[kept])).T  # (directions, rows)
    found = {name: np.empty((len(kept), rows[0][name].size), np.float32) for name in names}
    for name, values in found.items():
        for place, block in _blocks(rows, name):
            values[:, place] = mixed @ block
    return found


def _blocks(rows: Sequence[Tensors], name: str) -> Iterator[tuple[slice, np.ndarray]]:
    """One tensor of all rows, some of its numbers at a time: which, and their values (rows, numbers) in float64."""
    flat = [np.asarray(row[name]).reshape(-1) for row in rows]
    for place in places(flat[0].size, CACHE_NUMBERS // len(rows)):
        yield place, np.stack([values[place] for values in flat]).astype(np.float64)
