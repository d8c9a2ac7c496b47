"""Commands of ``idiolect device`` that set up, keep and train the adapter. Each takes parsed arguments and returns an exit code."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from clients.device.adapt import Lesson, read_labelled
from clients.device.client import ThinClient
from clients.device.errors import UnreachableError
from clients.device.folder import MIB, Settings, ask_passphrase, initialize
from fl.core.errors import AdapterError, IdiolectError, StoreError
from fl.core.files import write_atomically
from fl.packed.blob import digest, pack, read_info, unpack
from fl.packed.header import MAX_PACKED_BYTES, PackedInfo

Command = Callable[[argparse.Namespace], int]
DONE_CODE, ERROR_CODE, LATER_CODE = 0, 1, 3  # 2 is argparse's, for a command that was written wrongly


def say(arguments: argparse.Namespace, document: dict[str, Any], text: str) -> None:
    """One line of JSON for a script, or text for a person."""
    print(json.dumps(document, ensure_ascii=False) if arguments.json else harmless(text), flush=True)


def harmless(text: str) -> str:
    """``text`` without what steers a terminal: a transcript is written by a server."""
    return "".join(character for character in text if character in "\n\t" or character.isprintable())


def open_device(arguments: argparse.Namespace) -> ThinClient:
    """The device in the folder that was chosen."""
    return ThinClient.open(arguments.folder)


def init(arguments: argparse.Namespace) -> int:
    """Set the device up."""
    settings = Settings(
        server=arguments.server,
        ca=str(arguments.ca.resolve()) if arguments.ca else "",
        allow_http=arguments.allow_http,
        token_file=str(arguments.token_file.resolve()) if arguments.token_file else "",
        language=arguments.language,
        codec=arguments.codec,
        budget_bytes=round(arguments.budget_mib * MIB),
        queue_bytes=round(arguments.queue_mib * MIB),
        handles=not arguments.no_handle,
        encryption=arguments.encrypt,
        key_file=str(arguments.key_file.resolve()) if arguments.key_file else "",
    )
    settings = initialize(arguments.folder, settings, ask_passphrase)
    say(
        arguments,
        {"folder": str(arguments.folder), "server": settings.server, "encryption": settings.encryption},
        f"{arguments.folder} is set up for {settings.server}; files encrypted: {settings.encryption}",
    )
    return DONE_CODE


def adapter_set(arguments: argparse.Namespace) -> int:
    """Store an adapter from a packed file or an adapter folder."""
    path: Path = arguments.path
    if path.is_dir():
        from fl.packed.folder import pack_folder

        data = pack_folder(path, arguments.dtype or "float16")
    else:
        data = _read_packed(path)
        if arguments.dtype and arguments.dtype != read_info(data).dtype:
            tensors, info = unpack(data)
            data = pack(tensors, PackedInfo(**{**info.__dict__, "dtype": arguments.dtype}))
    info = open_device(arguments).store.set(data, other_base=arguments.other_base)
    say(arguments, _describe(data, info), f"stored: {len(data):,} bytes for base {info.base_name} ({info.dtype})")
    return DONE_CODE


def _read_packed(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_PACKED_BYTES:
            raise AdapterError(f"{path} has {path.stat().st_size:,} bytes, more than an adapter may have")
        return path.read_bytes()
    except OSError as error:
        raise AdapterError(
            f"{path} cannot be read ({error.strerror}): give a packed file or an adapter folder"
        ) from error


def _describe(data: bytes, info: PackedInfo) -> dict[str, Any]:
    settings = {name: info.config.get(name) for name in ("r", "lora_alpha", "gate", "target_modules")}
    named = {name: value for name, value in info.__dict__.items() if name != "config"}
    return {**named, **settings, "bytes": len(data), "digest": digest(data)}


def _stored(client: ThinClient) -> bytes:
    data = client.store.load()
    if data is None:
        raise StoreError("there is no adapter on this device: 'idiolect device adapter set FILE' first")
    return data


def adapter_show(arguments: argparse.Namespace) -> int:
    """Say what the stored adapter is."""
    client = open_device(arguments)
    data = _stored(client)
    found = _describe(data, read_info(data))
    found |= {"budget_bytes": client.settings.budget_bytes, "encryption": client.settings.encryption}
    say(arguments, found, "\n".join(f"{name:<17} {value}" for name, value in found.items()))
    return DONE_CODE


def adapter_export(arguments: argparse.Namespace) -> int:
    """Write the stored adapter, not encrypted, to a file."""
    data, path = _stored(open_device(arguments)), arguments.file
    if path.exists() and not arguments.force:
        raise StoreError(f"{path} is there already: say --force to replace it")
    try:
        write_atomically(path, data)
    except OSError as error:
        raise StoreError(f"{path} could not be written ({error}): free some space or choose another place") from error
    say(arguments, {"file": str(path), "bytes": len(data)}, f"{path}: {len(data):,} bytes, readable by its owner alone")
    return DONE_CODE


def adapt(arguments: argparse.Namespace) -> int:
    """Have the server train the stored adapter."""
    client = open_device(arguments)
    lesson = Lesson(
        arguments.steps,
        arguments.private_steps,
        arguments.learning_rate,
        arguments.private_learning_rate,
        arguments.seed,
        arguments.language,
    )
    _stored(client)
    utterances = read_labelled(arguments.source, client.settings.codec)
    with closing(client):
        info, report = client.adapt(utterances, lesson)
    told = {name: report.get(name) for name in ("steps", "examples", "loss", "seconds")}
    text = f"trained on {len(utterances)} utterances and stored: " + ", ".join(f"{k} {v}" for k, v in told.items())
    say(arguments, {**told, "base_name": info.base_name, "dtype": info.dtype}, text)
    return DONE_CODE


def run(command: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """The command's exit code, or that of its typed error, which is printed."""
    try:
        return command(arguments)
    except IdiolectError as error:
        if arguments.json:
            print(json.dumps({"error": str(error), "type": type(error).__name__}, ensure_ascii=False), flush=True)
        else:
            print(f"idiolect: {error}", file=sys.stderr)
        return LATER_CODE if isinstance(error, UnreachableError) else ERROR_CODE
    except BrokenPipeError:  # whoever read the output has seen enough; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ERROR_CODE
    except OSError as error:
        print(f"idiolect: {error}: check the disk, and who owns the device's folder", file=sys.stderr)
        return ERROR_CODE
    except KeyboardInterrupt:
        print("stopped; what waits in the queue is still there", file=sys.stderr)
        return 130
