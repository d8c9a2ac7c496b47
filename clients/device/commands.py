"""What the commands of ``idiolect device`` do: set a device up, keep and enrol its adapter, transcribe, record, queue, flush.

A command takes parsed arguments, says a line of JSON for a script or text for a person, and returns its exit code unless it is
done. Its docstring is its help.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from clients.device.adapt import AdaptOptions
from clients.device.audio import Upload, encode_file, record
from clients.device.client import DeviceClient, Flushed
from clients.device.labelled import LabelledSpeech, read_labelled
from clients.device.messages import RefusedError, UnreachableError
from clients.device.queue import DONE, FAILED, WAITING
from clients.device.seal import SealedFolder, ask_passphrase
from clients.device.settings import DeviceSettings, initialize
from clients.device.spelling import LearnedSpelling
from fl.core.errors import AdapterError, ManifestError, StoreError
from fl.core.paths import find
from fl.core.printing import SHOWN, harmless
from fl.packed.blob import digest, pack, read_info, unpack
from fl.packed.header import MAX_PACKED_BYTES, PackedInfo
from fl.speech.spelling import SpellingTable, Written, read_lexicon

DONE_CODE, ERROR_CODE, LATER_CODE = 0, 1, 3  # 2 is argparse's, for a command that was written wrongly


def say(arguments: argparse.Namespace, document: dict[str, Any], text: str) -> None:
    """Print ``document`` for a script, or ``text`` for a person."""
    print(json.dumps(document, ensure_ascii=False) if arguments.json else harmless(text), flush=True)


def write_output(path: Path, data: bytes) -> None:
    """Write a file that a person asked for. Raises :class:`StoreError`."""
    if path.is_dir():
        raise StoreError(f"{path} is a folder: give the name of a file in it")
    SealedFolder(path.parent).write(path.name, str(path), data, "free some space or choose another place")


def init(arguments: argparse.Namespace) -> None:
    """Set this device up, or change its settings."""
    settings = initialize(arguments.folder, DeviceSettings.chosen(arguments), ask_passphrase)
    said = {"folder": str(arguments.folder), "server": settings.server, "encryption": settings.encryption}
    say(arguments, said, "{folder} is set up for {server}; files encrypted: {encryption}".format(**said))


def adapter_set(arguments: argparse.Namespace) -> None:
    """Store an adapter: a packed file, or an adapter folder."""
    path: Path = find(arguments.path)
    table = SpellingTable.read(path) if path.is_dir() else None
    if path.is_dir():
        from fl.packed.folder import pack_folder

        data = pack_folder(path, arguments.dtype or "float16")
    else:
        data = _read_packed(path)
        if arguments.dtype and arguments.dtype != read_info(data).dtype:
            tensors, info = unpack(data)
            data = pack(tensors, replace(info, dtype=arguments.dtype))
    client = DeviceClient.open(arguments.folder)
    info = client.store.set(data, other_base=arguments.other_base)
    stored = f"stored: {len(data):,} bytes for base {info.base_name} ({info.dtype})"
    if table is not None:
        client.spelling.set(table)
        stored += f", spellings of {len(table.pairs)} loanwords"
    say(arguments, _describe(data, info), stored)


def _read_packed(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_PACKED_BYTES:
            raise AdapterError(f"{path} has {path.stat().st_size:,} bytes, more than an adapter may have")
        return path.read_bytes()
    except OSError as error:
        raise AdapterError(f"{path} cannot be read ({error.strerror}): give a packed file or a folder") from error


def _describe(data: bytes, info: PackedInfo) -> dict[str, Any]:
    shown = {name: info.config.get(name) for name in ("r", "lora_alpha", "gate", "target_modules")}
    named = {name: value for name, value in info.__dict__.items() if name != "config"}
    return {**named, **shown, "bytes": len(data), "digest": digest(data)}


def adapter_show(arguments: argparse.Namespace) -> None:
    """Say what the stored adapter is."""
    client = DeviceClient.open(arguments.folder)
    data = client.store.require()
    found = _describe(data, read_info(data))
    table = client.spelling.load()
    found |= {"budget_bytes": client.settings.budget_bytes, "encryption": client.settings.encryption}
    found["spellings"] = 0 if table is None else len(table.pairs)
    say(arguments, found, "\n".join(f"{name:<17} {value}" for name, value in found.items()))


def adapter_export(arguments: argparse.Namespace) -> None:
    """Write the stored adapter to a file, not encrypted."""
    data, path = DeviceClient.open(arguments.folder).store.require(), arguments.file
    if path.is_file() and not arguments.force:
        raise StoreError(f"{path} is there already: say --force to replace it")
    write_output(path, data)
    say(arguments, {"file": str(path), "bytes": len(data)}, f"{path}: {len(data):,} bytes, readable by its owner alone")


def enrol(arguments: argparse.Namespace) -> None:
    """Have the server train a private part of this device's adapter on labelled speech, and keep it where it helps."""
    known = read_lexicon(arguments.lexicon) if arguments.lexicon is not None else []
    options = AdaptOptions(**{one.name: getattr(arguments, one.name) for one in fields(AdaptOptions)})
    with closing(DeviceClient.open(arguments.folder)) as client:
        language = options.language or client.settings.language or read_info(client.store.require()).language
        found = read_labelled(arguments.source, client.settings.codec, arguments.encoding, language)
        for remark in () if arguments.json else found.remarks():
            print(harmless(f"idiolect: {remark}"), file=sys.stderr)
        if found.left_out and arguments.strict:
            raise ManifestError(f"{arguments.source}: {len(found.left_out)} left out, and --strict allows none")
        refused: list[str] = []
        while True:
            try:
                info, report = client.enrol(found.utterances, options)
                break
            except RefusedError as error:
                if len(refused) == SHOWN or not (name := found.leave_out(str(error))):
                    raise
                if arguments.strict or not found.utterances:
                    raise ManifestError(f"{arguments.source}: {name}: {error}") from error
                refused.append(name)
                print(harmless(f"idiolect: left out, since {error}: {name}"), file=sys.stderr)
        if known:
            report["spelling"] = _learn_spelling(client, found, report, known, keep=options.keep)
    for one in report["unseen"]:
        one["name"] = dict(enumerate(found.names)).get(one["name"], "?")
    passed = {"left_out": found.left_out, "guessed": sorted(found.guessed)}
    named = {**report, **passed, "base_name": info.base_name, "dtype": info.dtype}
    say(arguments, named, "\n".join(_told(report, len(found.names))))


def _learn_spelling(
    client: DeviceClient, found: LabelledSpeech, report: dict[str, Any], known: Sequence[Written], *, keep: bool
) -> dict[str, Any]:
    """Learn how the person spells, keep it where it helps, and add to ``report`` what it makes of each sentence left out."""
    transcript = "after" if report.get("kept", True) else "before"  # of the adapter that the device has from now on
    heard = {one["name"]: one[transcript] for one in report["unseen"]}
    learned = LearnedSpelling.of([text for _, text in found.utterances], heard, known)
    for one in report["unseen"]:
        if (respelled := learned.respelled.get(one["name"])) not in (None, one[transcript]):
            one["respelled"] = respelled
    if kept := bool(learned.table.pairs) and (keep or learned.helps):
        client.spelling.set(learned.table)
    return {"loanwords": len(learned.table.pairs), "right": learned.right, "wrong": learned.wrong, "kept": kept}


def _told(report: dict[str, Any], count: int) -> Iterator[str]:
    """What the server says of an enrolment, in lines: each sentence before and after, then what was kept."""
    sentences = report["unseen"]
    for one in sentences:
        before, after = one["errors"]
        yield f"{one['name']}: {one['said']}\n  before ({before} errors): {one['before']}"
        yield f"  after  ({after} errors): {one['after']}"
        if "respelled" in one:
            yield f"  as you spell: {one['respelled']}"
    before, after = (sum(one["errors"][i] for one in sentences) for i in (0, 1))
    yield (
        f"errors in sentences that were not trained on: {before} -> {after}"
        if sentences
        else "one sentence leaves nothing to check with: record a second one to see whether it helps"
    )
    yield f"{report.get('steps')} steps in {report.get('seconds')} s; private part {report.get('private_bytes')} bytes"
    yield (
        f"trained on {count} utterances and stored"
        if report.get("kept", True)
        else "not kept: it does not help with sentences left out; --keep keeps it all the same"
    )
    if spelling := report.get("spelling"):
        kept = "stored" if spelling["kept"] else "not kept; --keep keeps them all the same"
        if not spelling["loanwords"]:
            kept = "nothing to store"
        found = (
            "spellings of {loanwords} loanwords: in sentences left out they set {right} words right and {wrong} wrong"
        )
        yield f"{found.format(**spelling)}; {kept}"


def transcribe(arguments: argparse.Namespace) -> int:
    """Transcribe an audio file."""
    client = DeviceClient.open(arguments.folder)
    return _send(arguments, client, encode_file(arguments.file, arguments.codec or client.settings.codec))


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


def queue(arguments: argparse.Namespace) -> None:
    """List what waits for the server, or add audio files."""
    client = DeviceClient.open(arguments.folder)
    if arguments.forget:
        gone = client.queue.forget()
        say(arguments, {"forgotten": gone}, f"{gone} answers and refusals removed")
        return
    for path in arguments.files:
        name = client.queue.add(encode_file(path, client.settings.codec), arguments.language, arguments.format)
        say(arguments, {"queued": name, "file": str(path)}, f"{name}  {path}")
    for state in () if arguments.files else (WAITING, DONE, FAILED):
        for name in client.queue.names(state):
            text = "" if state == WAITING else client.queue.answer(name, state)
            say(arguments, {"name": name, "state": state, "text": text}, f"{name}  {state:<8} {text}".rstrip())


def flush(arguments: argparse.Namespace) -> int:
    """Send what waits, in order."""
    refused = []

    def on_done(one: Flushed) -> None:
        refused.append(bool(one.reason))
        say(arguments, one.__dict__, f"{one.name}  {one.reason and 'REFUSED: '}{one.reason or one.text}")

    with closing(DeviceClient.open(arguments.folder)) as client:
        client.flush(on_done)
    return ERROR_CODE if any(refused) else DONE_CODE
