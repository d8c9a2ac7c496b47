"""Secure sums: exact whoever drops out, nothing below the threshold, and no way to one device's vector."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from itertools import combinations

import numpy as np
import pytest
import shamirs
from flwr.app import ConfigRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.privacy.audit.views import run_session
from fl.privacy.dp import clip, noise_share, norm
from fl.privacy.randomness import keystream
from fl.privacy.secure_sum import keys
from fl.privacy.secure_sum.device import SecureSumClient
from fl.privacy.secure_sum.keys import PRIME, SEALED_BYTES, SHARE_BYTES, SecureSumError, join_secret, split_secret
from fl.privacy.secure_sum.messages import (
    AdvertiseKeys,
    Inbox,
    MaskedInput,
    Participants,
    SecureSumSetup,
    ShareKeys,
    Survivors,
    Unmask,
    default_threshold,
)
from fl.privacy.secure_sum.server import SecureSumServer, new_setup
from fl.privacy.secure_sum.vector import FixedPointGrid, flatten, unflatten

LIMIT = 0.5
NAMES = tuple(f"device-{place:02}" for place in range(10))


def vectors(names: Collection[str], size: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.uniform(-LIMIT, LIMIT, size) for name in names}


def run(
    setup: SecureSumSetup,
    numbers: dict[str, np.ndarray],
    dropped: dict[int, Collection[str]] | None = None,
    *,
    noise: float = 0.0,
    between: Callable[[SecureSumClient], SecureSumClient] = lambda client: client,
) -> np.ndarray:
    """A whole session; ``dropped`` are the devices that are gone from a step (1 to 4) on."""
    gone: set[str] = set()
    server = SecureSumServer(setup)
    clients = {name: SecureSumClient(name, setup) for name in setup.devices}

    def present(step: int) -> list[str]:
        gone.update((dropped or {}).get(step, ()))
        for name in clients:
            clients[name] = between(clients[name])
        return [name for name in setup.devices if name not in gone]

    for name in present(1):
        server.add(clients[name].advertise())
    participants = server.participants()
    for name in present(2):
        server.add(clients[name].share(participants))
    inboxes = {name: server.inbox(name) for name in setup.devices if name not in gone}
    for name in present(3):
        server.add(clients[name].mask(inboxes[name], numbers[name], noise))
    survivors = server.survivors()
    for name in present(4):
        server.add(clients[name].reveal(survivors))
    return server.total()


def on_grid(setup: SecureSumSetup, numbers: Collection[np.ndarray]) -> np.ndarray:
    """The sum of the rounded vectors in Python's own integers: what must come out exactly."""
    scale = setup.grid.scale
    levels = [[round(float(value) * scale) for value in vector] for vector in numbers]
    return np.array([sum(column) for column in zip(*levels, strict=True)]) / scale


@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_the_sum_is_exact_whoever_drops_out_at_whichever_step(step, share):
    setup = new_setup(NAMES, 33, LIMIT)
    numbers = vectors(NAMES, 33)
    lost = NAMES[2 : 2 + round(share * len(NAMES))]
    total = run(setup, numbers, {step: lost})
    summed = [numbers[name] for name in NAMES if step == 4 or name not in lost]
    assert total.tolist() == on_grid(setup, summed).tolist()
    assert np.abs(total - np.sum(summed, axis=0)).max() <= setup.grid.error


def test_the_sum_is_exact_with_dropouts_at_every_step_together():
    setup = new_setup(NAMES, 5, LIMIT, threshold=6)
    numbers = vectors(NAMES, 5)
    total = run(setup, numbers, {step: [NAMES[step]] for step in (1, 2, 3, 4)})
    assert total.tolist() == on_grid(setup, [numbers[n] for n in NAMES if n not in NAMES[1:4]]).tolist()


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_below_the_threshold_nothing_comes_out(step):
    setup = new_setup(NAMES, 3, LIMIT)
    with pytest.raises(SecureSumError, match="6 of 10 devices sent"):
        run(setup, vectors(NAMES, 3), {step: NAMES[:4]})


@given(st.integers(2, 6), st.integers(1, 40), st.sampled_from([32, 64]), st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_any_number_of_devices_and_numbers(devices, size, bits, seed):
    names = NAMES[:devices]
    setup = new_setup(names, size, LIMIT, bits=bits)
    numbers = vectors(names, size, seed)
    assert np.abs(run(setup, numbers) - np.sum(list(numbers.values()), axis=0)).max() <= setup.grid.error + 1e-15


def test_extreme_numbers_do_not_wrap():
    setup = new_setup(NAMES, 2, LIMIT)
    total = run(setup, {name: np.array([LIMIT, -LIMIT]) for name in NAMES})
    assert total == pytest.approx([10 * LIMIT, -10 * LIMIT], abs=setup.grid.error)


def test_a_log_of_a_client_shows_no_secret():
    client = SecureSumClient(NAMES[0], new_setup(NAMES, 2, LIMIT))
    client.held = {NAMES[0]: b"a share"}
    assert not any(repr(secret) in repr(client) for secret in (*client.seeds, b"a share"))


def test_a_device_may_be_a_new_process_for_every_message():
    setup = new_setup(NAMES[:3], 4, LIMIT)
    numbers = vectors(NAMES[:3], 4)

    def stored(client):
        return SecureSumClient.restored(client.state())

    assert run(setup, numbers, between=stored).tolist() == on_grid(setup, list(numbers.values())).tolist()


def test_weighted_updates_of_devices_and_of_nodes_give_the_weighted_mean():
    shapes = {"q.A": (2, 3), "q.B": (3, 2)}
    generator = np.random.default_rng(1)
    people = [({n: generator.normal(size=s) for n, s in shapes.items()}, w) for w in (0.25, 1.0, 0.5, 0.75)]
    clipped = [(clip(update, LIMIT), weight) for update, weight in people]
    weighted = [({n: v.astype(float) * weight for n, v in update.items()}, weight) for update, weight in clipped]
    pairs = [weighted[:2], weighted[2:]]  # two nodes with two people each
    nodes = [({n: a[0][n] + b[0][n] for n in shapes}, a[1] + b[1]) for a, b in pairs]
    expected = {n: sum(u[n].astype(float) * w for u, w in clipped) for n in shapes}
    for parts, most in ((weighted, 1.0), (nodes, 2.0)):
        setup = new_setup(NAMES[: len(parts)], 13, most * LIMIT)
        numbers = {NAMES[i]: flatten(s, w, LIMIT) for i, (s, w) in enumerate(parts)}
        sums, weight = unflatten(run(setup, numbers), shapes, LIMIT)
        assert weight == pytest.approx(2.5, abs=1e-6)
        for name in shapes:
            assert sums[name] == pytest.approx(expected[name], abs=2 * setup.grid.error)


# What the server sees


def test_an_honest_device_never_reveals_both_secrets_of_another():
    setup = new_setup(NAMES, 2, LIMIT)
    server, clients, numbers = SecureSumServer(setup), {n: SecureSumClient(n, setup) for n in NAMES}, vectors(NAMES, 2)
    for name in NAMES:
        server.add(clients[name].advertise())
    participants = server.participants()
    for name in NAMES:
        server.add(clients[name].share(participants))
    for name in NAMES[3:]:
        server.add(clients[name].mask(server.inbox(name), numbers[name]))
    survivors = server.survivors()
    for name in NAMES[3:]:
        reveal = clients[name].reveal(survivors)
        assert reveal.seeds.keys() == set(NAMES[3:])
        assert reveal.keys.keys() == set(NAMES[:3])
        for other in (survivors, Survivors(setup.session, NAMES)):  # a server that asks again, for the other half
            with pytest.raises(SecureSumError, match="each step is taken once"):
                clients[name].reveal(other)
        restored = SecureSumClient.restored(clients[name].state())
        with pytest.raises(SecureSumError, match="each step is taken once"):
            restored.reveal(survivors)


def test_half_of_the_devices_cannot_restore_what_the_other_half_reveals():
    """A server that names other survivors to each half gets both kinds of shares, and of each too few."""
    setup = new_setup(NAMES, 1, LIMIT)
    assert 2 * setup.threshold > len(NAMES)
    with pytest.raises(SecureSumError, match="more than half"):
        new_setup(NAMES, 1, LIMIT, threshold=5)
    secret = bytes(range(16))
    shares = dict(enumerate(split_secret(secret, 6, 10), 1))
    assert join_secret(shares, 6) == secret
    with pytest.raises(SecureSumError, match="5 shares of 6"):
        join_secret({place: shares[place] for place in range(1, 6)}, 6)


@given(st.binary(min_size=16, max_size=16), st.integers(2, 12), st.integers(0, 4))
@settings(max_examples=30, deadline=None)
def test_a_secret_comes_back_from_any_threshold_of_shares_and_as_the_library_says(secret, threshold, more):
    shares = dict(enumerate(split_secret(secret, threshold, threshold + more), 1))
    last = dict(list(shares.items())[-threshold:])
    assert join_secret(last, threshold) == join_secret(shares, threshold) == secret
    points = [shamirs.share(place, int.from_bytes(share, "little"), PRIME) for place, share in last.items()]
    assert shamirs.interpolate(points).to_bytes(16, "little") == secret


def test_fewer_shares_than_the_threshold_exclude_no_secret():
    """For each secret there is a sixth share with which the same five restore it."""
    five = dict(enumerate(split_secret(bytes(range(16)), 6, 10)[:5], 1))
    for secret in (bytes(16), bytes([255] * 16), b"another secret.."):
        points = {0: int.from_bytes(secret, "little"), **{p: int.from_bytes(s, "little") for p, s in five.items()}}
        sixth = 0
        for place, value in points.items():
            others = [other for other in points if other != place]
            above, below = math.prod(6 - other for other in others), math.prod(place - other for other in others)
            sixth += value * above * pow(below, -1, PRIME)
        assert join_secret({**five, 6: (sixth % PRIME).to_bytes(SHARE_BYTES, "little")}, 6) == secret


def test_shares_that_do_not_belong_together_are_found():
    with pytest.raises(SecureSumError, match="a share is false"):
        join_secret(
            {1: (PRIME // 2).to_bytes(SHARE_BYTES, "little"), 2: bytes(SHARE_BYTES)}, 2
        )  # a line through PRIME - 1


def seeded(name: str, seed: int) -> Callable[[int], bytes]:
    stream = (
        byte
        for chunk in keystream(seed.to_bytes(4, "little") + name.encode().ljust(28), 4096)
        for byte in chunk.tolist()
    )
    return lambda count: bytes(next(stream) for _ in range(count))


def masked_words(updates: dict[str, np.ndarray], seed: int, setup: SecureSumSetup) -> dict[str, np.ndarray]:
    masked, _ = run_session(setup, updates, lambda name: seeded(name, seed))
    return {name: np.frombuffer(message.words, "<u4") for name, message in masked.items()}


def test_two_updates_with_the_same_sum_have_masks_that_make_them_look_the_same(monkeypatch):
    """For ideal masks: moving e from one device to another is undone by moving their pairwise mask by e, for whatever e."""
    names = NAMES[:3]
    setup = SecureSumSetup(bytes(16), names, 2, 6, LIMIT)
    step = 1 / setup.grid.scale
    moved = np.array([1, -5, 70_000, 0, 3, -9_999])
    first = {name: np.round(vector / 2 / step) * step for name, vector in vectors(names, 6).items()}
    second = {**first, names[0]: first[names[0]] + moved * step, names[1]: first[names[1]] - moved * step}

    seen: list[bytes] = []  # keys of masks: of each device its own, then those with the others by name
    masks: dict[bytes, np.ndarray] = {}

    def ideal(vector, key, *, subtract=False):
        """A table of random masks instead of the cipher."""
        seen.append(key)
        mask = masks.setdefault(key, np.random.default_rng(len(masks)).integers(0, 2**32, 6).astype(np.uint32))
        (np.subtract if subtract else np.add)(vector, mask, out=vector)

    monkeypatch.setattr(keys, "add_mask", ideal)
    view = masked_words(first, 7, setup)
    pair = seen[1]
    assert pair in seen[3:6]  # the second device uses it too
    unmoved = masked_words(second, 7, setup)
    assert not np.array_equal(view[names[0]], unmoved[names[0]])
    masks[pair] = (masks[pair].astype(np.int64) - moved).astype(np.uint32)  # one adds this mask, the other subtracts it
    other = masked_words(second, 7, setup)
    assert all(np.array_equal(view[name], other[name]) for name in names)


def test_a_masked_vector_is_uniform_and_says_nothing_of_the_update():
    names, size = NAMES[:3], 40_000
    setup = SecureSumSetup(bytes(16), names, 2, size, LIMIT)
    flat, loud = np.zeros(size), np.full(size, LIMIT)
    seen = {}
    for label, update, seed in (("flat", flat, 1), ("loud", loud, 2)):
        words = masked_words({**vectors(names, size), names[0]: update}, seed, setup)[names[0]]
        counts = np.bincount(words >> 24, minlength=256)
        expected = size / 256
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert chi_square < 255 + 5 * np.sqrt(2 * 255), label  # five standard deviations of 255 degrees of freedom
        seen[label] = words.astype(np.float64)
    means = [values.mean() / 2**32 for values in seen.values()]
    assert means == pytest.approx([0.5, 0.5], abs=5 / np.sqrt(12 * size))
    assert abs(np.corrcoef(*seen.values())[0, 1]) < 5 / np.sqrt(size)


# The grid, and noise on it


@given(st.integers(1, 200), st.sampled_from([32, 64]), st.floats(1e-3, 1e3), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_the_error_of_a_sum_is_within_the_stated_bound(contributions, bits, limit, seed):
    grid = FixedPointGrid(limit, contributions, bits)
    values = np.random.default_rng(seed).uniform(-limit, limit, (contributions, 20))
    words = np.sum([grid.encode(row) for row in values], axis=0, dtype=grid.dtype)
    rounding = 1e-12 * limit * contributions  # of float64, in which the expected sum is formed
    assert np.abs(grid.decode(words) - values.sum(axis=0)).max() <= grid.error + rounding


def test_rounding_lengthens_a_vector_by_at_most_the_slack():
    grid = FixedPointGrid(1.0, 1000)
    values = np.random.default_rng(0).uniform(-1, 1, 5000)
    rounded = grid.decode(grid.encode(values))
    assert norm({"": rounded}) <= norm({"": values}) + grid.norm_slack(5000)
    assert grid.norm_slack(5000) == pytest.approx(np.sqrt(5000) * 0.5 / grid.scale)


def test_shares_of_noise_add_up_to_the_planned_noise():
    size, devices = 4000, 8
    share = noise_share(1.5, LIMIT, 6)
    deviation = share * np.sqrt(devices)
    setup = new_setup(NAMES[:devices], size, LIMIT, threshold=6, noise=deviation)
    zeros = {name: np.zeros(size) for name in setup.devices}
    total = run(setup, zeros, {3: NAMES[:2]}, noise=share)
    assert total.std() == pytest.approx(1.5 * LIMIT, rel=5 / np.sqrt(2 * size))
    assert abs(total.mean()) < 5 * 1.5 * LIMIT / np.sqrt(size)


def test_the_noise_on_the_grid_does_not_depend_on_the_values():
    grid = FixedPointGrid(1.0, 4, noise=0.5)
    key = bytes(32)
    values = np.random.default_rng(3).uniform(-1, 1, 500)
    alone = grid.encode(np.zeros(500), 0.1, key)
    assert np.array_equal(grid.encode(values, 0.1, key) - grid.encode(values), alone)


@pytest.mark.parametrize(
    ("values", "noise", "message"),
    [
        ([np.nan], 0.0, "NaN"),
        ([np.inf], 0.0, "NaN or infinity"),
        ([1.1], 0.0, "above the limit"),
        ([0.5], 2.0, "planned for at least"),
        ([0.5], 1e-12, "eighth"),
    ],
)
def test_numbers_that_cannot_be_summed_are_refused(values, noise, message):
    with pytest.raises(SecureSumError, match=message):
        FixedPointGrid(1.0, 4, noise=1.0).encode(np.array(values), noise)


@pytest.mark.parametrize(
    "arguments",
    [(0.0, 1), (np.nan, 1), (1.0, 0), (1.0, 70_000), (1.0, 1, 16), (1.0, 1, 32, -1.0), (1.0, 1, 32, np.inf)],
)
def test_grids_that_make_no_sense_are_refused(arguments):
    with pytest.raises(SecureSumError):
        FixedPointGrid(*arguments)


# Bad input


def begin(names=NAMES[:4]):
    setup = new_setup(names, 2, LIMIT)
    server, clients = SecureSumServer(setup), {name: SecureSumClient(name, setup) for name in names}
    for client in clients.values():
        server.add(client.advertise())
    return setup, server, clients


def test_the_server_leaves_out_what_does_not_belong():
    setup, server, _ = begin()
    uninvited = AdvertiseKeys(setup.session, "eve", bytes(32), bytes(32))
    for message, reason in [
        (uninvited, "took no part"),
        (AdvertiseKeys(setup.session, NAMES[0], bytes(32), bytes(32)), "answered twice"),
        (AdvertiseKeys(bytes(16), NAMES[0], bytes(32), bytes(32)), "another session"),
        (MaskedInput(setup.session, NAMES[0], bytes(8), bytes(32)), "came late"),
    ]:
        with pytest.raises(SecureSumError, match=reason):
            server.add(message)
    participants = server.participants()
    assert participants.mask.keys() == set(NAMES[:4])
    with pytest.raises(SecureSumError, match="came late"):
        server.add(uninvited)
    with pytest.raises(SecureSumError, match="not for exactly the other participants"):
        server.add(ShareKeys(setup.session, NAMES[0], {}))
    with pytest.raises(SecureSumError, match="is over, or not begun"):
        server.survivors()


def test_a_device_takes_no_part_where_keys_were_exchanged():
    setup, server, clients = begin()
    participants = server.participants()
    swapped = {**participants.mask, NAMES[0]: bytes(31) + b"\1"}
    with pytest.raises(SecureSumError, match="somebody is in between"):
        clients[NAMES[0]].share(Participants(setup.session, swapped, participants.channel))
    double = {**participants.mask, NAMES[0]: participants.mask[NAMES[2]]}
    with pytest.raises(SecureSumError, match="same public key"):
        clients[NAMES[1]].share(Participants(setup.session, double, participants.channel))
    alone = {NAMES[2]: participants.mask[NAMES[2]]}
    with pytest.raises(SecureSumError, match="1 of 4 devices gave keys"):
        clients[NAMES[2]].share(Participants(setup.session, alone, {NAMES[2]: participants.channel[NAMES[2]]}))
    with pytest.raises(SecureSumError, match="another session"):
        clients[NAMES[3]].share(Participants(bytes(16), participants.mask, participants.channel))


def test_a_device_notices_shares_that_were_changed_or_moved():
    setup, server, clients = begin()
    participants = server.participants()
    for client in clients.values():
        server.add(client.share(participants))
    inbox = server.inbox(NAMES[0])
    changed = {**inbox.sealed, NAMES[1]: inbox.sealed[NAMES[1]][:-1] + b"\0"}
    with pytest.raises(SecureSumError, match="changed on the way"):
        clients[NAMES[0]].mask(Inbox(setup.session, NAMES[0], changed), np.zeros(2))
    other = server.inbox(NAMES[1]).sealed
    moved = {NAMES[0]: other[NAMES[2]], NAMES[2]: other[NAMES[0]], NAMES[3]: other[NAMES[3]]}
    with pytest.raises(SecureSumError, match="changed on the way"):
        clients[NAMES[1]].mask(Inbox(setup.session, NAMES[1], moved), np.zeros(2))
    few = {NAMES[0]: server.inbox(NAMES[2]).sealed[NAMES[0]]}
    with pytest.raises(SecureSumError, match="2 of 4 devices shared their secrets, 3 are needed"):
        clients[NAMES[2]].mask(Inbox(setup.session, NAMES[2], few), np.zeros(2))
    with pytest.raises(SecureSumError, match="shape"):
        clients[NAMES[3]].mask(server.inbox(NAMES[3]), np.zeros(3))


def masked(names=NAMES[:4], lost=()):
    setup, server, clients = begin(names)
    participants = server.participants()
    for client in clients.values():
        server.add(client.share(participants))
    for name in names:
        if name not in lost:
            server.add(clients[name].mask(server.inbox(name), np.zeros(2)))
    return setup, server, clients


@pytest.mark.parametrize(
    "survivors",
    [NAMES[:2], NAMES[1:4], (*NAMES[:4], "eve"), ()],
    ids=["too few", "without it", "an uninvited device", "nobody"],
)
def test_a_device_reveals_nothing_to_a_server_that_asks_too_much(survivors):
    setup, server, clients = masked()
    with pytest.raises(SecureSumError):
        clients[NAMES[0]].reveal(Survivors(setup.session, survivors))
    assert server.survivors().devices == NAMES[:4]
    with pytest.raises(SecureSumError, match="each step is taken once"):
        clients[NAMES[0]].reveal(server.survivors())


@pytest.mark.parametrize("kind", ["seeds", "keys"])
def test_a_false_share_is_found_and_no_sum_is_formed(kind):
    _, server, clients = masked(lost=NAMES[3:4])
    survivors = server.survivors()
    for name in NAMES[:3]:
        reveal = clients[name].reveal(survivors)
        if name == NAMES[0]:
            false = {other: bytes(SHARE_BYTES) for other in getattr(reveal, kind)}
            reveal = Unmask(**{**vars(reveal), kind: false})
        server.add(reveal)
    with pytest.raises(SecureSumError, match="was not restored"):
        server.total()


@pytest.mark.parametrize("size", [0, SEALED_BYTES - 1, SEALED_BYTES + 1, 10_000])
def test_sealed_shares_have_one_size_wherever_they_are_read(size):
    record = ShareKeys(bytes(16), NAMES[0], {NAMES[1]: bytes(SEALED_BYTES)}).to_record()
    assert ShareKeys.from_record(record).sealed == {NAMES[1]: bytes(SEALED_BYTES)}
    with pytest.raises(SecureSumError, match="'sealed'"):
        ShareKeys.from_record({**record, "sealed.values": [bytes(size)]})


def test_no_key_masks_two_vectors_so_that_a_fixed_nonce_does(monkeypatch):
    """Each device's own key is its alone, each pair's is used at both ends; another session has other keys."""
    used: list[bytes] = []
    add_mask = keys.add_mask
    monkeypatch.setattr(keys, "add_mask", lambda vector, key, **how: (used.append(key), add_mask(vector, key, **how)))
    for _ in range(2):
        masked()
    uses = [used.count(key) for key in set(used)]
    assert sorted(uses) == 2 * 4 * [1] + 2 * 6 * [2]


def test_a_sum_can_be_had_once():
    _, server, clients = masked()
    survivors = server.survivors()
    for client in clients.values():
        server.add(client.reveal(survivors))
    assert server.total().tolist() == [0.0, 0.0]
    with pytest.raises(SecureSumError, match="is over"):
        server.total()


def test_messages_pass_through_flower_records():
    setup, server, clients = masked(lost=NAMES[3:4])
    messages = [setup, server.survivors(), server._keys[NAMES[0]], clients[NAMES[0]].reveal(server.survivors())]
    messages.append(Participants(setup.session, {"a": bytes(32)}, {}))
    for message in messages:
        assert type(message).from_record(ConfigRecord(dict(message.to_record()))) == message


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "Inbox"},
        {"session": "text"},
        {"devices": "ann"},
        {"devices": ["a", "a", "b"]},
        {"threshold": True},
        {"limit": "1"},
        {"limit": True},
        {"note": "more than the message"},
    ],
)
def test_records_that_are_no_message_are_refused(change):
    record = {**new_setup(NAMES[:3], 2, LIMIT).to_record(), **change}
    with pytest.raises(SecureSumError):
        SecureSumSetup.from_record(record)


@pytest.mark.parametrize(("threshold", "size"), [(0, 1), (5, 1), (11, 1), (7, 0), (7, 2**40)])
def test_sessions_that_cannot_be_kept_are_refused(threshold, size):
    with pytest.raises(SecureSumError):
        new_setup(NAMES, size, LIMIT, threshold=threshold)


def test_an_uninvited_device_and_an_odd_weight_are_refused():
    with pytest.raises(SecureSumError, match="not among"):
        SecureSumClient("eve", new_setup(NAMES, 2, LIMIT))
    for weight in (-0.1, np.nan, np.inf):
        with pytest.raises(SecureSumError, match="at least 0"):
            flatten({"a": np.zeros(2)}, weight, LIMIT)
    with pytest.raises(SecureSumError, match="above the limit"):  # a weight above 1 in a session of devices
        FixedPointGrid(LIMIT, 3).encode(flatten({"a": np.zeros(2)}, 1.1, LIMIT))
    with pytest.raises(SecureSumError, match="does not fit"):
        unflatten(np.zeros(4), {"a": (2,)}, LIMIT)
    client = SecureSumClient(NAMES[0], new_setup(NAMES, 2, LIMIT))
    client.advertise()
    stored = json.loads(client.state())
    setup = {**stored["setup"], "size": 0}
    for change in ({"step": "begin"}, {"seeds": ["MQ=="]}, {"seeds": []}, {"held": {"x": 1}}, {"setup": setup}):
        with pytest.raises(SecureSumError, match="damaged"):
            SecureSumClient.restored(json.dumps({**stored, **change}).encode())
    for text in (b"", b"{}", client.state()[:-3]):
        with pytest.raises(SecureSumError, match="damaged"):
            SecureSumClient.restored(text)


@pytest.mark.parametrize("devices", [2, 3, 10, 100])
def test_the_default_threshold_lets_thirty_percent_go_and_keeps_two_thirds(devices):
    threshold = default_threshold(devices)
    assert threshold > 2 * devices / 3
    assert devices < 10 or threshold <= 0.7 * devices


def test_no_two_masks_of_a_session_are_the_same():
    """Each pair of devices has a key of its own, and none is anybody's self-mask."""
    setup = new_setup(NAMES[:4], 8, LIMIT)
    words = masked_words({name: np.zeros(8) for name in setup.devices}, 5, setup)
    assert all(not np.array_equal(words[a], words[b]) for a, b in combinations(words, 2))
    assert np.sum(list(words.values()), axis=0, dtype=np.uint32).any()  # self-masks do not cancel
