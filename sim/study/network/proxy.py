"""A proxy on loopback that makes a real server feel as if it were at the other end of a link.

Each connection is a link of its own, as each device has one. Bytes are read when they come, get the time at which the link
would deliver them (:class:`sim.study.network.links.Stream`), and are passed on at that time: by deadlines, so that a wait
that took too long is made up for by the next and errors never add up. It works above TCP: nothing is dropped, a lost
segment is a delay.
"""

import asyncio
import contextlib
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial

from fl.core.rng import derive_random
from sim.study.network.links import TCP_ROUND_TRIPS, LinkProfile, NetworkError, Stream

READ_BYTES = 64 * 1024
MAX_IN_FLIGHT = 8 * 2**20  # bytes read and not yet delivered, each way: above what any link of PROFILES holds
START_SECONDS = 10.0  # for the thread of `proxied` to begin or to end
LOOPBACK = "127.0.0.1"


@dataclass
class Traffic:
    """What went through a proxy so far."""

    bytes_up: int = 0
    bytes_down: int = 0
    connections: int = 0

    def add(self, direction: str, size: int) -> None:
        """Count bytes that were passed on, ``up`` to the server or ``down`` from it."""
        setattr(self, f"bytes_{direction}", getattr(self, f"bytes_{direction}") + size)


async def carry(
    source: asyncio.StreamReader,
    sink: asyncio.StreamWriter,
    stream: Stream,
    passed: Callable[[int], None] = lambda _: None,
) -> None:
    """Pass ``source`` on to ``sink`` as ``stream`` says, to its end and the end itself; ``passed`` gets the number of bytes each time.

    Times are those of the running loop, so a loop with a clock of its own makes an hour of network pass at once.
    """
    loop = asyncio.get_running_loop()
    waiting: deque[tuple[float, bytes]] = deque()  # (arrival, data) in order; empty data is the end
    changed, room = asyncio.Event(), asyncio.Event()
    held = 0

    async def read() -> None:
        nonlocal held
        while data := await source.read(READ_BYTES):
            offset = 0
            for size, arrival in stream.send(len(data), loop.time()):
                waiting.append((arrival, data[offset : offset + size]))
                offset += size
            held += len(data)
            changed.set()
            while held > MAX_IN_FLIGHT:
                room.clear()
                await room.wait()
        waiting.append((max(stream.arrived, loop.time() + stream.profile.rtt / 2), b""))

    reading = asyncio.create_task(read())
    reading.add_done_callback(lambda _: changed.set())
    try:
        while True:
            while not waiting:
                if reading.done():
                    reading.result()  # it failed: a reader that ended well left the end of the stream
                changed.clear()
                await changed.wait()
            await asyncio.sleep(waiting[0][0] - loop.time())
            due, ended, now = bytearray(), False, loop.time()
            while waiting and waiting[0][0] <= now:
                data = waiting.popleft()[1]
                due += data
                ended = not data
            if due:
                held -= len(due)
                room.set()
                sink.write(bytes(due))
                passed(len(due))
                await sink.drain()
            if ended:
                sink.write_eof()
                return
    finally:
        reading.cancel()


@contextlib.asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Close a connection: after all was written when all is well, at once when the other end is gone or the proxy stops.

    A server or client that goes away is no error here: its other end sees a connection that closes, as without a proxy.
    """
    try:
        yield
    except (OSError, asyncio.CancelledError):
        writer.transport.abort()
    finally:
        writer.close()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await writer.wait_closed()


class LinkProxy:
    """Listens on loopback and forwards each connection to ``host:port`` over a link. ``seed`` makes jitter and loss repeat."""

    def __init__(self, profile: LinkProfile, host: str, port: int, *, seed: int = 0) -> None:
        self.profile, self.host, self.target, self.seed = profile, host, port, seed
        self.traffic = Traffic()
        self._listening = socket.create_server((LOOPBACK, 0))
        self._listening.setblocking(False)
        self.port = int(self._listening.getsockname()[1])
        self._connections: dict[asyncio.Task[None], socket.socket] = {}

    async def start(self) -> None:
        """Accept connections to ``port``."""
        # Not asyncio.start_server: a connection that comes while that one closes stays open for ever (Python 3.11).
        asyncio.get_running_loop().add_reader(self._listening, self._accept)

    async def stop(self) -> None:
        """Close the port and every connection."""
        asyncio.get_running_loop().remove_reader(self._listening)
        self._listening.close()
        open_still = dict(self._connections)
        for task in open_still:
            task.cancel()
        await asyncio.gather(*open_still, return_exceptions=True)
        for connection in open_still.values():  # one whose task had not begun has no transport that would close it
            connection.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # whoever knocked has gone again
            connection, _ = self._listening.accept()
            task = asyncio.get_running_loop().create_task(self._connect(self.traffic.connections, connection))
            self.traffic.connections += 1
            self._connections[task] = connection
            task.add_done_callback(self._connections.pop)

    async def _connect(self, number: int, connection: socket.socket) -> None:
        # On loopback a connection is there at once: the round trip that it would have taken delays its first byte.
        ready = asyncio.get_running_loop().time() + TCP_ROUND_TRIPS * self.profile.rtt
        connection.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=connection)
        async with _closing(writer):
            beyond, onward = await asyncio.open_connection(self.host, self.target)
            async with _closing(onward):
                ways = (("up", reader, onward, self.profile.rate_up), ("down", beyond, writer, self.profile.rate_down))
                tasks = []
                for direction, source, sink, rate in ways:
                    random = derive_random("network", self.seed, self.profile.name, number, direction)
                    stream = Stream(self.profile, rate, random, ready)
                    passed = partial(self.traffic.add, direction)
                    tasks.append(asyncio.create_task(carry(source, sink, stream, passed)))
                try:
                    await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def proxied(profile: LinkProfile, host: str, port: int, *, seed: int = 0) -> Iterator[tuple[int, Traffic]]:
    """A :class:`LinkProxy` in a thread of its own: its port, and what goes through. Raises :class:`NetworkError` if none opens."""
    try:
        proxy = LinkProxy(profile, host, port, seed=seed)
    except OSError as error:
        raise NetworkError(f"no port for a network proxy on {LOOPBACK}: {error}") from error
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="idiolect-link", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(proxy.start(), loop).result(START_SECONDS)
        try:
            yield proxy.port, proxy.traffic
        finally:
            asyncio.run_coroutine_threadsafe(proxy.stop(), loop).result(START_SECONDS)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(START_SECONDS)
        loop.close()
