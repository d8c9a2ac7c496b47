"""The attackers on updates whose leak is known: all of it, none of it, and what protections leave of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.codecs.table import make_codec
from fl.codecs.tensors import decode_all, encode_all
from fl.privacy.audit import inference
from fl.privacy.audit import linkage as audit_linkage
from fl.privacy.audit.attackers import AuditError, Kernels, over_people
from fl.privacy.audit.inference import area, check_classes, infer, membership, person_kernel, rate_at
from fl.privacy.audit.linkage import UpdatePairs, equal_error_rate, linkage
from fl.privacy.audit.views import DEFAULT, ServerView, make_protection, median_norm
from fl.privacy.dp import Update, norm

SHAPES = {f"layer{i}.gated_lora_{part}": shape for i in range(3) for part, shape in (("A", (4, 40)), ("B", (40, 4)))}
NUMBERS = sum(int(np.prod(shape)) for shape in SHAPES.values())
PEOPLE = tuple(f"person-{place:02}" for place in range(12))
Rounds = dict[int, dict[str, Update]]
Losses = tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray]  # people, membership, loss, reference


def draw(generator: np.random.Generator, scale: float = 1.0) -> Update:
    return {name: (scale * generator.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()}


def added(*updates: Mapping[str, np.ndarray]) -> Update:
    return {name: sum((update[name] for update in updates), np.zeros(SHAPES[name], np.float32)) for name in SHAPES}


def made(own: float = 0.0, noise: float = 0.0, common: float = 0.0, rounds: int = 3, people: int = 12) -> Rounds:
    """Updates of a direction of each person, a direction of the round that all share, and independent noise each round."""
    generator = np.random.default_rng(5)
    directions = {name: draw(generator, own) for name in PEOPLE[:people]}
    found: Rounds = {}
    for number in range(1, rounds + 1):
        drift = draw(generator, common)
        found[number] = {name: added(directions[name], drift, draw(generator, noise)) for name in directions}
    return found


def rates(rounds: Rounds) -> dict[str, float | None]:
    kernels = Kernels.of(rounds)
    pairs = UpdatePairs.of(kernels)
    return {
        name: equal_error_rate(attack(kernels, pairs), pairs.same) for name, attack in audit_linkage.ATTACKERS.items()
    }


@pytest.fixture(autouse=True)
def few_resamples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals have a test of their own, with as many as there are."""
    if "interval" not in request.node.name:
        monkeypatch.setattr("fl.privacy.audit.attackers.SAMPLES", 100)


# ----------------------------------------------------------------------------------------------------------------- linkage


def test_a_person_who_always_moves_in_the_same_direction_is_linked_without_error():
    assert rates(made(own=1.0, noise=0.3)) == {"cosine": 0.0, "layers": 0.0, "fused": 0.0}


def test_independent_noise_cannot_be_linked():
    for name, found in linkage(Kernels.of(made(noise=1.0)), seed=1).items():
        assert 0.35 < found.rate.value < 0.65, name
        assert 0.48 < found.baseline < 0.52, name
        assert found.p > 0.05, name


def test_what_all_have_in_common_hides_people_from_the_plain_cosine_only():
    found = rates(made(own=0.35, noise=0.6, common=6.0))
    assert found["cosine"] > 0.1
    assert found["layers"] < 0.01
    assert found["fused"] < 0.01


def test_the_fused_attacker_finds_the_one_layer_that_tells_people_apart():
    generator, rounds = np.random.default_rng(3), made(noise=1.0)
    tell = "layer2.gated_lora_B"
    for name in PEOPLE:
        own = 0.7 * generator.standard_normal(SHAPES[tell])
        for updates in rounds.values():
            updates[name][tell] = (updates[name][tell] + own).astype(np.float32)
    found = rates(rounds)
    assert found["fused"] < 0.5 * min(found["layers"], found["cosine"])  # type: ignore[operator,type-var]


def fused_by_hand(kernels: Kernels, pairs: UpdatePairs, place: int) -> float:
    """One pair's score with the discriminant trained from scratch on the pairs without its two people."""
    features = kernels.by_layer[:, pairs.earlier, pairs.later].T
    target = {pairs.first[place], pairs.second[place]}
    free = np.array([not target & {a, b} for a, b in zip(pairs.first, pairs.second, strict=True)])
    same, other = features[free & pairs.same], features[free & ~pairs.same]
    covariance = (np.cov(same.T, bias=True) + np.cov(other.T, bias=True)) / 2
    scale = np.trace(covariance) / len(covariance)
    covariance = 0.9 * covariance + 0.1 * scale * np.eye(len(covariance))
    weights = np.linalg.solve(covariance, same.mean(axis=0) - other.mean(axis=0))
    return float((features[place] - (same.mean(axis=0) + other.mean(axis=0)) / 2) @ weights)


def test_the_fused_attacker_never_learns_from_the_people_whom_it_judges():
    kernels = Kernels.of(made(own=0.2, noise=1.0, people=6))
    pairs = UpdatePairs.of(kernels)
    scores = audit_linkage.fused(kernels, pairs)
    for place in (0, 7, 31, len(scores) - 1):
        assert scores[place] == pytest.approx(fused_by_hand(kernels, pairs, place), rel=1e-6)


def test_pairs_are_of_different_rounds_and_people_may_miss_one():
    rounds = made(own=1.0, people=5)
    del rounds[2][PEOPLE[0]]
    pairs = UpdatePairs.of(Kernels.of(rounds))
    assert len(pairs.earlier) == 5 * 4 + 5 * 5 + 4 * 5
    assert pairs.same.sum() == 5 + 2 * 4


@pytest.mark.parametrize(
    ("scores", "same", "rate"),
    [
        ([3, 2, 1, 0], [1, 1, 0, 0], 0.0),
        ([3, 2, 1, 0], [0, 0, 1, 1], 1.0),
        ([1, 1, 1, 1], [1, 0, 1, 0], 0.5),
        ([3, 2, 1, 0], [1, 0, 1, 0], 0.5),
        ([5, 4, 3, 2, 1, 0], [1, 1, 0, 1, 0, 0], 1 / 3),
    ],
)
def test_the_equal_error_rate_of_small_cases(scores: list[float], same: list[int], rate: float):
    assert equal_error_rate(np.array(scores, float), np.array(same, bool)) == pytest.approx(rate)


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=30), st.integers(1, 3))
def test_the_equal_error_rate_is_where_both_errors_meet(pairs: list[tuple[int, bool]], times: int):
    scores, same = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs])
    rate = equal_error_rate(scores, same)
    if same.all() or not same.any():
        assert rate is None
        return
    assert rate is not None
    assert 0 <= rate <= 1
    repeated = equal_error_rate(scores, same, np.full(len(scores), float(times)))
    assert repeated == pytest.approx(rate)
    assert equal_error_rate(-scores, same) == pytest.approx(1 - rate)


def test_one_round_other_tensors_or_too_few_people_are_refused_in_words():
    with pytest.raises(AuditError, match="two rounds or more"):
        Kernels.of(made(own=1.0, rounds=1))
    rounds = made(own=1.0)
    rounds[2][PEOPLE[3]].pop("layer0.gated_lora_A")
    with pytest.raises(AuditError, match="of several runs"):
        Kernels.of(rounds)
    with pytest.raises(AuditError, match=r"linkage of 3 people cannot be measured.*at least 4 devices"):
        linkage(Kernels.of(made(own=1.0, people=3)), seed=1)
    first, second = made(own=1.0, rounds=2).values()
    apart = {1: dict(list(first.items())[:6]), 2: dict(list(second.items())[6:])}
    with pytest.raises(AuditError, match="nobody took part in two recorded rounds"):
        linkage(Kernels.of(apart), seed=1)


def test_an_interval_resamples_people_and_holds_the_value():
    found = over_people(50, lambda counts: float((counts * np.arange(50)).sum() / counts.sum()), seed=3)
    assert found.value == pytest.approx(24.5)
    spread = np.arange(50).std() / np.sqrt(50)  # of a mean
    assert found.low == pytest.approx(24.5 - 1.96 * spread, abs=0.8)
    assert found.high == pytest.approx(24.5 + 1.96 * spread, abs=0.8)
    assert over_people(50, lambda counts: float(counts[0]), seed=3) == over_people(50, lambda c: float(c[0]), seed=3)


# -------------------------------------------------------------------------------------------------------------- attributes


def of_two_kinds(strength: float, people: int = 12) -> tuple[Rounds, dict[str, bool]]:
    rounds, kind = made(own=1.0, noise=1.0, people=people), draw(np.random.default_rng(9), strength)
    labels = {name: place % 2 == 0 for place, name in enumerate(PEOPLE[:people])}
    for updates in rounds.values():
        for name, label in labels.items():
            updates[name] = added(updates[name], {key: value if label else -value for key, value in kind.items()})
    return rounds, labels


def test_a_kind_of_people_who_move_alike_is_told_and_shuffled_labels_are_not():
    rounds, labels = of_two_kinds(1.0)
    found = infer(Kernels.of(rounds), labels, "voice", seed=1)
    assert found.rate.value == 1.0
    assert found.p < 0.01
    assert found.reached < 0.9


def test_an_attribute_that_is_not_in_the_updates_is_told_no_better_than_by_chance():
    labels = {name: place < 6 for place, name in enumerate(PEOPLE)}
    found = infer(Kernels.of(made(own=1.0, noise=1.0)), labels, "voice", seed=1)
    assert found.p > 0.05
    assert 0.47 < found.baseline < 0.53  # leaving one out favours neither class
    assert 0.7 < found.reached < 0.95  # with twelve people a figure must be high to mean anything


def test_a_person_is_judged_by_the_others_alone():
    rounds, labels = of_two_kinds(0.14)
    kernels = Kernels.of(rounds)
    kernel = person_kernel(kernels)
    correct = []
    for person, name in enumerate(kernels.names):  # ridge regression from scratch, without this person
        others = [place for place in range(len(kernels.names)) if place != person]
        sides = [labels[kernels.names[place]] for place in others]
        targets = np.array([1 / sides.count(True) if side else -1 / sides.count(False) for side in sides])
        ridge = np.trace(kernel) / len(kernel) * np.eye(len(others))
        score = kernel[person, others] @ np.linalg.solve(kernel[np.ix_(others, others)] + ridge, targets)
        correct.append((score > 0) == labels[name])
    expected = np.mean(
        [np.mean([c for c, n in zip(correct, kernels.names, strict=True) if labels[n] == s]) for s in (True, False)]
    )
    assert 0.5 < expected < 1.0  # neither trivial nor impossible
    assert infer(kernels, labels, "voice", seed=1).rate.value == pytest.approx(expected)


def test_too_few_people_or_of_one_class_are_refused_in_words():
    with pytest.raises(AuditError, match="inference of voice of 3 people cannot be measured"):
        check_classes(dict.fromkeys(PEOPLE[:3], True), "voice")
    with pytest.raises(AuditError, match=r"voice cannot be inferred: 1 of 12 people.*leaving one person out"):
        check_classes({name: name == PEOPLE[0] for name in PEOPLE}, "voice")
    with pytest.raises(AuditError, match="0 of 12 people"):
        infer(Kernels.of(made(own=1.0)), dict.fromkeys(PEOPLE, True), "voice", seed=1)


# -------------------------------------------------------------------------------------------------------------- membership


def losses(gap: float, count: int = 20, difficulty: float = 0.0) -> Losses:
    """``count`` members and non-members of each person; members' losses are ``gap`` lower than those of the reference model."""
    generator = np.random.default_rng(2)
    people = tuple(name for name in PEOPLE for _ in range(2 * count))
    member = np.tile(np.arange(2 * count) < count, len(PEOPLE))
    reference = 5 + difficulty * generator.standard_normal(len(people))
    return people, member, reference - gap * member + 0.1 * generator.standard_normal(len(people)), reference


def test_trained_utterances_with_a_lower_loss_are_told_and_equal_ones_are_not():
    sure, unsure = membership(*losses(gap=1.0), seed=1), membership(*losses(gap=0.0), seed=1)
    for name in inference.ATTACKERS:
        assert sure[name].auc.rate.value > 0.999
        assert sure[name].auc.p < 0.01
        assert sure[name].tpr == 1.0
        assert unsure[name].auc.p > 0.05
        assert unsure[name].auc.rate.low < 0.5 < unsure[name].auc.rate.high
        assert unsure[name].tpr is not None
        assert unsure[name].tpr < 0.05


def test_calibration_sees_through_utterances_of_unlike_difficulty():
    found = membership(*losses(gap=0.5, difficulty=2.0), seed=1)
    assert found["threshold"].auc.rate.value < 0.7
    assert found["calibrated"].auc.rate.value > 0.99


def test_area_and_rate_of_small_cases():
    scores, member = np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False])
    assert area(scores, member, np.ones(4)) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert area(scores, member, np.array([1.0, 0, 1, 1])) == 1.0
    assert area(scores, member, np.array([0.0, 0, 1, 1])) is None
    outside = np.arange(200.0)  # the two highest of 200 may be above
    inside = np.array([197.0, 197.5, 198.5, 300.0])
    scores, member = np.concatenate([inside, outside]), np.arange(204) < 4
    assert rate_at(scores, member) == pytest.approx(3 / 4)
    assert rate_at(scores[:103], member[:103]) is None


def test_a_diverged_model_gives_no_member_away():
    people, member, _, reference = losses(gap=1.0)
    found = membership(people, member, np.full(len(people), np.nan), reference, seed=1)
    assert found["threshold"].auc.rate.value == 0.5


# ------------------------------------------------------------------------------------------------------------------- views


@pytest.fixture(scope="module")
def leaking() -> Rounds:
    return made(own=1.0, noise=0.3, rounds=2)


def seen(rounds: Rounds, protection: str) -> dict[int, ServerView]:
    view, bound = make_protection(protection), median_norm(rounds.values())
    return {number: view(updates, bound, (1, protection, number)) for number, updates in rounds.items()}


def linked(rounds: Rounds, protection: str) -> dict[str, float | None]:
    return rates({number: dict(one.each) for number, one in seen(rounds, protection).items()})  # type: ignore[arg-type]


def test_clipping_and_int8_hide_nobody(leaking: Rounds):
    assert set(linked(leaking, "clip").values()) == {0.0}
    assert set(linked(leaking, "int8").values()) == {0.0}


def test_enough_local_noise_hides_everybody_and_little_noise_nobody(leaking: Rounds):
    assert set(linked(leaking, "local:0.001").values()) == {0.0}
    assert all(0.3 < rate < 0.7 for rate in linked(leaking, "local:10").values())


def test_masked_vectors_of_a_secure_sum_link_nobody_and_tell_no_attribute(leaking: Rounds):
    views = seen(leaking, "secure-sum")
    masked = {number: dict(one.each) for number, one in views.items()}
    for name, found in linkage(Kernels.of(masked), seed=1).items():
        assert found.p > 0.05, name
    labels = {name: place % 2 == 0 for place, name in enumerate(PEOPLE)}
    assert infer(Kernels.of(masked), labels, "voice", seed=1).p > 0.01
    words = np.concatenate([value.reshape(-1) for value in masked[1][PEOPLE[0]].values()]) / 2**31
    assert abs(words.mean()) < 0.1
    assert words.std() == pytest.approx(1 / np.sqrt(3), rel=0.05)  # uniform over all words


def test_the_sum_is_all_that_is_left_of_a_secure_sum(leaking: Rounds):
    bound = median_norm(leaking.values())
    one = seen(leaking, "secure-sum")[1]
    clipped = seen(leaking, "clip")[1].each
    mean = {name: np.mean([clipped[person][name] for person in PEOPLE], axis=0) for name in SHAPES}
    for name in SHAPES:
        np.testing.assert_allclose(one.guess(PEOPLE[0])[name], mean[name], atol=1e-6 * bound)
        np.testing.assert_array_equal(one.guess(PEOPLE[0])[name], one.guess(PEOPLE[1])[name])


def test_noise_on_the_sum_is_as_large_as_its_multiplier_says(leaking: Rounds):
    bound = median_norm(leaking.values())
    noisy = seen(leaking, "noisy-sum:3")[1]
    assert not noisy.each
    plain = seen(leaking, "secure-sum")[1].guess("")
    shrink = 1 / (1 + (3 / 12) ** 2 * NUMBERS)
    noise = {name: value / shrink - plain[name] for name, value in noisy.guess("").items()}
    assert norm(noise) == pytest.approx(3 * bound / 12 * np.sqrt(NUMBERS), rel=0.1)


def test_a_share_of_distributed_noise_is_less_than_local_noise(leaking: Rounds):
    clipped = seen(leaking, "clip")[1].each[PEOPLE[0]]
    distances = {}
    for protection in ("share:1", "local:1"):
        own = seen(leaking, protection)[1].each[PEOPLE[0]]
        distances[protection] = norm({name: own[name] - clipped[name] for name in SHAPES})
    assert distances["local:1"] == pytest.approx(median_norm(leaking.values()) * np.sqrt(NUMBERS), rel=0.1)
    assert distances["share:1"] == pytest.approx(distances["local:1"] / np.sqrt(12), rel=0.1)


def test_the_best_guess_of_a_noisy_update_is_nearer_than_the_noisy_update(leaking: Rounds):
    one, clipped = seen(leaking, "local:0.1")[1], seen(leaking, "clip")[1].each[PEOPLE[0]]
    guess = one.guess(PEOPLE[0])
    error = norm({name: guess[name] - clipped[name] for name in SHAPES})
    assert error < norm(clipped) < norm({name: one.each[PEOPLE[0]][name] - clipped[name] for name in SHAPES})


def test_a_codec_shows_what_it_decodes(leaking: Rounds):
    codec, update = make_codec("top-k:0.1+int8"), leaking[1][PEOPLE[2]]
    expected = decode_all(encode_all(update, codec), SHAPES, codec)
    for name, value in seen(leaking, "top-k:0.1+int8")[1].each[PEOPLE[2]].items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize("protection", DEFAULT.split(","))
def test_every_view_is_a_function_of_the_seed(protection: str):
    rounds = made(own=1.0, rounds=2, people=4)
    one, again = seen(rounds, protection)[2], seen(rounds, protection)[2]
    for name in SHAPES:
        np.testing.assert_array_equal(one.guess(PEOPLE[1])[name], again.guess(PEOPLE[1])[name])
    for person, update in one.each.items():
        np.testing.assert_array_equal(update["layer0.gated_lora_A"], again.each[person]["layer0.gated_lora_A"])


@pytest.mark.parametrize(
    "name", ["", "local", "local:", "local:0", "local:-1", "local:nan", "plain:1", "blur", "secure-sum:2"]
)
def test_an_unknown_protection_is_refused_in_words(name: str):
    with pytest.raises(AuditError, match="protection"):
        make_protection(name)


def test_updates_of_zeros_are_no_training():
    with pytest.raises(AuditError, match="nothing was trained"):
        median_norm([{"a": {"x": np.zeros(3, np.float32)}}])


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.floats(1e-3, 1e3))
def test_similarities_know_no_length(seed: int, factor: float):
    rounds = made(own=1.0, noise=1.0, rounds=2, people=4)
    person = PEOPLE[seed % 4]
    scaled = {
        n: {p: ({k: v * np.float32(factor) for k, v in u.items()} if p == person else u) for p, u in r.items()}
        for n, r in rounds.items()
    }
    np.testing.assert_allclose(Kernels.of(scaled).whole(), Kernels.of(rounds).whole(), atol=1e-5)
