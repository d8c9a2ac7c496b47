"""Commands of ``idiolect device`` that hear: a file, the microphone, the queue."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import closing

from clients.device.audio import Upload, encode_file, record
from clients.device.client import Flushed, ThinClient
from clients.device.commands import DONE_CODE, ERROR_CODE, LATER_CODE, harmless, open_device, say
from clients.device.errors import UnreachableError
from clients.device.queue import DONE, FAILED, WAITING
from fl.core.errors import StoreError
from fl.core.files import write_atomically


def transcribe(arguments: argparse.Namespace) -> int:
    """Transcribe a file."""
    client = open_device(arguments)
    return _hear(arguments, client, encode_file(arguments.file, arguments.codec or client.settings.codec))


def record_speech(arguments: argparse.Namespace) -> int:
    """Record and transcribe, or record into a file."""
    client = open_device(arguments)
    codec = arguments.codec or client.settings.codec
    print(f"recording {arguments.seconds:g} s ...", file=sys.stderr, flush=True)
    upload = record(arguments.seconds, codec)
    if arguments.output:
        try:
            write_atomically(arguments.output, upload.content)
        except OSError as error:
            raise StoreError(f"{arguments.output} could not be written ({error})") from error
        say(arguments, {"file": str(arguments.output), "seconds": upload.seconds}, f"{arguments.output}")
        return DONE_CODE
    return _hear(arguments, client, upload)


def _hear(arguments: argparse.Namespace, client: ThinClient, upload: Upload) -> int:
    shown = _Shown(arguments) if arguments.stream else None
    try:
        with closing(client):
            found = client.transcribe(
                upload,
                language=arguments.language,
                response_format=arguments.format,
                on_text=shown,
                adapted=not arguments.base_only,
            )
    except UnreachableError as error:
        if not arguments.queue:
            raise
        name = client.queue.add(upload, arguments.language, arguments.format)
        say(arguments, {"queued": name, "reason": str(error)}, f"queued as {name}: {error}")
        return LATER_CODE
    if shown is not None:
        shown.finish(found.text)
    else:
        document = json.loads(found.answer) if arguments.format.endswith("json") else {"text": found.answer}
        say(arguments, document, found.answer.rstrip("\n") if arguments.format != "json" else found.text)
    return DONE_CODE


class _Shown:
    """Prints a text as it grows: what is new of it, or the whole on a new line where it began anew."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._json = arguments.json
        self._text = ""

    def __call__(self, text: str) -> None:
        if self._json:
            print(json.dumps({"partial": text}, ensure_ascii=False), flush=True)
        else:
            again = not text.startswith(self._text)
            print(harmless("\n" + text if again else text[len(self._text) :]), end="", flush=True)
        self._text = text

    def finish(self, text: str) -> None:
        """The last word."""
        if self._json:
            print(json.dumps({"text": text}, ensure_ascii=False), flush=True)
            return
        if text.strip() != self._text.strip():
            self(text)
        print(flush=True)


def queue(arguments: argparse.Namespace) -> int:
    """Add files to the queue, or list it."""
    client = open_device(arguments)
    if arguments.forget:
        gone = client.queue.forget()
        say(arguments, {"forgotten": gone}, f"{gone} answers and refusals removed")
        return DONE_CODE
    for path in arguments.files:
        name = client.queue.add(encode_file(path, client.settings.codec), arguments.language, arguments.format)
        say(arguments, {"queued": name, "file": str(path)}, f"{name}  {path}")
    if arguments.files:
        return DONE_CODE
    for state in (WAITING, DONE, FAILED):
        for name in client.queue.names(state):
            text = "" if state == WAITING else client.queue.answer(name, state)
            say(arguments, {"name": name, "state": state, "text": text}, f"{name}  {state:<8} {text}".rstrip())
    return DONE_CODE


def flush(arguments: argparse.Namespace) -> int:
    """Send what waits."""
    client = open_device(arguments)
    refused = 0

    def told(one: Flushed) -> None:
        nonlocal refused
        refused += bool(one.reason)
        say(arguments, one.__dict__, f"{one.name}  {one.reason and 'REFUSED: '}{one.reason or one.text}")

    with closing(client):
        client.flush(told)
    return ERROR_CODE if refused else DONE_CODE
