"""Digits in the hands of writers, and a base that was trained on other images."""

import pytest
import torch

from fl.core.errors import BaseModelError, ConfigError
from fl.metrics import Counts
from fl.tasks.images.base import NANO, fresh_reader, load_reader, train, vit_config
from fl.tasks.images.kind import score_digit
from fl.tasks.images.writers import PUBLIC, SWAPS, as_text, draw_writers, images_of, public_digits, shares


def test_no_image_is_in_two_shares_and_none_is_lost():
    found = shares()
    every = [index for part in found.values() for index in part]
    assert len(found["public"]) == PUBLIC
    assert sorted(every) == list(range(1797))


def test_a_hand_is_the_writers_own_and_always_the_same():
    one, again, other = (draw_writers(3, 0, seed) for seed in (1, 1, 2))
    assert one == again
    plain = public_digits().images[:4]
    assert torch.equal(one[0].write(plain), again[0].write(plain))
    assert not torch.allclose(one[0].write(plain), one[1].write(plain))
    assert not torch.allclose(one[0].write(plain), other[0].write(plain))
    written = one[0].write(plain)
    assert written.shape == plain.shape
    assert written.min() >= 0
    assert written.max() <= one[0].contrast


def test_a_straight_hand_leaves_an_image_as_it_is():
    from dataclasses import replace

    plain = public_digits().images[:4]
    (writer,) = draw_writers(1, 0, 1)
    straight = replace(writer, rotation=0.0, shear=0.0, scale=1.0, shift=(0.0, 0.0), weight=1.0, contrast=1.0)
    torch.testing.assert_close(straight.write(plain), plain, atol=1e-5, rtol=1e-5)


def test_every_second_writer_swaps_two_digits_in_turn():
    writers = draw_writers(10, 0, 1)
    assert [w.swap for w in writers] == [None, SWAPS[0], None, SWAPS[1], None, SWAPS[2], None, SWAPS[3], None, SWAPS[0]]
    assert [writers[1].meant(d) for d in range(10)] == [0, 7, 2, 3, 4, 5, 6, 1, 8, 9]
    assert [writers[0].meant(d) for d in range(10)] == list(range(10))


def test_nobody_trains_on_what_anyone_is_tested_on(tiny):
    task = tiny("digits")
    seen = {split: set() for split in ("train", "validation", "test")}
    for device_id in task.device_ids():
        for split, keys in seen.items():
            keys |= {int(e.key.rsplit("-", 1)[-1]) for e in task.device(device_id).split(split)}
    assert all(keys <= set(shares()[split]) for split, keys in seen.items())


def test_more_images_than_there_are_are_refused():
    (writer,) = draw_writers(1, 0, 1)
    with pytest.raises(ConfigError, match="there are 219: lower sentences"):
        images_of(writer, "test", 500, 1)


def test_an_image_is_64_levels_of_ink():
    image = torch.zeros(8, 8)
    image[0, 1], image[7, 7] = 1.0, 0.4
    assert as_text(image) == "0f" + "0" * 61 + "6"


def test_a_digit_is_right_or_wrong():
    assert score_digit("7", "7").metrics == {"error": Counts(reference=1)}
    assert score_digit("7", "1").metrics == {"error": Counts(substitutions=1, reference=1)}


def test_training_the_base_is_a_function_of_its_seed_and_teaches_it():
    public = public_digits()
    readers = [fresh_reader(NANO), fresh_reader(NANO)]

    def loss():
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(readers[0](public.images)[:, 0], public.digits))

    before, threads = loss(), torch.get_num_threads()
    for reader in readers:
        train(reader, epochs=2)
    assert loss() < before
    assert torch.get_num_threads() == threads
    for one, other in zip(readers[0].parameters(), readers[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_base_is_trained_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path))
    trained = []
    monkeypatch.setattr("fl.tasks.images.base.train", lambda reader, progress: trained.append(reader))
    load_reader.cache_clear()
    first = load_reader("vit-digits").state_dict()
    load_reader.cache_clear()
    again = load_reader("vit-digits").state_dict()
    assert len(trained) == 1
    assert all(torch.equal(first[name], again[name]) for name in first)
    (kept,) = (tmp_path / "bases").glob("vit-digits-*.safetensors")
    kept.write_bytes(b"damaged")
    load_reader.cache_clear()
    with pytest.raises(BaseModelError, match="remove it, it is made again"):
        load_reader("vit-digits")
    kept.unlink()
    load_reader.cache_clear()


def test_an_unknown_base_names_the_known_ones():
    with pytest.raises(BaseModelError, match=r"'vit-large' not found.*vit-digits"):
        vit_config("vit-large")
