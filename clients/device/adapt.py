"""Server-assisted training as a device sees it: labelled speech out, a trained adapter back, and why it may be believed.

The layout is that of :mod:`fl.serving.http.adapt`. A server that answers with another adapter than the one that was sent, trained,
does not get to replace it: base, tokenizer, split, window, configuration, names and shapes must be the same.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clients.device.labelled import Labelled
from clients.device.messages import FormPart, ServerAnswer, unexpected
from fl.core.errors import AdapterMismatchError, ConfigError
from fl.packed.blob import unpack
from fl.packed.header import MAX_PACKED_BYTES

PRIVATE_STEPS = 12  # as many as a device takes in a round of ``idiolect run``
MAX_REPORT_BYTES = 4 * 2**20


@dataclass(frozen=True)
class AdaptOptions:
    """How the server trains an adapter. Private steps train the gates alone, on frozen A and B, and are the default.

    Shared steps train A and B, with neutral gates: they move the part that all devices have in common away from what was
    aggregated. A learning rate of 0 and an empty language leave the choice to the server.
    """

    private_steps: int | None = None  # PRIVATE_STEPS, but none where shared steps are asked for
    shared_steps: int = 0
    learning_rate: float = 0.0
    private_learning_rate: float = 0.0
    seed: int = 0
    language: str = ""

    def fields(self) -> dict[str, str]:
        """As form fields. Both numbers of steps are always sent: a server's own default may train something else."""
        default = 0 if self.shared_steps else PRIVATE_STEPS
        private = default if self.private_steps is None else self.private_steps
        chosen = {name: str(value) for name, value in self.__dict__.items() if value and name != "shared_steps"}
        return {**chosen, "steps": str(self.shared_steps), "private_steps": str(private)}


def adapt_parts(adapter: bytes, utterances: Sequence[Labelled], options: AdaptOptions) -> list[FormPart]:
    """The form of ``POST /v1/adapt``."""
    texts = json.dumps([text for _, text in utterances], ensure_ascii=False)
    audio = [upload.part("audio") for upload, _ in utterances]
    return [FormPart.adapter(adapter), *audio, *FormPart.texts(texts=texts, **options.fields())]


def read_adapted(answer: ServerAnswer) -> tuple[bytes, dict[str, Any]]:
    """The new adapter of an answer, not yet checked, and the rest of it: loss, steps, seconds, which tensors are private."""
    document = answer.json(limit=MAX_PACKED_BYTES * 4 // 3 + MAX_REPORT_BYTES)
    coded = document.pop("adapter", None)
    try:
        data = base64.b64decode(coded, validate=True) if isinstance(coded, str) else b""
    except ValueError:
        data = b""
    if not data:
        raise unexpected("holds no adapter, so the old one is kept")
    return data, document


def check_adapted(sent: bytes, new: bytes, options: AdaptOptions, report: Mapping[str, Any]) -> None:
    """Raise :class:`fl.core.errors.AdapterError` unless ``new`` is sound and the same adapter as ``sent`` but for its values.

    Raises :class:`ConfigError` where only the private part was to be trained and the adapter has none.
    """
    if not options.shared_steps and report.get("private") == []:
        raise ConfigError("nothing was trained: the adapter has no private part; --shared-steps N trains the shared")
    old_tensors, old = unpack(sent)
    new_tensors, info = unpack(new)
    for field in ("base_name", "base_fingerprint", "tokenizer", "split", "window", "config"):
        if getattr(old, field) != getattr(info, field):
            raise AdapterMismatchError(f"the server sent back an adapter with another {field}: the old one is kept")
    if {name: t.shape for name, t in old_tensors.items()} != {name: t.shape for name, t in new_tensors.items()}:
        raise AdapterMismatchError("the server sent back an adapter with other tensors: the old one is kept")
