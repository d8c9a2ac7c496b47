"""Enrolment through a server as a device sees it: labelled speech out, an adapter with a private part back, and why it may be believed.

The layout is that of :mod:`fl.serving.http.adapt`. A server that answers with another adapter than the one that was sent, enrolled,
does not get to replace it: base, tokenizer, window, configuration, names and shapes must be the same, and whatever has changed must
be private in what the adapter says of itself.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clients.device.labelled import Labelled
from clients.device.messages import FormPart, ServerAnswer, unexpected
from fl.adapters.split import covering
from fl.core.errors import AdapterMismatchError
from fl.packed.blob import unpack
from fl.packed.header import MAX_PACKED_BYTES
from fl.settings.names import SPLITS

MAX_REPORT_BYTES = 4 * 2**20


@dataclass(frozen=True)
class AdaptOptions:
    """How the server enrols. It keeps what makes left-out sentences worse to itself, unless ``keep``; an empty language is the
    adapter's own."""

    keep: bool = False
    seed: int = 0
    language: str = ""

    def fields(self) -> dict[str, str]:
        """As form fields, those that are not the default."""
        return {name: str(value) for name, value in self.__dict__.items() if value}


def adapt_parts(adapter: bytes, utterances: Sequence[Labelled], options: AdaptOptions) -> list[FormPart]:
    """The form of ``POST /v1/adapt``."""
    texts = json.dumps([text for _, text in utterances], ensure_ascii=False)
    audio = [upload.part("audio") for upload, _ in utterances]
    return [FormPart.adapter(adapter), *audio, *FormPart.texts(texts=texts, **options.fields())]


def read_adapted(answer: ServerAnswer) -> tuple[bytes, dict[str, Any]]:
    """The new adapter of an answer, not yet checked and empty where it was not kept, and the rest of it: steps, sentences, seconds."""
    document = answer.json(limit=MAX_PACKED_BYTES * 4 // 3 + MAX_REPORT_BYTES)
    document["unseen"] = _sentences(document.get("unseen", []))
    coded = document.pop("adapter", None)
    if document.get("kept") is False:
        return b"", document
    try:
        data = base64.b64decode(coded, validate=True) if isinstance(coded, str) else b""
    except ValueError:
        data = b""
    if not data:
        raise unexpected("holds no adapter, so the old one is kept")
    return data, document


def _sentences(found: Any) -> list[dict[str, Any]]:
    """What the server says of each sentence: its place in the request, what was said, transcripts and errors before and after."""
    try:
        return [
            {
                "name": int(one["name"]),
                **{key: str(one[key]) for key in ("said", "before", "after")},
                "errors": [int(one["errors"][0]), int(one["errors"][1])],
            }
            for one in found
        ]
    except (TypeError, ValueError, LookupError) as error:
        raise unexpected("does not say what became of the sentences") from error


def check_adapted(sent: bytes, new: bytes) -> None:
    """Raise :class:`fl.core.errors.AdapterError` unless ``new`` is sound and the same adapter as ``sent`` but for values that it calls
    private."""
    old_tensors, old = unpack(sent)
    new_tensors, info = unpack(new)
    for field in ("base_name", "base_fingerprint", "tokenizer", "window", "config"):
        if getattr(old, field) != getattr(info, field):
            raise AdapterMismatchError(f"the server sent back an adapter with another {field}: the old one is kept")
    if {name: t.shape for name, t in old_tensors.items()} != {name: t.shape for name, t in new_tensors.items()}:
        raise AdapterMismatchError("the server sent back an adapter with other tensors: the old one is kept")
    changed = [name for name, values in old_tensors.items() if not np.array_equal(values, new_tensors[name])]
    if info.split not in (old.split, *SPLITS) or info.split != covering(info.split, old_tensors, changed):
        raise AdapterMismatchError(
            f"the server sent back an adapter with another split, {info.split[:80]!r}, and what changed is not private in it: the "
            "old one is kept"
        )
