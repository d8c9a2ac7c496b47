"""Safetensors whose bytes are a function of what they hold, and which say so: damage inside a tensor is found when it is read.

The library writes the metadata in the order of a hash map, another one in each process, so that equal states would be
unequal files, and nobody could say that a resumed run ended where an uninterrupted one does. It has no checksum either: a bit
that flips in a number is another number. Loads without torch.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from torch import Tensor

MAX_TENSORS = 20_000
DIGEST = "sha256"  # in the metadata: of the whole file, with zeros where the digest itself stands
_SIZE = struct.Struct("<Q")  # the format begins with the header's size in bytes
_ALIGNMENT = 8
_CHUNK_BYTES = 2**20


def _said(digest: str = "0" * 64) -> bytes:
    return f'"{DIGEST}":"{digest}"'.encode()


def tensor_bytes(tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> bytes:
    """``tensors`` with ``metadata`` as a safetensors file, its header sorted by name and with the digest of all of it."""
    from safetensors.torch import save

    blank = {**metadata, DIGEST: "0" * 64}
    data: bytes = save({name: tensor.contiguous() for name, tensor in tensors.items()}, blank)
    (size,) = _SIZE.unpack_from(data)
    header = json.dumps(
        json.loads(data[_SIZE.size : _SIZE.size + size]), sort_keys=True, separators=(",", ":")
    ).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    body = memoryview(data)[_SIZE.size + size :]
    digest = hashlib.sha256(_SIZE.pack(len(header)) + header)
    digest.update(body)
    return b"".join([_SIZE.pack(len(header)), header.replace(_said(), _said(digest.hexdigest()), 1), body])


def read_tensors(path: Path, framework: str = "pt") -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors, sorted by name, and the metadata of a safetensors file, whose size the caller has bounded.

    Arrays for the ``framework`` "np", torch tensors for "pt". Raises ValueError for a file that is damaged, and OSError for one
    that cannot be read. A file without a digest (of another program, or of a version before there was one) is read as it is.
    """
    with path.open("rb") as stream:  # by name: what the library raises does not tell a missing file from a damaged one
        try:
            with safe_open(path, framework=framework) as file:
                names = sorted(file.keys())
                if len(names) > MAX_TENSORS:
                    raise ValueError(f"{len(names):,} tensors, more than the {MAX_TENSORS:,} allowed")
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in names}
        except (SafetensorError, TypeError, KeyError, AttributeError) as error:  # a dtype without numpy
            raise ValueError(str(error)) from error
        if (said := metadata.pop(DIGEST, None)) is not None:
            start = stream.read(_SIZE.size)
            header = stream.read(_SIZE.unpack(start)[0]).replace(_said(said), _said(), 1)
            found = hashlib.sha256(start + header)
            while chunk := stream.read(_CHUNK_BYTES):
                found.update(chunk)
            if found.hexdigest() != said:
                raise ValueError("its bytes are not those that were written")
    return tensors, metadata
