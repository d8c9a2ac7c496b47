"""The app on a socket: uvicorn with TLS, a limit on connections and a timeout for headers."""

import asyncio
import logging
import resource
import ssl
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from fl.core.errors import ConfigError
from fl.serving.http.admission import LOOPBACK
from fl.serving.http.limits import ServerLimits
from fl.serving.http.problems import ProblemError

CONNECTIONS = 4_096  # idle ones included; beyond them uvicorn itself answers 503
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


class _HeaderTimeoutProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 that closes a connection whose next request's headers take longer than ``header_seconds``.

    uvicorn waits for them without end, so that a few thousand half-sent headers would keep everybody else out.
    """

    header_seconds: float
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Start the timer when no request is being answered, stop it when one is."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self.header_seconds, self._time_out)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        self._timer = None
        if self.cycle is None and not self.transport.is_closing():  # nothing was answered here yet: say why it ends
            reason = f"the headers were not here after {self.header_seconds:g} s"
            answer = ProblemError("slow-body", reason, close=True).response()
            head = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers)
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\n" + head + b"\r\n" + bytes(answer.body))
        self.transport.close()


def make_server(app: FastAPI, address: Address, limits: ServerLimits) -> uvicorn.Server:
    """A server that ``uvicorn.Server.run`` starts. Its only log of requests is that of :mod:`fl.serving.http.admission`."""
    config = uvicorn.Config(
        app,
        host=address.host,
        port=address.port,
        http=type("Protocol", (_HeaderTimeoutProtocol,), {"header_seconds": limits.header_seconds}),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing depends on the client's address, so none is believed
        limit_concurrency=_connections(),
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


def _connections() -> int:
    """As many connections as the process may have files, after it has asked for as many as it is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(CONNECTIONS, soft - SPARE_FILES))
