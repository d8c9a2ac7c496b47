"""Server-assisted training as a device sees it: labelled speech out, a trained adapter back, and why it may be believed.

The layout is that of :mod:`fl.serving.training.adapt`. A server that answers with another adapter than the one that was sent, trained,
does not get to replace it: base, tokenizer, split, window, configuration, names and shapes must be the same.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.device.answer import Answer
from clients.device.audio import Upload, encode_file
from clients.device.errors import RefusedError
from clients.device.multipart import Part, text_part
from fl.core.errors import AdapterMismatchError, ManifestError
from fl.packed.blob import unpack
from fl.packed.header import MAX_PACKED_BYTES

MAX_MANIFEST_BYTES = 4 * 2**20
MAX_UTTERANCES = 1000
MAX_REPORT_BYTES = 4 * 2**20
_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif")


@dataclass(frozen=True)
class Labelled:
    """One utterance and what was said in it."""

    upload: Upload
    text: str


@dataclass(frozen=True)
class Lesson:
    """How to train; a zero or an empty text leaves it to the server."""

    steps: int = 0
    private_steps: int = 0
    learning_rate: float = 0.0
    private_learning_rate: float = 0.0
    seed: int = 0
    language: str = ""

    def fields(self) -> dict[str, str]:
        """As form fields."""
        values = {**self.__dict__}
        values.pop("language")
        return {name: str(value) for name, value in values.items() if value}


def read_labelled(source: Path, codec: str = "flac") -> list[Labelled]:
    """Utterances of a ``manifest.jsonl`` (``audio`` relative to it, ``text``) or of a folder (``a.wav`` beside ``a.txt``).

    Raises :class:`ManifestError` that names file and line, :class:`fl.core.errors.AudioError` for audio that cannot be used.
    """
    pairs = (
        _from_folder(source)
        if source.is_dir() and not (source / "manifest.jsonl").is_file()
        else _from_manifest(source)
    )
    if not 1 <= len(pairs) <= MAX_UTTERANCES:
        raise ManifestError(f"{source}: has {len(pairs)} utterances; give 1 to {MAX_UTTERANCES}")
    return [Labelled(encode_file(path, codec), text) for path, text in pairs]


def _from_folder(folder: Path) -> list[tuple[Path, str]]:
    pairs = []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES):
        text = path.with_suffix(".txt")
        if not text.is_file():
            raise ManifestError(f"{path}: has no text beside it; write what is said into {text.name}")
        pairs.append((path, _read_text(text).strip()))
    return pairs


def _from_manifest(source: Path) -> list[tuple[Path, str]]:
    path = source / "manifest.jsonl" if source.is_dir() else source
    pairs = []
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            audio, text = values["audio"], values["text"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ManifestError(f"{path}:{number}: is no JSON object with 'audio' and 'text' ({error!r})") from error
        if not isinstance(audio, str) or not isinstance(text, str) or values.get("start") or values.get("end"):
            raise ManifestError(
                f"{path}:{number}: 'audio' and 'text' have to be texts; cut parts into files of their own"
            )
        pairs.append((path.parent / audio, text))
    return pairs


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ManifestError(f"{path}:1: has more than {MAX_MANIFEST_BYTES:,} bytes")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}:1: cannot be read as text ({error})") from error


def adapt_parts(adapter: bytes, utterances: Sequence[Labelled], lesson: Lesson, language: str) -> list[Part]:
    """The form of ``POST /v1/adapt``."""
    parts = [Part("adapter", adapter, "adapter.safetensors", "application/octet-stream")]
    parts += [Part("audio", u.upload.content, u.upload.filename, u.upload.content_type) for u in utterances]
    parts.append(text_part("texts", json.dumps([u.text for u in utterances], ensure_ascii=False)))
    fields = {**lesson.fields(), "language": language}
    return parts + [text_part(name, value) for name, value in fields.items() if value]


def read_adapted(answer: Answer) -> tuple[bytes, dict[str, Any]]:
    """The new adapter of an answer, not yet checked, and the rest of it: loss, steps, seconds, what of it is shared."""
    document: dict[str, Any] = answer.json(limit=MAX_PACKED_BYTES * 4 // 3 + MAX_REPORT_BYTES)
    coded = document.pop("adapter", None)
    try:
        data = base64.b64decode(coded, validate=True) if isinstance(coded, str) else b""
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise RefusedError("the server's answer holds no adapter: is this the right address? The old one is kept", 200)
    return data, document


def check_adapted(sent: bytes, new: bytes) -> None:
    """Raise :class:`fl.core.errors.AdapterError` unless ``new`` is sound and the same adapter as ``sent`` but for its values."""
    old_tensors, old = unpack(sent)
    new_tensors, info = unpack(new)
    for field in ("base_name", "base_fingerprint", "tokenizer", "split", "window", "config"):
        if getattr(old, field) != getattr(info, field):
            raise AdapterMismatchError(f"the server sent back an adapter with another {field}: the old one is kept")
    if {name: t.shape for name, t in old_tensors.items()} != {name: t.shape for name, t in new_tensors.items()}:
        raise AdapterMismatchError("the server sent back an adapter with other tensors: the old one is kept")
