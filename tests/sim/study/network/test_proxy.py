"""The proxy delivers every byte, in order, when its link would; and the formula of the model is the mean of what it does."""

import asyncio
import selectors
import socket
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.core.rng import derive_random
from sim.study.network.links import PROFILES, LinkProfile, Stream, one_way_seconds, transfer_seconds
from sim.study.network.proxy import LOOPBACK, carry, proxied

FAST = LinkProfile("fast", rate_up=1e10, rate_down=1e10, rtt=0.0)
MODEM = LinkProfile("modem", rate_up=1.168e6, rate_down=2.336e6, rtt=0.1)  # a segment takes 10 ms up and 5 ms down
SEEDS = 24


def stream(profile: LinkProfile, seed: int = 0, start: float = 0.0) -> Stream:
    return Stream(profile, profile.rate_up, derive_random("test", seed), start)


# The stream, given times


def test_a_message_of_one_segment_arrives_after_its_way_and_its_bits():
    assert list(stream(MODEM).send(1460, 1.0)) == [(1460, pytest.approx(1.0 + 0.05 + 0.01))]


def test_the_window_doubles_with_each_round_trip():
    down = Stream(MODEM, MODEM.rate_down, derive_random("test"))
    arrivals = [arrival for _, arrival in down.send(35 * 1460, 0.0)]
    # Ten leave in 50 ms; the first acknowledgement comes after 105 ms and lets two go, and so does each that follows.
    assert arrivals[9] == pytest.approx(0.05 + 0.05)
    assert arrivals[10] == pytest.approx(0.105 + 0.005 + 0.05)
    assert arrivals[29] == pytest.approx(0.105 + 20 * 0.005 + 0.05)
    assert arrivals[30] == pytest.approx(2 * 0.105 + 0.005 + 0.05)


def test_a_pause_starts_the_window_anew():
    paused, busy = (Stream(MODEM, MODEM.rate_down, derive_random("test")) for _ in range(2))
    for each in (paused, busy):
        list(each.send(60 * 1460, 0.0))
    # Once the window fills the line, twenty segments take a way and their bits; after a pause they wait for ten of them.
    again = [arrival for _, arrival in busy.send(20 * 1460, busy.arrived)]
    assert again[-1] - busy.free == pytest.approx(0.05)
    assert again[-1] == pytest.approx(busy.arrived)
    fresh = [arrival for _, arrival in paused.send(20 * 1460, 10.0)]
    assert fresh[-1] == pytest.approx(10.0 + 0.105 + 10 * 0.005 + 0.05)


def test_a_lost_segment_stalls_the_stream_for_one_round_trip():
    class Losing:
        draws = iter([0.9, 0.1, 0.9, 0.9, 0.9])

        def random(self) -> float:
            return next(self.draws)

    lossy = Stream(replace(MODEM, loss=0.5), MODEM.rate_up, Losing())  # type: ignore[arg-type]
    arrivals = [arrival for _, arrival in lossy.send(4 * 1460, 0.0)]
    assert arrivals == pytest.approx([0.06, 0.17, 0.18, 0.19])


@given(
    sizes=st.lists(st.tuples(st.integers(1, 40_000), st.floats(0, 3)), min_size=1, max_size=12),
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.01, 0.4]),
)
def test_no_byte_overtakes_another_and_none_is_faster_than_light(
    sizes: list[tuple[int, float]], seed: int, loss: float
):
    profile = replace(MODEM, jitter=0.1, loss=loss)
    link, now, arrivals = stream(profile, seed), 0.0, []
    for size, pause in sizes:
        now += pause
        sent = list(link.send(size, now))
        assert sum(part for part, _ in sent) == size
        assert sent[0][1] >= now + profile.rtt / 2 - profile.jitter / 2
        arrivals += [arrival for _, arrival in sent]
    assert all(first <= second for first, second in pairwise(arrivals))
    least = sum(size for size, _ in sizes) * 8 / profile.rate_up
    assert arrivals[-1] >= least


def test_the_same_seed_is_the_same_network_and_another_is_another():
    profile = replace(PROFILES["leo"], loss=0.05)
    first, again, other = (list(stream(profile, seed).send(200_000, 0.0)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("size", [2_000, 60_000, 700_000, 3_000_000])
def test_the_formula_is_the_mean_of_the_stream(name: str, size: int):
    profile = PROFILES[name]
    seconds = [list(stream(profile, seed).send(size, 0.0))[-1][1] for seed in range(SEEDS)]
    assert statistics.mean(seconds) == pytest.approx(one_way_seconds(profile, size, profile.rate_up), rel=0.15)


# The proxy's way of carrying bytes, on a clock that jumps from one deadline to the next


class JumpingSelector(selectors.SelectSelector):
    """Waits for nothing: where a loop would wait, its clock moves on."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everything waits for something that will never come"
        self.now += max(0.0, timeout)
        return []


def virtually(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run ``main`` on a loop whose hours pass at once."""
    selector = JumpingSelector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    try:
        return loop.run_until_complete(main())  # type: ignore[arg-type]
    finally:
        loop.close()


@dataclass
class Pipe:
    """A sink whose bytes are read at the other end, with the time at which they came."""

    reader: asyncio.StreamReader = field(default_factory=asyncio.StreamReader)
    arrivals: list[tuple[float, int]] = field(default_factory=list)

    def write(self, data: bytes) -> None:
        self.arrivals.append((asyncio.get_running_loop().time(), len(data)))
        self.reader.feed_data(data)

    async def drain(self) -> None:
        await asyncio.sleep(0)

    def write_eof(self) -> None:
        self.reader.feed_eof()


def exchange(profile: LinkProfile, up: int, down: int, seed: int) -> float:
    """Seconds of one request and its answer over the link, on a new connection, with a server that answers at once."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        client, server, back, answer = asyncio.StreamReader(), Pipe(), asyncio.StreamReader(), Pipe()
        random = [derive_random("test", profile.name, seed, way) for way in ("up", "down")]
        both = [
            asyncio.create_task(carry(client, server, Stream(profile, profile.rate_up, random[0], profile.rtt))),
            asyncio.create_task(carry(back, answer, Stream(profile, profile.rate_down, random[1], profile.rtt))),
        ]
        client.feed_data(bytes(up))
        await server.reader.readexactly(up)
        back.feed_data(bytes(down))
        await answer.reader.readexactly(down)
        seconds = loop.time()
        for reader in (client, back):
            reader.feed_eof()
        await asyncio.gather(*both)
        return seconds

    return float(virtually(main))


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize(("up", "down"), [(30_000, 300), (700_000, 2_000), (50_000, 300_000)])
def test_the_proxy_and_the_model_agree_within_15_percent(name: str, up: int, down: int):
    profile = PROFILES[name]
    measured = statistics.mean(exchange(profile, up, down, seed) for seed in range(SEEDS))
    assert measured == pytest.approx(transfer_seconds(profile, up, down), rel=0.15)


def test_bytes_are_delivered_when_they_are_due_and_not_all_at_the_end():
    async def main() -> list[tuple[float, int]]:
        source, sink = asyncio.StreamReader(), Pipe()
        source.feed_data(bytes(4 * 1460))
        source.feed_eof()
        await carry(source, sink, stream(MODEM))
        return sink.arrivals

    assert virtually(main) == [(pytest.approx(time), 1460) for time in (0.06, 0.07, 0.08, 0.09)]


def test_an_oversleeping_machine_delays_what_was_due_and_nothing_else():
    """Deadlines, not sleeps one after the other: what was late does not make what follows late."""

    async def main() -> list[tuple[float, int]]:
        source, sink = asyncio.StreamReader(), Pipe()
        whole, woken = asyncio.sleep, []

        async def oversleep(delay: float, result: Any = None) -> Any:
            woken.append(delay)
            return await whole(delay + (0.025 if len(woken) == 1 else 0.0), result)

        source.feed_data(bytes(5 * 1460))
        source.feed_eof()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio, "sleep", oversleep)
            await carry(source, sink, stream(MODEM))
        return sink.arrivals

    assert virtually(main) == [
        (pytest.approx(0.085), 3 * 1460),
        (pytest.approx(0.09), 1460),
        (pytest.approx(0.1), 1460),
    ]


def test_the_end_of_a_stream_takes_its_way_too():
    async def main() -> float:
        source, sink = asyncio.StreamReader(), Pipe()
        source.feed_eof()
        await carry(source, sink, stream(MODEM))
        assert sink.reader.at_eof()
        return asyncio.get_running_loop().time()

    assert virtually(main) == pytest.approx(0.05)


def test_a_sender_that_is_faster_than_the_link_is_held_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sim.study.network.proxy.MAX_IN_FLIGHT", 100_000)
    monkeypatch.setattr("sim.study.network.proxy.READ_BYTES", 10_000)

    async def main() -> None:
        source, sink = asyncio.StreamReader(), Pipe()
        source.feed_data(bytes(1_000_000))
        task = asyncio.create_task(carry(source, sink, stream(MODEM)))
        await asyncio.sleep(0.04)  # nothing has arrived yet
        left = len(source._buffer)  # type: ignore[attr-defined]
        assert 880_000 <= left <= 900_000
        source.feed_eof()
        await task
        assert len(await sink.reader.read(2_000_000)) == 1_000_000

    virtually(main)


def test_a_connection_that_breaks_is_an_error_after_what_came_before_it():
    async def main() -> None:
        source, sink = asyncio.StreamReader(), Pipe()
        task = asyncio.create_task(carry(source, sink, stream(MODEM)))
        source.feed_data(b"half")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        source.set_exception(ConnectionResetError())
        with pytest.raises(ConnectionResetError):
            await task
        assert sink.arrivals == [(pytest.approx(0.05, abs=1e-3), 4)]

    virtually(main)


# The proxy on real sockets


@contextmanager
def echo_server() -> Iterator[int]:
    """Answers each connection with all that it said, once it has said it."""
    listening = socket.create_server((LOOPBACK, 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                heard = bytearray()
                while data := connection.recv(65_536):
                    heard += data
                connection.sendall(heard)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield int(listening.getsockname()[1])
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(10)


def ask(port: int, data: bytes) -> bytes:
    with socket.create_connection((LOOPBACK, port), timeout=60) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        heard = bytearray()
        while part := connection.recv(65_536):
            heard += part
        return bytes(heard)


def test_every_byte_comes_through_in_order_on_each_of_many_connections():
    with echo_server() as target, proxied(replace(FAST, loss=0.1), LOOPBACK, target) as (port, traffic):
        for number in range(5):
            data = derive_random("bytes", number).randbytes(200_000 * number + number)
            assert ask(port, data) == data
        assert traffic.connections == 5
        assert traffic.bytes_up == traffic.bytes_down == sum(200_001 * number for number in range(5))


def test_a_server_that_is_not_there_closes_the_connection():
    with socket.create_server((LOOPBACK, 0)) as taken:
        closed = int(taken.getsockname()[1])
    with proxied(FAST, LOOPBACK, closed) as (port, _):
        assert ask(port, b"") == b""


def test_a_client_that_hangs_up_in_the_middle_leaves_the_proxy_working():
    with echo_server() as target, proxied(replace(MODEM, rtt=0.01), LOOPBACK, target) as (port, _):
        with socket.create_connection((LOOPBACK, port), timeout=60) as connection:
            connection.sendall(bytes(10_000))
        assert ask(port, b"still there") == b"still there"


@pytest.mark.parametrize("begun", [False, True])
def test_a_proxy_that_stops_closes_its_connections(begun: bool):
    with echo_server() as target:
        with proxied(MODEM, LOOPBACK, target) as (port, traffic):
            connection = socket.create_connection((LOOPBACK, port), timeout=60)
            connection.sendall(b"unfinished")
            while begun and not traffic.bytes_up:
                time.sleep(0.01)
        with connection, suppress(ConnectionResetError):  # it was not accepted yet
            assert connection.recv(1) == b""


def test_real_bytes_take_the_seconds_of_the_model():
    """The only test on a real clock. A loaded machine makes single tries late, never early: the best of five counts."""
    profile = LinkProfile("slow", rate_up=2e6, rate_down=4e6, rtt=0.08)
    data = bytes(40_000)
    model = transfer_seconds(profile, len(data), len(data))
    assert 0.4 < model < 0.7  # large against what a machine adds, short enough for a test
    best = float("inf")
    with echo_server() as target, proxied(profile, LOOPBACK, target) as (port, _):
        for _ in range(5):
            started = time.perf_counter()
            assert ask(port, data) == data
            seconds = time.perf_counter() - started
            assert seconds > 0.85 * model
            best = min(best, seconds)
            if best < 1.15 * model:
                return
    pytest.fail(f"five tries took {best:.3f} s at least, the model says {model:.3f} s")
