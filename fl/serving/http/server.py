"""The app on a socket: uvicorn with TLS, a limit on connections, and patience that ends."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from fl.core.errors import ConfigError
from fl.serving.http.gate import LOOPBACK
from fl.serving.http.limits import Settings
from fl.serving.http.problems import MEDIA_TYPE, ProblemError

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


def impatient(seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's HTTP/1.1 that closes a connection whose next request's headers take longer than ``seconds``.

    uvicorn waits for them without end, so that a few thousand half-sent headers would keep everybody else out.
    """

    class Impatient(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._patience: asyncio.TimerHandle | None = None
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Start the clock when no request is being answered, stop it when one is."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._forget()
            elif self._patience is None and not self.transport.is_closing():
                self._patience = self.loop.call_later(seconds, self._give_up)

        def _forget(self) -> None:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None

        def _give_up(self) -> None:
            self._patience = None
            if not self.transport.is_closing():
                if self.cycle is None:  # nothing was answered on this connection yet: say why it ends
                    self.transport.write(_too_slow(seconds))
                self.transport.close()

    return Impatient


def _too_slow(seconds: float) -> bytes:
    body = json.dumps(ProblemError("slow-body", f"the headers were not here after {seconds:g} s").document()).encode()
    head = f"HTTP/1.1 408 Request Timeout\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body


def make_server(app: FastAPI, address: Address, settings: Settings) -> uvicorn.Server:
    """A server that :meth:`uvicorn.Server.run` starts. Logs have neither paths nor queries nor bodies (see :mod:`fl.serving.http.gate`)."""
    tls: dict[str, Any] = {}
    if address.cert is not None and address.key is not None:
        tls = {"ssl_certfile": str(address.cert), "ssl_keyfile": str(address.key)}
    config = uvicorn.Config(
        app,
        host=address.host,
        port=address.port,
        http=impatient(settings.header_seconds),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing depends on the client's address, so nobody's word for it is taken
        limit_concurrency=_connections(),
        backlog=1_024,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        **tls,
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
