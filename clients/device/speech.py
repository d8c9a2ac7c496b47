"""Commands of ``idiolect device`` for speech: transcribe a file, record, queue, flush."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import closing
from pathlib import Path

from clients.device.audio import CODECS, Upload, encode_file, record
from clients.device.client import FORMATS, DeviceClient, Flushed
from clients.device.command import DONE_CODE, ERROR_CODE, LATER_CODE, command, harmless, say, write_output
from clients.device.errors import UnreachableError
from clients.device.queue import DONE, FAILED, WAITING
from clients.device.settings import option

ANSWER = (
    option("--language", "code such as ko, for this recording", default=""),
    option("--format", "of the answer (%(default)s: its text is printed)", choices=FORMATS, default="json"),
)
SENDING = (
    *ANSWER,
    option("--stream", "print words as they are recognised", action="store_true"),
    option("--queue", "keep the recording for 'flush' if the server is not reachable", action="store_true"),
    option("--base-only", "without the adapter", action="store_true"),
    option("--codec", "of this upload", choices=tuple(CODECS), default=""),
)


@command("transcribe", option("file", type=Path), *SENDING)
def transcribe(arguments: argparse.Namespace) -> int:
    """Transcribe an audio file."""
    client = DeviceClient.open(arguments.folder)
    return _send(arguments, client, encode_file(arguments.file, arguments.codec or client.settings.codec))


@command(
    "record",
    option("--seconds", "how long (%(default)s)", type=float, default=5.0),
    option("--output", "keep the recording here, send nothing", type=Path, metavar="FILE"),
    *SENDING,
)
def record_speech(arguments: argparse.Namespace) -> int:
    """Record from the microphone and transcribe."""
    client = DeviceClient.open(arguments.folder)
    print(f"recording {arguments.seconds:g} s ...", file=sys.stderr, flush=True)
    upload = record(arguments.seconds, arguments.codec or client.settings.codec)
    if not arguments.output:
        return _send(arguments, client, upload)
    write_output(arguments.output, upload.content)
    say(arguments, {"file": str(arguments.output), "seconds": upload.seconds}, str(arguments.output))
    return DONE_CODE


def _send(arguments: argparse.Namespace, client: DeviceClient, upload: Upload) -> int:
    shown = _GrowingText(arguments.json) if arguments.stream else None
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


class _GrowingText:
    """Prints a text as it grows: what is new of it, or the whole on a new line where it began anew."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        self._text = ""

    def __call__(self, text: str) -> None:
        if self._json:
            print(json.dumps({"partial": text}, ensure_ascii=False), flush=True)
        else:
            anew = not text.startswith(self._text)
            print(harmless("\n" + text if anew else text[len(self._text) :]), end="", flush=True)
        self._text = text

    def finish(self, text: str) -> None:
        """Print the final text where it differs, and end the line."""
        if self._json:
            print(json.dumps({"text": text}, ensure_ascii=False), flush=True)
            return
        if text.strip() != self._text.strip():
            self(text)
        print(flush=True)


@command(
    "queue",
    option("files", type=Path, nargs="*", metavar="FILE"),
    option("--forget", "remove answers and refusals; what waits stays", action="store_true"),
    *ANSWER,
)
def queue(arguments: argparse.Namespace) -> int:
    """List what waits for the server, or add audio files."""
    client = DeviceClient.open(arguments.folder)
    if arguments.forget:
        gone = client.queue.forget()
        say(arguments, {"forgotten": gone}, f"{gone} answers and refusals removed")
        return DONE_CODE
    for path in arguments.files:
        name = client.queue.add(encode_file(path, client.settings.codec), arguments.language, arguments.format)
        say(arguments, {"queued": name, "file": str(path)}, f"{name}  {path}")
    for state in () if arguments.files else (WAITING, DONE, FAILED):
        for name in client.queue.names(state):
            text = "" if state == WAITING else client.queue.answer(name, state)
            say(arguments, {"name": name, "state": state, "text": text}, f"{name}  {state:<8} {text}".rstrip())
    return DONE_CODE


@command("flush")
def flush(arguments: argparse.Namespace) -> int:
    """Send what waits, in order."""
    refused = []

    def on_done(one: Flushed) -> None:
        refused.append(bool(one.reason))
        say(arguments, one.__dict__, f"{one.name}  {one.reason and 'REFUSED: '}{one.reason or one.text}")

    with closing(DeviceClient.open(arguments.folder)) as client:
        client.flush(on_done)
    return ERROR_CODE if any(refused) else DONE_CODE


COMMANDS = (transcribe, record_speech, queue, flush)
