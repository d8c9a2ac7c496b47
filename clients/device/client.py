"""A thin device: it holds an adapter and no base, sends speech to a server, and its adapter when the server lacks it.

It loads with numpy, soundfile and the standard library (``soxr`` for audio that is not at 16 kHz, ``cryptography`` for encryption
at rest, ``sounddevice`` for the microphone).

    device = DeviceClient.open(folder)
    print(device.transcribe(encode_file(Path("note.wav"))).text)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from clients.device.adapt import AdaptOptions, adapt_parts, check_adapted, read_adapted
from clients.device.audio import Upload
from clients.device.http import Connection, RetryPolicy, ServerAddress
from clients.device.labelled import Labelled
from clients.device.messages import FormPart, RefusedError, RequestBody, ServerAnswer, unexpected
from clients.device.queue import DamagedEntryError, RecordingQueue
from clients.device.seal import Seal, ask_passphrase
from clients.device.settings import DeviceSettings, open_device, open_server
from clients.device.spelling import SpellingStore
from clients.device.store import AdapterStore
from fl.core.errors import ConfigError
from fl.packed.blob import PackedInfo, read_info
from fl.speech.spelling import SpellingTable

FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
TRANSCRIBE, ADAPTERS, ADAPT = "/v1/audio/transcriptions", "/v1/adapters", "/v1/adapt"
UNKNOWN_HANDLE = "unknown-handle"
NO_HANDLES = frozenset({404, 405, 413, 501, 507})  # there are none at that server, or it has no room for this adapter
RECORDING_AT_FAULT = frozenset({400, 413, 415, 422})
ADAPTER_AT_FAULT = frozenset({"adapter-mismatch", "unusable-adapter"})
ADAPT_SECONDS = 6000.0  # a device may wait behind others before it is enrolled

OnText = Callable[[str], None]
Send = Callable[[list[FormPart], str], "Transcription"]


@dataclass(frozen=True)
class Transcription:
    """What the server recognized. ``answer`` is its answer as sent: ``text`` itself, subtitles, or a JSON document."""

    text: str
    answer: str


@dataclass(frozen=True)
class Flushed:
    """An entry of the queue that was answered (``reason`` empty) or refused for good."""

    name: str
    text: str
    reason: str = ""


class DeviceClient:
    """One device and its server. Not for several threads at once."""

    def __init__(
        self,
        folder: Path,
        settings: DeviceSettings,
        server: ServerAddress,
        seal: Seal | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self.settings, self.server = settings, server
        self.retry = retry or RetryPolicy()
        self.store = AdapterStore(folder, settings.budget_bytes, seal)
        self.spelling = SpellingStore(folder, seal)
        self.queue = RecordingQueue(folder / "queue", settings.queue_bytes, seal)

    @classmethod
    def open(cls, folder: Path, passphrase: Callable[[], str] = ask_passphrase) -> DeviceClient:
        """The device that was set up in ``folder``. Raises :class:`ConfigError` or :class:`clients.device.seal.LockedError`."""
        settings, seal = open_device(folder, passphrase)
        return cls(folder, settings, open_server(settings), seal)

    @cached_property
    def connection(self) -> Connection:
        """To the server; made when it is first needed, and kept."""
        return Connection(self.server, self.retry)

    def close(self) -> None:
        """Hang up."""
        if "connection" in self.__dict__:
            self.connection.close()

    def transcribe(
        self,
        upload: Upload,
        *,
        language: str = "",
        response_format: str = "json",
        on_text: OnText | None = None,
        adapted: bool = True,
        key: str = "",
    ) -> Transcription:
        """What was said in ``upload``, with this device's adapter and spellings unless ``adapted`` is false or there are none.

        With ``on_text`` the server streams: it is called with the whole text so far, which may begin anew after an
        interruption. ``key`` is the idempotency key; the same for the same recording. Raises
        :class:`clients.device.messages.UnreachableError` when later may help, :class:`RefusedError` when it will not.
        """
        if response_format not in FORMATS:
            raise ConfigError(f"format {response_format!r} is not known: give one of {', '.join(FORMATS)}")
        if on_text is not None and response_format not in ("json", "text"):
            raise ConfigError(f"format {response_format!r} cannot be streamed: leave --stream or --format out")
        stream = "true" if on_text is not None else ""
        language = language or self.settings.language
        parts = [
            upload.part("file"),
            *FormPart.texts(language=language, response_format=response_format, stream=stream),
        ]
        adapter = self.store.load() if adapted else None
        table = self.spelling.load() if adapted else None
        shown = on_text if on_text is None or table is None else _respelling(on_text, table)
        key = key or os.urandom(16).hex()

        def send(extra: list[FormPart], step: str) -> Transcription:
            return self.connection.call(
                "POST",
                TRANSCRIBE,
                RequestBody.form([*extra, *parts]),
                lambda answer: _streamed(answer, shown) if shown else _whole(answer, response_format),
                key=key + step,
            )

        found = send([], "") if adapter is None else self._with_adapter(adapter, send)
        return found if table is None else _respelled(found, response_format, table)

    def _with_adapter(self, adapter: bytes, send: Send) -> Transcription:
        """Send the handle; the adapter only where the server does not have it, and with the request only if it cannot keep it.

        A body that differs goes under a key of its own (its second argument): a server may hold it against us if it did not.
        """
        steps = ("", "-put") if self.settings.handles else ()
        for step in steps:
            handle = self.put_adapter(adapter) if step else self.store.handle(self.server.url, adapter)
            if handle:
                try:
                    return send(FormPart.texts(adapter_handle=handle), step)
                except RefusedError as error:
                    if error.slug != UNKNOWN_HANDLE:
                        raise
                    self.store.forget_handle()  # out of date, or gave way to others at once: the server is full
        return send([FormPart.adapter(adapter)], "-adapter")

    def put_adapter(self, adapter: bytes) -> str:
        """Have the server hold the adapter for a while; its handle, or empty from a server that keeps none."""
        try:
            found = self.connection.call("PUT", ADAPTERS, RequestBody((adapter,)), ServerAnswer.json)
        except RefusedError as error:
            if error.status in NO_HANDLES and error.slug != UNKNOWN_HANDLE:
                return ""  # it can still come with each request
            raise
        handle, seconds = found.get("handle"), found.get("expires_in")
        if not (isinstance(handle, str) and 0 < len(handle) <= 200 and handle.isascii() and handle.isprintable()):
            raise unexpected("has no handle")
        alive = float(seconds) if isinstance(seconds, int | float) and 0 < seconds < 1e9 else 3600.0
        self.store.remember(self.server.url, adapter, handle, alive)
        return handle

    def flush(self, on_done: Callable[[Flushed], None] = lambda _: None) -> int:
        """Send what waits, in order, telling ``on_done`` of each; how many were answered.

        Stops with :class:`clients.device.messages.UnreachableError` at the first that cannot be sent now; it and those behind it
        go on waiting. What the server refuses for good is put aside with the reason.
        """
        answered = 0
        with self.queue.sending() as names:
            for name in names:
                try:
                    one = self.queue.load(name)
                    found = self.transcribe(one.upload, language=one.language, response_format=one.format, key=one.key)
                except (DamagedEntryError, RefusedError) as error:
                    if isinstance(error, RefusedError) and not _is_recordings_fault(error):
                        raise
                    self.queue.fail(name, str(error))
                    on_done(Flushed(name, "", str(error)))
                else:
                    self.queue.finish(name, found.answer)
                    answered += 1
                    on_done(Flushed(name, found.text))
        return answered

    def enrol(self, utterances: Sequence[Labelled], options: AdaptOptions) -> tuple[PackedInfo, dict[str, Any]]:
        """Have the server enrol this device on labelled speech; store the new adapter if it was kept and is sound.

        Returns what the stored adapter says of itself and what the server says of the enrolment. Raises
        :class:`fl.core.errors.AdapterMismatchError` for an answer that is not this adapter, enrolled; the old one is then kept.
        """
        adapter = self.store.require()
        options = replace(options, language=options.language or self.settings.language)
        body = RequestBody.form(adapt_parts(adapter, utterances, options))
        patient = replace(self.retry, total=max(self.retry.total, ADAPT_SECONDS))
        with closing(Connection(replace(self.server, timeout=ADAPT_SECONDS), patient)) as connection:
            new, report = connection.call("POST", ADAPT, body, read_adapted, key=os.urandom(16).hex())
        if not new:
            return read_info(adapter), report
        check_adapted(adapter, new)
        return self.store.set(new), report


def _is_recordings_fault(error: RefusedError) -> bool:
    return error.status in RECORDING_AT_FAULT and error.slug not in ADAPTER_AT_FAULT


def _respelling(on_text: OnText, table: SpellingTable) -> OnText:
    """``on_text`` with the whole words of a growing text: the last may still become another."""
    return lambda text: on_text(table.respell(text.rpartition(" ")[0]))


def _respelled(found: Transcription, response_format: str, table: SpellingTable) -> Transcription:
    """``found`` as the person spells. Of JSON its ``text``; ``heard`` is then what the server wrote, which the other members go by."""
    if not response_format.endswith("json"):
        text, answer = ("\n".join(map(table.respell, of.split("\n"))) for of in (found.text, found.answer))
        return Transcription(text, answer)
    text = table.respell(found.text)
    document = {**json.loads(found.answer), "text": text, "heard": found.text}
    return Transcription(text, json.dumps(document, ensure_ascii=False))


def _whole(answer: ServerAnswer, response_format: str) -> Transcription:
    if response_format.endswith("json"):
        document = answer.json()
        return Transcription(_text_of(document), json.dumps(document, ensure_ascii=False))
    try:
        text = answer.content().decode()
    except UnicodeDecodeError as error:
        raise unexpected("is no text") from error
    return Transcription(text.strip(), text)


def _streamed(answer: ServerAnswer, on_text: OnText) -> Transcription:
    text = ""
    for event in answer.events():
        if event.get("type") == "transcript.text.delta":
            delta = event.get("delta")
            text += delta if isinstance(delta, str) else ""
            on_text(text)
        elif event.get("type") == "transcript.text.done":
            return Transcription(_text_of(event), json.dumps({"text": _text_of(event)}, ensure_ascii=False))
    raise ConnectionError("the stream ended before its transcript")  # tried again


def _text_of(document: dict[str, Any]) -> str:
    text = document.get("text")
    if not isinstance(text, str):
        raise unexpected("has no text")
    return text
