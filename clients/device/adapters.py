"""Commands of ``idiolect device`` that set a device up, and keep and train its adapter."""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from clients.device.adapt import PRIVATE_STEPS, AdaptOptions, read_labelled
from clients.device.client import DeviceClient
from clients.device.command import DONE_CODE, command, say, write_output
from clients.device.settings import DeviceSettings, ask_passphrase, initialize, option
from fl.core.errors import AdapterError, StoreError
from fl.packed.blob import digest, pack, read_info, unpack
from fl.packed.header import CODES, MAX_PACKED_BYTES, PackedInfo


@command("init", *DeviceSettings.options())
def init(arguments: argparse.Namespace) -> int:
    """Set this device up, or change its settings."""
    settings = initialize(arguments.folder, DeviceSettings.chosen(arguments), ask_passphrase)
    said = {"folder": str(arguments.folder), "server": settings.server, "encryption": settings.encryption}
    say(arguments, said, "{folder} is set up for {server}; files encrypted: {encryption}".format(**said))
    return DONE_CODE


@command(
    "adapter set",
    option("path", metavar="FILE|DIR", type=Path),
    option("--dtype", "precision to store (float16 for a folder)", choices=tuple(CODES), default=""),
    option("--other-base", "allow an adapter of another base than the stored one", action="store_true"),
)
def adapter_set(arguments: argparse.Namespace) -> int:
    """Store an adapter: a packed file, or an adapter folder."""
    path: Path = arguments.path
    if path.is_dir():
        from fl.packed.folder import pack_folder

        data = pack_folder(path, arguments.dtype or "float16")
    else:
        data = _read_packed(path)
        if arguments.dtype and arguments.dtype != read_info(data).dtype:
            tensors, info = unpack(data)
            data = pack(tensors, replace(info, dtype=arguments.dtype))
    info = DeviceClient.open(arguments.folder).store.set(data, other_base=arguments.other_base)
    say(arguments, _describe(data, info), f"stored: {len(data):,} bytes for base {info.base_name} ({info.dtype})")
    return DONE_CODE


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


def _stored(client: DeviceClient) -> bytes:
    data = client.store.load()
    if data is None:
        raise StoreError("there is no adapter on this device: 'idiolect device adapter set FILE' first")
    return data


@command("adapter show")
def adapter_show(arguments: argparse.Namespace) -> int:
    """Say what the stored adapter is."""
    client = DeviceClient.open(arguments.folder)
    data = _stored(client)
    found = _describe(data, read_info(data))
    found |= {"budget_bytes": client.settings.budget_bytes, "encryption": client.settings.encryption}
    say(arguments, found, "\n".join(f"{name:<17} {value}" for name, value in found.items()))
    return DONE_CODE


@command(
    "adapter export",
    option("file", type=Path),
    option("--force", "replace a file that is there", action="store_true"),
)
def adapter_export(arguments: argparse.Namespace) -> int:
    """Write the stored adapter to a file, not encrypted."""
    data, path = _stored(DeviceClient.open(arguments.folder)), arguments.file
    if path.exists() and not arguments.force:
        raise StoreError(f"{path} is there already: say --force to replace it")
    write_output(path, data)
    say(arguments, {"file": str(path), "bytes": len(data)}, f"{path}: {len(data):,} bytes, readable by its owner alone")
    return DONE_CODE


@command(
    "adapt",
    option("source", "folder with a.wav beside a.txt, or manifest.jsonl with audio and text", type=Path),
    option("--private-steps", f"train the gates on frozen A and B ({PRIVATE_STEPS}; 0 with --shared-steps)", type=int),
    option("--shared-steps", "train A and B, with neutral gates (%(default)s)", type=int, default=0),
    option("--private-learning-rate", "of private steps (the server's default)", type=float, default=0.0),
    option("--learning-rate", "of shared steps (the server's default)", type=float, default=0.0),
    option("--seed", type=int, default=0),
    option("--language", "code such as ko (the device's, else the adapter's)", default=""),
)
def adapt(arguments: argparse.Namespace) -> int:
    """Have the server train this device's adapter on labelled speech: its gates, unless the steps say otherwise."""
    options = AdaptOptions(**{one.name: getattr(arguments, one.name) for one in fields(AdaptOptions)})
    with closing(DeviceClient.open(arguments.folder)) as client:
        _stored(client)
        utterances = read_labelled(arguments.source, client.settings.codec)
        info, report = client.adapt(utterances, options)
    shown = {name: report.get(name) for name in ("steps", "examples", "loss", "seconds")}
    text = f"trained on {len(utterances)} utterances and stored: " + ", ".join(f"{k} {v}" for k, v in shown.items())
    say(arguments, {**shown, "base_name": info.base_name, "dtype": info.dtype}, text)
    return DONE_CODE


COMMANDS = (init, adapter_set, adapter_show, adapter_export, adapt)
