"""The body of a request, and multipart/form-data (RFC 7578) as far as a device writes it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

BINARY = "application/octet-stream"


@dataclass(frozen=True)
class RequestBody:
    """Parts that are sent one after the other, as often as it takes."""

    parts: tuple[bytes, ...]
    content_type: str

    @property
    def bytes(self) -> int:
        """Length of the whole."""
        return sum(map(len, self.parts))


@dataclass(frozen=True)
class FormPart:
    """A field, or a file where it has a ``filename``. Names and types are ours, never those of a person's files."""

    name: str
    content: bytes
    filename: str = ""
    content_type: str = ""


def text_parts(**texts: str) -> list[FormPart]:
    """A field for each text that is not empty."""
    return [FormPart(name, text.encode()) for name, text in texts.items() if text]


def adapter_part(adapter: bytes) -> FormPart:
    """A packed adapter as a file."""
    return FormPart("adapter", adapter, "adapter.safetensors", BINARY)


def encode(parts: Sequence[FormPart]) -> RequestBody:
    """The parts as a form. No content is copied, and the boundary is 128 random bits."""
    boundary = os.urandom(16).hex()
    pieces: list[bytes] = []
    for part in parts:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{part.name}"'
        if part.filename:
            head += f'; filename="{part.filename}"'
        if part.content_type:
            head += f"\r\nContent-Type: {part.content_type}"
        pieces += [f"{head}\r\n\r\n".encode(), part.content, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode())
    return RequestBody(tuple(pieces), f"multipart/form-data; boundary={boundary}")
