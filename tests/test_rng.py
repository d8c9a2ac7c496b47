"""Seeds are a function of what they are for, and of nothing else."""

import os
import subprocess
import sys

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl.core.rng import derive_generator, derive_random, derive_seed

parts = st.lists(st.integers() | st.text(max_size=8), max_size=4)


@given(parts)
def test_a_seed_is_one_that_every_generator_takes(values):
    seed = derive_seed(*values)
    assert 0 <= seed < 2**63
    torch.Generator().manual_seed(seed)
    np.random.default_rng(seed)


@given(parts, parts)
def test_other_parts_give_another_seed(first, second):
    def typed(values):
        return [(type(v), v) for v in values]

    assert (derive_seed(*first) == derive_seed(*second)) == (typed(first) == typed(second))


def test_parts_do_not_run_together():
    assert derive_seed("a", "bc") != derive_seed("ab", "c") != derive_seed("abc")
    assert derive_seed(1) != derive_seed("1")
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert derive_seed("a", "b") != derive_seed("b", "a")
    assert derive_seed() != derive_seed("")


def test_a_seed_is_the_same_in_every_process_and_version():
    value = derive_seed(1, 4, "spk-03", "batches")
    code = "from fl.core.rng import derive_seed; print(derive_seed(1, 4, 'spk-03', 'batches'))"
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        answer = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert int(answer.stdout) == value
    assert value == 4342908194549145835, "a changed derivation changes every published number"


def test_seeds_of_many_devices_and_rounds_are_all_different():
    seeds = {derive_seed(1, round_, f"device-{d}", "train") for round_ in range(50) for d in range(100)}
    assert len(seeds) == 5000


def test_generators_do_not_share_state():
    first, again = derive_generator(1, "noise"), derive_generator(1, "noise")
    first_values = first.normal(size=5)
    assert np.array_equal(first_values, again.normal(size=5))
    assert not np.array_equal(first_values, derive_generator(1, "rooms").normal(size=5))
    assert derive_random(1, "x").random() == derive_random(1, "x").random() != derive_random(2, "x").random()


def test_deriving_leaves_the_global_generators_alone():
    np.random.seed(0)
    torch.manual_seed(0)
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    derive_generator(3).normal(size=10)
    derive_random(3).random()
    assert np.array_equal(np.random.get_state()[1], before)
    assert torch.equal(torch.get_rng_state(), torch_before)
