"""The thin client: a device that holds an adapter and no base sends speech, and its adapter when the server lacks it.

It loads without torch, transformers, Flower or PEFT: numpy, soundfile and the standard library are enough (``soxr`` for audio
that is not at 16 kHz, ``cryptography`` for encryption at rest, ``sounddevice`` for the microphone).

    device = ThinClient.open(folder)
    print(device.transcribe(encode_file(Path("note.wav"))).text)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clients.device.adapt import Labelled, Lesson, adapt_parts, check_adapted, read_adapted
from clients.device.answer import Answer
from clients.device.audio import Upload
from clients.device.errors import LockedError, RefusedError
from clients.device.folder import Settings, ask_passphrase, load_settings, open_seal, open_server
from clients.device.http import Body, Connection, Server
from clients.device.multipart import Part, encode, text_part
from clients.device.queue import Queue
from clients.device.retry import Retry
from clients.device.seal import Seal
from clients.device.store import AdapterStore
from fl.core.errors import ConfigError, StoreError
from fl.packed.blob import PackedInfo

FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
TRANSCRIBE, ADAPTERS, ADAPT = "/v1/audio/transcriptions", "/v1/adapters", "/v1/adapt"
UNKNOWN_HANDLE = "unknown-handle"
ADAPTER_AT_FAULT = frozenset({"adapter-mismatch", "unusable-adapter"})
ADAPT_SECONDS = 6000.0  # an adapter may wait behind others before it is trained

OnText = Callable[[str], None]


@dataclass(frozen=True)
class Transcript:
    """What the server heard. ``answer`` is its answer as sent: ``text`` itself, subtitles, or a JSON document."""

    text: str
    answer: str


@dataclass(frozen=True)
class Flushed:
    """An entry of the queue that was answered (``reason`` empty) or refused for good."""

    name: str
    text: str
    reason: str = ""


class ThinClient:
    """One device and its server. Not for several threads at once."""

    def __init__(
        self, folder: Path, settings: Settings, server: Server, seal: Seal | None = None, retry: Retry | None = None
    ) -> None:
        self.settings = settings
        self.server = server
        self.retry = retry or Retry()
        self.store = AdapterStore(folder, settings.budget_bytes, seal)
        self.queue = Queue(folder / "queue", settings.queue_bytes, seal)
        self._connection: Connection | None = None

    @classmethod
    def open(cls, folder: Path, passphrase: Callable[[], str] = ask_passphrase) -> ThinClient:
        """The device that was set up in ``folder``. Raises :class:`ConfigError` or :class:`LockedError`."""
        settings = load_settings(folder)
        return cls(folder, settings, open_server(settings), open_seal(settings, passphrase))

    @property
    def connection(self) -> Connection:
        """To the server; made when it is first needed, and kept."""
        if self._connection is None:
            self._connection = Connection(self.server, self.retry)
        return self._connection

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()

    def transcribe(
        self,
        upload: Upload,
        *,
        language: str = "",
        response_format: str = "json",
        on_text: OnText | None = None,
        adapted: bool = True,
        key: str = "",
    ) -> Transcript:
        """What was said in ``upload``, with this device's adapter unless ``adapted`` is false or there is none.

        With ``on_text`` the server streams: it is called with the whole text so far, which may begin anew after an
        interruption. ``key`` is the idempotency key; the same for the same recording. Raises :class:`UnreachableError`
        when later may help, :class:`RefusedError` when it will not.
        """
        if response_format not in FORMATS:
            raise ConfigError(f"format {response_format!r} is not known: give one of {', '.join(FORMATS)}")
        if on_text is not None and response_format not in ("json", "text"):
            raise ConfigError(f"format {response_format!r} cannot be streamed: leave --stream or --format out")
        texts = {"language": language or self.settings.language, "response_format": response_format}
        texts["stream"] = "true" if on_text is not None else ""
        parts = [Part("file", upload.content, upload.filename, upload.content_type)]
        parts += [text_part(name, value) for name, value in texts.items() if value]
        adapter = self.store.load() if adapted else None
        key = key or os.urandom(16).hex()

        def send(extra: list[Part], step: str) -> Transcript:
            return self.connection.call(
                "POST",
                TRANSCRIBE,
                encode([*extra, *parts]),
                lambda answer: _streamed(answer, on_text) if on_text else _whole(answer, response_format),
                key=key + step,
            )

        return send([], "") if adapter is None else self._with_adapter(adapter, send)

    def _with_adapter(self, adapter: bytes, send: Callable[[list[Part], str], Transcript]) -> Transcript:
        """Send the handle; the adapter only where the server does not have it, and with the request only if it cannot keep it.

        A body that differs goes under a key of its own (``step``): a server may hold it against us if it did not.
        """
        if self.settings.handles:
            handle = self.store.handle(self.server.url, adapter)
            if handle:
                try:
                    return send([text_part("adapter_handle", handle)], "")
                except RefusedError as error:
                    if error.slug != UNKNOWN_HANDLE:
                        raise
                    self.store.forget_handle()
            handle = self.put_adapter(adapter)
            if handle:
                try:
                    return send([text_part("adapter_handle", handle)], "-put")
                except RefusedError as error:
                    if error.slug != UNKNOWN_HANDLE:
                        raise
                    self.store.forget_handle()  # gave way to others at once: this server is full
        return send([Part("adapter", adapter, "adapter.safetensors", "application/octet-stream")], "-adapter")

    def put_adapter(self, adapter: bytes) -> str:
        """Have the server hold the adapter for a while; its handle, or empty from a server that keeps none."""
        body = Body((adapter,), "application/octet-stream")
        try:
            found = self.connection.call("PUT", ADAPTERS, body, Answer.json)
        except RefusedError as error:
            if error.status in (404, 405, 413, 501, 507) and error.slug != UNKNOWN_HANDLE:
                return ""  # no handles there, or no room for this one: it can still come with each request
            raise
        handle, seconds = found.get("handle"), found.get("expires_in")
        if (
            not isinstance(handle, str)
            or not 0 < len(handle) <= 200
            or not handle.isascii()
            or not handle.isprintable()
        ):
            raise RefusedError("the server's answer has no handle: is this the right address?", 200)
        alive = float(seconds) if isinstance(seconds, int | float) and 0 < seconds < 1e9 else 3600.0
        self.store.remember(self.server.url, adapter, handle, alive)
        return handle

    def flush(self, on_done: Callable[[Flushed], None] = lambda _: None) -> int:
        """Send what waits, in order, telling ``on_done`` of each; how many were answered.

        Stops with :class:`UnreachableError` at the first that cannot be sent now; it and those behind it go on waiting. What the
        server refuses for good is put aside with the reason.
        """
        answered = 0
        with self.queue.sending() as names:
            for name in names:
                try:
                    entry = self.queue.load(name)
                    found = self.transcribe(
                        entry.upload, language=entry.language, response_format=entry.format, key=entry.key
                    )
                except RefusedError as error:
                    if error.status not in (400, 413, 415, 422) or error.slug in ADAPTER_AT_FAULT:
                        raise  # nothing is wrong with the recording
                    self._set_aside(name, error, on_done)
                except LockedError:
                    raise
                except StoreError as error:
                    if self.queue.is_readable(name):
                        raise  # the adapter cannot be read, or the disk is full
                    self._set_aside(name, error, on_done)
                else:
                    self.queue.finish(name, found.answer)
                    answered += 1
                    on_done(Flushed(name, found.text))
        return answered

    def _set_aside(self, name: str, error: Exception, on_done: Callable[[Flushed], None]) -> None:
        self.queue.fail(name, str(error))
        on_done(Flushed(name, "", str(error)))

    def adapt(self, utterances: list[Labelled], lesson: Lesson) -> tuple[PackedInfo, dict[str, Any]]:
        """Have the server train this device's adapter on labelled speech; store the new one if it is sound.

        Returns what the new adapter says of itself and what the server says of the training. Raises
        :class:`AdapterMismatchError` for an answer that is not this adapter, trained; the old one is then kept.
        """
        adapter = self.store.load()
        if adapter is None:
            raise ConfigError("there is no adapter to train: 'idiolect device adapter set FILE' first")
        body = encode(adapt_parts(adapter, utterances, lesson, lesson.language or self.settings.language))
        patient = replace(self.retry, total=max(self.retry.total, ADAPT_SECONDS))
        connection = Connection(replace(self.server, timeout=ADAPT_SECONDS), patient)
        try:
            new, report = connection.call("POST", ADAPT, body, read_adapted, key=os.urandom(16).hex())
        finally:
            connection.close()
        check_adapted(adapter, new)
        return self.store.set(new), report


def _whole(answer: Answer, response_format: str) -> Transcript:
    if response_format in ("json", "verbose_json"):
        document = answer.json()
        return Transcript(_text_of(document), json.dumps(document, ensure_ascii=False))
    try:
        text = answer.content().decode()
    except UnicodeDecodeError as error:
        raise RefusedError("the server's answer is no text: is this the right address?", 200) from error
    return Transcript(text.strip(), text)


def _streamed(answer: Answer, on_text: OnText) -> Transcript:
    text = ""
    for event in answer.events():
        if event.get("type") == "transcript.text.delta":
            delta = event.get("delta")
            text += delta if isinstance(delta, str) else ""
            on_text(text)
        elif event.get("type") == "transcript.text.done":
            return Transcript(_text_of(event), json.dumps({"text": _text_of(event)}, ensure_ascii=False))
    raise ConnectionError("the stream ended before its transcript")  # tried again


def _text_of(document: dict[str, object]) -> str:
    text = document.get("text")
    if not isinstance(text, str):
        raise RefusedError("the server's answer has no text: is this the right address?", 200)
    return text
