"""The app on a socket: uvicorn with TLS, limits on connections, and timeouts for headers and for readers."""

import asyncio
import logging
import resource
import socket
import ssl
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from fl.core.errors import ConfigError
from fl.serving.http.admission import LOOPBACK
from fl.serving.http.limits import ServerLimits
from fl.serving.http.problems import ProblemError

SPARE_FILES = 256  # descriptors that are not connections
KEEP_ALIVE_SECONDS = 15
GRACE_SECONDS = 20  # for what runs when the server is told to stop
MAX_HEADER_BYTES = 32_768


@dataclass(frozen=True)
class Address:
    """Where to listen. With ``cert`` and ``key`` (PEM files) by TLS alone."""

    host: str = "127.0.0.1"
    port: int = 8000
    cert: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ConfigError("tls-cert and tls-key belong together: give both or neither")
        for path in (self.cert, self.key):
            if path is not None and not path.is_file():
                raise ConfigError(f"{path}: no such file; give a PEM file")
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"port = {self.port} is not allowed: 0 (any free one) to 65535")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK


class _PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 for clients that are slow, which uvicorn waits for without end, and for crowds of them.

    Headers have ``header_seconds`` to arrive. What was answered has as long to be read, and ``body_seconds`` where it is the
    answer to a person. A request that comes before the one before it was answered is not read. Where connections are taken,
    the oldest that serves no person gives way, so that nobody can keep people out by holding connections.
    """

    limits: ServerLimits
    most: int  # connections
    open: dict["_PatientProtocol", None]  # all of them, in the order of arrival
    _waits: str = ""  # what for: "headers", "reader", or nothing
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=1, low=0)  # writing is paused as long as anything is unread
        self._make_room()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.DONE and self.conn.trailing_data[0]:
            self.cycle.keep_alive = False  # pipelining
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open.pop(self, None)
        self._wait("")
        super().connection_lost(exc)

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _person(self) -> bool:
        """Whether the last request was one of a person, not of anybody."""
        return self.scope is not None and "principal" in self.scope["state"]

    def _make_room(self) -> None:
        host = self.client[0] if self.client else ""
        if len(self.open) < self.most:
            same = [other for other in self.open if host not in LOOPBACK and other.client and other.client[0] == host]
            taken = same if len(same) >= self.limits.connections_per_address else []
        else:
            taken = list(self.open)
        if taken:
            idle = (other for other in taken if not (other._person and (other._answering or other.flow.write_paused)))
            next(idle, taken[0])._cut()
        self.open[self] = None

    def _watch(self) -> None:
        """Wait for what the client has to do next; a wait that goes on is not begun anew."""
        if self.flow.write_paused or self.transport.is_closing():
            self._wait("reader")
        else:
            self._wait("" if self._answering else "headers")

    def _wait(self, what: str) -> None:
        if what == self._waits:
            return
        self._waits = what
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if what:
            long = what == "reader" and self._person
            seconds = self.limits.body_seconds if long else self.limits.header_seconds
            self._timer = self.loop.call_later(seconds, self._time_out)

    def _time_out(self) -> None:
        if self._waits == "reader":
            self._cut()
            return
        if self.cycle is None:  # nothing was answered here yet: say why it ends
            reason = f"the headers were not here after {self.limits.header_seconds:g} s"
            answer = ProblemError("slow-body", reason, close=True).response()
            head = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers)
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\n" + head + b"\r\n" + bytes(answer.body))
        self.transport.close()
        self._watch()

    def _cut(self) -> None:
        """End the connection and drop what is unread, the system's part of it too."""
        self.open.pop(self, None)
        with suppress(OSError):
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        self.transport.abort()


def make_server(app: FastAPI, address: Address, limits: ServerLimits) -> uvicorn.Server:
    """A server that ``uvicorn.Server.run`` starts. Its only log of requests is that of :mod:`fl.serving.http.admission`."""
    config = uvicorn.Config(
        app,
        host=address.host,
        port=address.port,
        http=type("Protocol", (_PatientProtocol,), {"limits": limits, "most": _connections(limits), "open": {}}),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a client's word for its address is not believed; a proxy limits its own clients
        backlog=1_024,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ssl_certfile=address.cert,
        ssl_keyfile=address.key,
    )
    try:
        config.load()
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"TLS with {address.cert} and {address.key} does not work ({type(error).__name__}): give a PEM certificate and its key"
        ) from None
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    logging.getLogger("uvicorn.access").disabled = True
    return uvicorn.Server(config)


def _connections(limits: ServerLimits) -> int:
    """As many connections as the process may have files, after it has asked for as many as it is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.max_connections + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(limits.max_connections, wanted if soft == resource.RLIM_INFINITY else soft - SPARE_FILES))
