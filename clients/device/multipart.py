"""multipart/form-data (RFC 7578), as much of it as a device needs: writing fields and files, reading an answer's parts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from clients.device.http import Body


@dataclass(frozen=True)
class Part:
    """A field, or a file where it has a ``filename``. Names and types are ours, never those of a person's files."""

    name: str
    content: bytes
    filename: str = ""
    content_type: str = ""


def text_part(name: str, text: str) -> Part:
    """A field with text."""
    return Part(name, text.encode())


def encode(parts: Sequence[Part]) -> Body:
    """The parts as the body of a request. No content is copied, and the boundary is 128 random bits."""
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
    return Body(tuple(pieces), f"multipart/form-data; boundary={boundary}")
