"""One request of the thin client on one new connection, and when its answer came: what a study of latency repeats.

It is :class:`clients.device.client.ThinClient` itself, but for its patience: what fails is not tried again, since a latency is that of
one exchange. Encoding and keeping the adapter are done before the clock starts: a device encodes while it records.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from clients.device.audio import Upload
from clients.device.client import ThinClient
from clients.device.folder import Settings
from clients.device.http import Server
from clients.device.retry import Retry
from fl.packed.header import MAX_PACKED_BYTES
from sim.network.proxy import LOOPBACK

SECONDS = 600.0  # of patience with one exchange, on the slowest link
HANDLE_SECONDS = 3600.0


@dataclass(frozen=True)
class Answer:
    """The text, the seconds to the end of the answer, and the seconds to its first word: the same where nothing was streamed."""

    text: str
    seconds: float
    first_word: float


@dataclass(frozen=True)
class Device:
    """A device's folder, with its packed adapter in it once :meth:`keep` was called."""

    folder: Path

    def client(self, port: int, *, handles: bool = True) -> ThinClient:
        """A thin client of the server on this machine's ``port``, not connected yet. Without ``handles`` it sends the adapter."""
        url = f"http://{LOOPBACK}:{port}"
        settings = Settings(server=url, budget_bytes=MAX_PACKED_BYTES, handles=handles)
        return ThinClient(self.folder, settings, Server(url, timeout=SECONDS), retry=Retry(attempts=1, total=SECONDS))

    def keep(self, adapter: bytes) -> None:
        """Store a packed adapter. Raises :class:`fl.core.errors.AdapterError` for what is none."""
        self.client(1).store.set(adapter, other_base=True)

    def put(self, port: int) -> str:
        """Have the server on ``port`` hold the adapter; returns its handle."""
        with closing(self.client(port)) as client:
            return client.put_adapter(client.store.load() or b"")

    def ask(self, port: int, upload: Upload, *, handle: str = "", stream: bool = False) -> Answer:
        """Ask for a transcript of ``upload`` on a new connection: by ``handle``, or else with the adapter sent along.

        Raises :class:`clients.device.errors.RefusedError` or :class:`clients.device.errors.UnreachableError`.
        """
        heard: list[float] = []
        with closing(self.client(port, handles=bool(handle))) as client:
            if handle:
                client.store.remember(client.server.url, client.store.load() or b"", handle, HANDLE_SECONDS)
            started = time.perf_counter()
            on_text = (lambda text: heard.append(time.perf_counter()) if text else None) if stream else None
            found = client.transcribe(upload, on_text=on_text)
            ended = time.perf_counter()
        return Answer(found.text, ended - started, (heard[0] if heard else ended) - started)
