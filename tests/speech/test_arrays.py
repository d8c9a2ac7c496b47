"""A cache on disk that may lose what it likes, but never gives a wrong value and never outgrows its budget."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fl.speech.arrays import ArrayCache

TYPES = {b"TSTh": "<f2", b"TSTf": "<f4"}
SIZE = 16 + 2 * 100  # bytes of a file with 100 values in half precision


def make(root, budget=1_000_000, largest=100_000):
    return ArrayCache(root, ".bin", TYPES, budget=budget, largest=largest)


def key(number):
    return f"{number % 16:x}0{number:030x}"


def values(number, dtype=np.float16):
    return np.random.default_rng(number).normal(size=(10, 10)).astype(dtype)


def total(root):
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def used(cache, number, seconds):
    os.utime(cache.path(key(number)), (seconds, seconds))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_was_written_is_read_back_in_its_own_type(tmp_path, dtype):
    cache = make(tmp_path)
    cache.write(key(1), values(1, dtype))
    found = make(tmp_path).read(key(1), rows=10)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values(1, dtype))


def test_another_shape_than_asked_for_is_not_given(tmp_path):
    cache = make(tmp_path)
    cache.write(key(1), values(1))
    assert cache.read(key(1), rows=9) is None
    assert cache.read(key(2), 10) is None


def test_above_the_budget_the_longest_unused_go_first(tmp_path):
    cache = make(tmp_path, budget=10 * SIZE)
    for number in range(9):
        cache.write(key(number), values(number))
        used(cache, number, 1_000 + number)
    used(cache, 0, 5_000)  # the oldest was needed again
    cache.write(key(9), values(9))
    cache.write(key(10), values(10))
    kept = [number for number in range(11) if cache.read(key(number), 10) is not None]
    assert {0, 10} <= set(kept)
    assert 1 not in kept
    assert total(tmp_path) <= 10 * SIZE


def test_reading_counts_as_use(tmp_path):
    cache = make(tmp_path)
    cache.write(key(1), values(1))
    used(cache, 1, 1_000)
    cache.read(key(1), 10)
    assert cache.path(key(1)).stat().st_mtime > 1_000_000


def test_many_writes_stay_under_the_budget_at_every_moment(tmp_path):
    cache, budget = make(tmp_path, budget=40 * SIZE), 40 * SIZE
    for number in range(200):
        cache.write(key(number), values(number))
        assert total(tmp_path) <= budget
    assert cache.read(key(199), 10) is not None


def test_what_other_processes_wrote_counts_as_well(tmp_path):
    caches = [make(tmp_path, budget=64 * SIZE) for _ in range(3)]
    for number in range(300):
        caches[number % 3].write(key(number), values(number))
    assert total(tmp_path) <= 64 * SIZE * (1 + 3 / 16)


def test_the_leftovers_of_killed_writers_are_evicted_like_the_rest(tmp_path):
    cache = make(tmp_path, budget=10 * SIZE)
    (tmp_path / "00").mkdir()
    leftover = tmp_path / "00" / ".half.abc"
    leftover.write_bytes(bytes(5 * SIZE))
    os.utime(leftover, (1, 1))
    for number in range(10):
        cache.write(key(number), values(number))
    assert not leftover.exists()


def test_one_matrix_above_the_budget_is_not_kept(tmp_path):
    cache = make(tmp_path, budget=SIZE - 1)
    cache.write(key(1), values(1))
    assert total(tmp_path) == 0


def test_writers_of_the_same_keys_at_once_leave_whole_files(tmp_path):
    def work(worker):
        cache = make(tmp_path, budget=12 * SIZE)
        for number in [n for n in range(20) for _ in range(2)]:
            cache.write(key(number), values(number))
            found = cache.read(key((number * 7 + worker) % 20), 10)
            assert found is None or found.shape == (10, 10)
        return cache

    with ThreadPoolExecutor(4) as pool:
        caches = list(pool.map(work, range(4)))
    for number in range(20):
        found = caches[0].read(key(number), 10)
        if found is not None:
            np.testing.assert_array_equal(found, values(number))
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]
