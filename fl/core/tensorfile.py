"""Safetensors whose bytes are a function of what they hold.

The library writes the metadata in the order of a hash map, another one in each process, so that equal states would be
unequal files, and nobody could say that a resumed run ended where an uninterrupted one does.
"""

import json
import struct
from collections.abc import Mapping

from safetensors.torch import save
from torch import Tensor

_SIZE = struct.Struct("<Q")  # the format begins with the header's size in bytes
_ALIGNMENT = 8


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """``tensors`` with ``metadata`` as a safetensors file, its header sorted by name."""
    data: bytes = save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(metadata))
    (size,) = _SIZE.unpack_from(data)
    header = json.dumps(
        json.loads(data[_SIZE.size : _SIZE.size + size]), sort_keys=True, separators=(",", ":")
    ).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    return _SIZE.pack(len(header)) + header + data[_SIZE.size + size :]
