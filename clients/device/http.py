"""One server, spoken to over HTTP with nothing but the standard library: TLS, token, time limits, retries, problems.

The token and the bodies stand in no message and no log. Certificates are always verified. Redirects are not followed: a
token goes to the server that it was given for.
"""

import http.client
import ipaddress
import os
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import SystemRandom
from typing import TypeVar
from urllib.parse import urlsplit

from clients.device.messages import RefusedError, RequestBody, RetryableError, ServerAnswer, UnreachableError, printable
from fl import __version__
from fl.core.errors import ConfigError

T = TypeVar("T")
_PROXIES = ("https_proxy", "all_proxy")
_OUT_OF_DATE = (9, 10)  # OpenSSL's codes of a certificate that is not yet, or no longer, valid
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")  # OpenSSL's, of an answer in plain http


@dataclass(frozen=True)
class ServerAddress:
    """Where the server is and how to speak to it. ``ca`` is a file of certificates to trust instead of the system's."""

    url: str
    token: str = field(default="", repr=False)
    ca: str = ""
    timeout: float = 60.0  # s for connecting, and for each wait for bytes
    allow_http: bool = False  # without TLS beyond this machine

    def __post_init__(self) -> None:
        scheme, host, _, _ = _split_url(self.url)
        if scheme == "http" and not self.allow_http and not _is_loopback(host):
            raise ConfigError(
                f"server {self.url!r} is not encrypted: speech and token would be readable on the way; use https, or "
                "--allow-http where the network is private"
            )
        if not (self.token.isascii() and self.token.isprintable()) or " " in self.token:
            raise ConfigError("the token has characters that no token has: check its file or IDIOLECT_TOKEN")

    def connect(self) -> http.client.HTTPConnection:
        """A connection that connects with its first request, to other machines through the proxy of ``HTTPS_PROXY``, which sees
        their names alone. Raises :class:`ConfigError` for certificates that cannot be read, or a proxy that is no address."""
        scheme, host, port, _ = _split_url(self.url)
        if scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=self.timeout)
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"certificates cannot be read from {self.ca!r} ({error}): give a PEM file") from error
        proxy = "" if _is_loopback(host) else _proxy_for(host)
        if not proxy:
            return http.client.HTTPSConnection(host, port, timeout=self.timeout, context=context)
        _, through, its_port, _ = _split_url(proxy, "HTTPS_PROXY or ALL_PROXY")
        connection = http.client.HTTPSConnection(through, its_port or 80, timeout=self.timeout, context=context)
        connection.set_tunnel(host, port)
        return connection


def _proxy_for(host: str) -> str:
    """The proxy that the environment names for ``host``, empty for none."""
    if not any(name.lower() in _PROXIES for name in os.environ):
        return ""
    from urllib.request import getproxies, proxy_bypass  # a tenth of a small device's start-up time

    known = getproxies()
    return "" if proxy_bypass(host) else known.get("https") or known.get("all", "")


def _split_url(url: str, what: str = "server") -> tuple[str, str, int | None, str]:
    """Scheme, host, port and path: without the ``/v1`` at its end of which OpenAI's clients make their requests."""
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.scheme in ("http", "https") and parts.port != 0 else None
        host = host if not host or host.isascii() else host.encode("idna").decode()
    except ValueError:
        host = None
    if not host or not url.isprintable() or " " in url or parts.query or parts.username or not parts.path.isascii():
        shown, example = url.rpartition("@")[2], "https://HOST or https://HOST:PORT"
        raise ConfigError(f"{what} {shown!r} is no address: give {example if ':/' in url else f'https://{url}'}")
    return parts.scheme, host, parts.port, re.sub(r"/v1(/audio/transcriptions)?$", "", parts.path.rstrip("/"))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class RetryPolicy:
    """At most ``attempts`` in at most ``total`` seconds; before attempt n + 1 a wait drawn from [0, min(cap, base 2^(n-1))].

    ``sleep``, ``uniform`` and ``clock`` are for tests. Devices must not draw the same waits, hence the system's randomness.
    """

    attempts: int = 5
    base: float = 0.5  # s
    cap: float = 20.0  # s
    total: float = 180.0  # s, waiting included
    sleep: Callable[[float], None] = time.sleep
    uniform: Callable[[float, float], float] = SystemRandom().uniform
    clock: Callable[[], float] = time.monotonic

    def wait(self, attempt: int, retry_after: float | None) -> float:
        """Seconds between ``attempt`` (from 1) and the next; never less than the server asked for."""
        drawn = self.uniform(0.0, min(self.cap, self.base * 2.0 ** (attempt - 1)))
        return drawn if retry_after is None else retry_after + drawn

    def pause(self, attempt: int, retry_after: float | None, started: float) -> bool:
        """Wait before the next attempt; False, without waiting, if there is none left or it would be too late."""
        wait = self.wait(attempt, retry_after)
        if attempt >= self.attempts or self.clock() - started + wait > self.total:
            return False
        self.sleep(wait)
        return True


class Connection:
    """Requests to one server, over one connection as long as both sides keep it."""

    def __init__(self, server: ServerAddress, retry: RetryPolicy | None = None) -> None:
        self.server = server
        self.retry = retry or RetryPolicy()
        self._prefix = _split_url(server.url)[-1]
        self._connection = server.connect()

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def call(self, method: str, path: str, body: RequestBody, read: Callable[[ServerAnswer], T], *, key: str = "") -> T:
        """Send ``body`` until it is answered, and return what ``read`` makes of the answer.

        ``key`` is sent as Idempotency-Key with each attempt. Raises :class:`RefusedError` for an answer that will stay the
        same, :class:`UnreachableError` when attempts or time are used up.
        """
        headers = {"Content-Type": body.content_type, "Content-Length": str(sum(map(len, body.parts))), "Accept": "*/*"}
        headers["User-Agent"] = f"idiolect-device/{__version__}"
        if self.server.token:
            headers["Authorization"] = f"Bearer {self.server.token}"
        if key:
            headers["Idempotency-Key"] = key
        started, attempt = self.retry.clock(), 0
        while True:
            attempt += 1
            reused = self._connection.sock is not None
            retry_after: float | None = None
            try:
                response, whole = self._send(method, path, body, headers)
                try:
                    answer = ServerAnswer(response, lambda: self.retry.clock() - started > self.retry.total)
                    answer.check_status()
                    return read(answer)
                finally:
                    if not (whole and response.isclosed()):
                        self._connection.close()  # the next request may not begin in the middle of this one
            except RetryableError as error:
                reason, retry_after = str(error), error.retry_after
            except ssl.SSLCertVerificationError as error:
                dated = error.verify_code in _OUT_OF_DATE
                remedy = f"is this device's date right ({time.strftime('%Y-%m-%d')})? else it has to be renewed at the server"
                raise RefusedError(
                    f"the certificate of {self.server.url} is not trusted ({error.verify_message}): "
                    + (remedy if dated else "give the file of its authority with --ca, or check the address"),
                    status=0,
                ) from error
            except (OSError, http.client.HTTPException) as error:
                if getattr(error, "reason", "") in _NO_TLS:
                    raise RefusedError(
                        f"{self.server.url} speaks no TLS there: check the port, or set up http:// with --allow-http",
                        status=0,
                    ) from error
                reason = printable(f"{type(error).__name__}: {error}")
                self._connection.close()
                if reused and isinstance(error, http.client.RemoteDisconnected | BrokenPipeError):
                    attempt -= 1  # the server hung up while nothing was asked: no reason to wait
                    continue
            if not self.retry.pause(attempt, retry_after, started):
                raise UnreachableError(
                    f"{self.server.url} gave no answer of use after {attempt} attempts ({reason}): try again later, or check the address"
                )

    def _send(
        self, method: str, path: str, body: RequestBody, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPResponse, bool]:
        """The answer, unread, and whether all of the request was sent: a server that refuses early stops reading."""
        whole = True
        try:
            self._connection.request(method, self._prefix + path, iter(body.parts), dict(headers))
        except (BrokenPipeError, ConnectionResetError):
            if self._connection.sock is None:
                raise
            whole = False
        return self._connection.getresponse(), whole
