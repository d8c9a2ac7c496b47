"""What makes two bases the same: their architecture and every bit of their weights."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import Wav2Vec2ForCTC, WhisperForConditionalGeneration

from fl.core.files import write_atomically


def fingerprint_of(model: WhisperForConditionalGeneration) -> str:
    """``whisper:<d_model>x<encoder layers>+<decoder layers>:<16 hex digits of SHA-256>``.

    The hash runs over names, types, shapes and bytes of the float32 weights in the order of their names. The output
    head is left out, because it is tied to the embedding. So the same weights have the same fingerprint whichever
    files they came in.
    """
    digest = _hash({name: tensor for name, tensor in model.state_dict().items() if name != "proj_out.weight"})
    config = model.config
    shape = f"{config.d_model}x{config.encoder_layers}+{config.decoder_layers}"
    return f"whisper:{shape}:{digest.hexdigest()[:16]}"


def ctc_fingerprint(model: Wav2Vec2ForCTC, vocabulary: str) -> str:
    """``wav2vec2:<d_model>x<layers>:<16 hex digits>``, over the weights and the digest of the ``vocabulary``.

    The vocabulary counts, since a head means nothing without it.
    """
    digest = _hash(dict(model.state_dict()))
    digest.update(vocabulary.encode())
    return f"wav2vec2:{model.config.hidden_size}x{model.config.num_hidden_layers}:{digest.hexdigest()[:16]}"


def _hash(weights: Mapping[str, Tensor]) -> "hashlib._Hash":
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} float32\n".encode())
        digest.update(_as_bytes(tensor))
    return digest


def _as_bytes(tensor: Tensor) -> memoryview:
    array = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    return array.reshape(-1).astype("<f4", copy=False).view(np.uint8).data


def remembered(root: Path, files: list[Path], compute: Callable[[], str]) -> str:
    """The fingerprint of what was loaded from ``files``, computed if ``root`` does not have it by their paths, sizes and times."""
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]
    path = root / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()}.txt"
    with suppress(OSError, UnicodeDecodeError):
        known = path.read_text(encoding="ascii")
        if known.startswith(("whisper:", "wav2vec2:")) and len(known) < 100:
            return known
    value = compute()
    with suppress(OSError):
        write_atomically(path, value.encode())
    return value
