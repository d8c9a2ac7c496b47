"""Links: what a profile may say, what a message costs on it, and how long a round of a federation then takes."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.core.errors import IdiolectError
from fl.runs.schema import ResultRow
from sim.study.network.links import (
    PROFILES,
    LinkProfile,
    NetworkError,
    one_way_seconds,
    parse_profile,
    transfer_seconds,
)
from sim.study.network.rounds import network_seconds, round_seconds, run_seconds

MODEM = LinkProfile("modem", rate_up=1.168e6, rate_down=2.336e6, rtt=0.1)  # a segment takes 10 ms up and 5 ms down


def test_the_profiles_are_those_of_the_documentation():
    page = (Path(__file__).parents[4] / "docs" / "network.md").read_text(encoding="utf-8")
    for profile in PROFILES.values():
        cells = (
            f"| `{profile.name}` | {profile.rate_down / 1e6:g} | {profile.rate_up / 1e6:g} | {1e3 * profile.rtt:g} "
            f"| {1e3 * profile.jitter:g} | {100 * profile.loss:g} |"
        )
        assert cells in page
    assert set(PROFILES) >= {"fibre", "wifi", "5g", "lte", "3g", "satellite"}


# What a profile may say


def test_a_name_and_values_that_replace_its_own():
    assert parse_profile("lte") == PROFILES["lte"]
    changed = parse_profile("lte, rtt=0.2, loss=0.01")
    assert (changed.rtt, changed.loss, changed.rate_up) == (0.2, 0.01, PROFILES["lte"].rate_up)
    assert changed.name == "lte, rtt=0.2, loss=0.01"


def test_a_profile_of_values_alone():
    made = parse_profile("rate_up=1e6,rate_down=2e6,rtt=0.05")
    assert (made.rate_up, made.rate_down, made.rtt, made.jitter, made.loss) == (1e6, 2e6, 0.05, 0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lt", r"'lt' is not known.*lte"),
        ("", r"not known"),
        ("lte,rtt", r"'rtt' is not known.*key=value"),
        ("lte,ping=0.1", r"'ping=0.1' is not known.*rtt"),
        ("lte,name=x", r"not known"),
        ("lte,rtt=fast", r"'fast' is not a number"),
        ("lte,rtt=0.1,rtt=0.2", r"'rtt' stands twice"),
        ("rate_up=1e6,rtt=0.1", r"lacks rate_down"),
        ("lte,rtt=-0.1", r"rtt = -0.1, allowed is 0 to 10"),
        ("lte,rtt=nan", r"rtt = nan"),
        ("lte,rate_up=inf", r"rate_up = inf"),
        ("lte,rate_up=0", r"rate_up = 0.0, allowed is 1000"),
        ("lte,loss=1", r"loss = 1.0, allowed is 0 to 0.5"),
        ("lte,jitter=0.2", r"arrive before they are sent"),
    ],
)
def test_a_link_that_cannot_exist_is_refused_with_the_reason(text: str, message: str):
    with pytest.raises(NetworkError, match=message) as caught:
        parse_profile(text)
    assert isinstance(caught.value, IdiolectError)


@pytest.mark.parametrize("value", [True, "1e6", None])
def test_a_value_that_is_no_number_is_refused(value: object):
    with pytest.raises(NetworkError, match="rate_up"):
        replace(MODEM, rate_up=value)  # type: ignore[arg-type]


# What a message costs


def test_a_message_within_the_first_window_takes_its_way_and_its_bits():
    assert one_way_seconds(MODEM, 1460, MODEM.rate_up) == pytest.approx(0.05 + 0.01)
    assert one_way_seconds(MODEM, 14_600, MODEM.rate_up) == pytest.approx(0.05 + 0.1)
    assert one_way_seconds(MODEM, 0, MODEM.rate_up) == 0


def test_slow_start_waits_for_acknowledgements_until_the_window_fills_the_line():
    # Down, 40 segments of 5 ms: ten leave in 50 ms, and the first acknowledgement is there after 105 ms: 55 ms of waiting.
    # The next twenty take 100 ms, so 5 ms of waiting, and then the line is never idle.
    assert one_way_seconds(MODEM, 40 * 1460, MODEM.rate_down) == pytest.approx(0.05 + 0.2 + 0.055 + 0.005)
    assert one_way_seconds(MODEM, 400 * 1460, MODEM.rate_down) == pytest.approx(0.05 + 2.0 + 0.055 + 0.005)
    assert one_way_seconds(MODEM, 40 * 1460, MODEM.rate_up) == pytest.approx(0.05 + 0.4 + 0.01)


def test_a_lost_segment_costs_a_round_trip():
    lossy = replace(MODEM, loss=0.2)
    # Each of ten segments is sent 1 / 0.8 times, which is a quarter of a round trip more.
    extra = one_way_seconds(lossy, 14_600, MODEM.rate_up) - one_way_seconds(MODEM, 14_600, MODEM.rate_up)
    assert extra == pytest.approx(10 * 0.25 * 0.1)


def test_a_request_on_a_new_connection_takes_one_round_trip_more_and_with_tls_two():
    open_already = transfer_seconds(MODEM, 1460, 1460, round_trips=0)
    assert open_already == pytest.approx(0.1 + 0.01 + 0.005)
    assert transfer_seconds(MODEM, 1460, 1460) == pytest.approx(open_already + 0.1)
    assert transfer_seconds(MODEM, 1460, 1460, round_trips=2) == pytest.approx(open_already + 0.2)


def test_a_negative_number_of_bytes_is_refused():
    with pytest.raises(NetworkError, match="-1 bytes"):
        transfer_seconds(MODEM, -1, 0)


@given(
    profile=st.sampled_from(list(PROFILES.values())),
    size=st.integers(1, 10**8),
    more=st.integers(1, 10**6),
)
def test_more_bytes_never_take_less_time_and_nothing_beats_rate_and_distance(
    profile: LinkProfile, size: int, more: int
):
    seconds = one_way_seconds(profile, size, profile.rate_up)
    assert seconds >= profile.rtt / 2 + 8 * size / profile.rate_up
    assert one_way_seconds(profile, size + more, profile.rate_up) >= seconds - 1e-9
    assert one_way_seconds(replace(profile, rtt=profile.rtt + 0.1), size, profile.rate_up) > seconds
    assert math.isfinite(seconds)


def test_each_segment_may_be_lost_and_a_message_fills_whole_ones():
    """At a loss of one half every segment costs one round trip, here of a second, more."""
    link = LinkProfile("lossy", 1e12, 1e12, rtt=1.0, loss=0.5)
    seconds = [one_way_seconds(link, size, link.rate_up) for size in (1, 1460, 1461)]
    assert seconds == pytest.approx([1.5, 1.5, 2.5], abs=1e-6)
    assert one_way_seconds(link, 0, link.rate_up) == 0.0


# Rounds


@pytest.fixture
def row() -> Callable[..., ResultRow]:
    def make(device: str, seconds: float, **changes: object) -> ResultRow:
        values = {"arm": "personalized", "round": 1, "split": "validation", "steps": 4} | changes
        return ResultRow(
            device=device,
            new_person=False,
            metrics={},
            train_loss=1.0,
            examples=8,
            bytes_up=values.pop("bytes_up", 14_600),  # type: ignore[arg-type]
            bytes_down=values.pop("bytes_down", 14_600),  # type: ignore[arg-type]
            seconds_train=seconds,
            seconds_evaluate=9.0,
            **values,  # type: ignore[arg-type]
        )

    return make


def test_a_device_gets_trains_and_sends():
    network = 2 * 0.1 + 0.1 + (0.05 + 0.05) + (0.05 + 0.1)  # two connections, request and receipt, down, up
    assert network_seconds(MODEM, 14_600, 14_600) == pytest.approx(network)
    assert round_seconds(MODEM, 14_600, 2.0, 14_600) == pytest.approx(network + 2)
    assert round_seconds(MODEM, 14_600, 2.0, 14_600, slowdown=8) == pytest.approx(network + 16)


@pytest.mark.parametrize(("seconds", "slowdown"), [(-1.0, 1.0), (float("nan"), 1.0), (1.0, 0.0)])
def test_impossible_seconds_are_refused(seconds: float, slowdown: float):
    with pytest.raises(NetworkError, match="of training"):
        round_seconds(MODEM, 1, seconds, 1, slowdown=slowdown)


def test_a_round_lasts_as_long_as_its_slowest_device(row: Callable[..., ResultRow]):
    rows = [row("ann", 1.0), row("bob", 5.0), row("cho", 2.0), row("ann", 3.0, round=2)]
    first, second = run_seconds(rows, MODEM)
    network = network_seconds(MODEM, 14_600, 14_600)
    assert (first.round, first.devices) == (1, 3)
    assert first.slowest == pytest.approx(5 + network)
    assert first.median == pytest.approx(2 + network)
    assert first.slowest_network == pytest.approx(network)
    assert (second.round, second.devices, second.slowest) == (2, 1, pytest.approx(3 + network))


def test_the_device_with_more_bytes_can_be_the_slowest(row: Callable[..., ResultRow]):
    rows = [row("ann", 1.0), row("bob", 0.5, bytes_up=1_460_000)]
    (only,) = run_seconds(rows, MODEM)
    assert only.slowest == pytest.approx(0.5 + network_seconds(MODEM, 14_600, 1_460_000))


def test_a_device_that_stands_in_two_splits_counts_once_and_one_that_was_only_tested_not_at_all(
    row: Callable[..., ResultRow],
):
    rows = [row("ann", 1.0), row("ann", 1.0, split="test"), row("bob", 0.0, steps=0, bytes_up=0)]
    (only,) = run_seconds(rows, MODEM)
    assert only.devices == 1


def test_a_run_in_which_nobody_trained_is_refused(row: Callable[..., ResultRow]):
    with pytest.raises(NetworkError, match="no device"):
        run_seconds([row("bob", 0.0, steps=0)], MODEM)
