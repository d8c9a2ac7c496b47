"""An adapter as one blob: what a device stores, sends and receives. Loads without torch.

A blob is one safetensors file (8 bytes of header size, a JSON header, the data) whose metadata says everything that an adapter
folder says in two files. Equal adapters are equal bytes. Three precisions:

| dtype | stored | error of an entry x |
| --- | --- | --- |
| ``float32`` | as is | 0 |
| ``float16`` | IEEE half | at most 2^-11 abs(x), or 2^-25 where that is more |
| ``int8`` | q in [-127, 127] and a float16 scale for each output row | at most half of its row's scale: about max abs(row) / 254 |

The scale of a row is max abs(row) / 127 rounded *up* to float16, so that no entry is cut off. A row is a slice of the first
dimension; a vector is one row. All scales stand in one further tensor, ``scales``, in the order of the tensors' names.

A reader trusts nothing: sizes, names, shapes, dtypes, offsets and counts are checked in the header before an array is made.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fl.core.errors import AdapterError
from fl.packed.header import SCALES, PackedInfo, TensorEntry, parse, refuse, write_header

__all__ = ["PackedInfo", "digest", "pack", "quantized", "read_info", "restored", "unpack"]

Arrays = dict[str, npt.NDArray[np.float32]]

MAX_VALUE = 65504.0  # the largest float16
MAX_SCALE = 516.0  # MAX_VALUE / 127, rounded up to float16
_NUMPY: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "int8": np.dtype("i1")}


def digest(data: bytes) -> str:
    """Hexadecimal SHA-256 of a blob: what names it."""
    return hashlib.sha256(data).hexdigest()


def pack(tensors: Mapping[str, npt.NDArray[Any]], info: PackedInfo, like: bytes = b"") -> bytes:
    """``tensors`` (of one or two dimensions, by dotted name) with ``info`` as one blob in the precision ``info.dtype``.

    A tensor that is bit-equal in the int8 blob ``like`` is stored as it is there: where a scale is below the normal range of
    float16 an int8 tensor is not always its own nearest, so that it would drift by being unpacked and packed again.
    Raises :class:`AdapterError` for NaN, infinity, a value beyond float16, and for whatever :func:`unpack` would refuse.
    """
    if info.dtype not in _NUMPY:
        raise AdapterError(f"precision {info.dtype!r} is not known: give one of {', '.join(_NUMPY)}")
    stored: dict[str, npt.NDArray[Any]] = {}
    scales: list[npt.NDArray[Any]] = []
    kept = _stored(like)[1] if like and info.dtype == read_info(like).dtype == "int8" else {}
    for name in sorted(tensors):
        values = _float32(name, tensors[name])
        if info.dtype != "int8":
            stored[name] = values.astype(_NUMPY[info.dtype])
            continue
        stored[name], scale = _quantize(values)
        if name in kept and np.array_equal(_value(name, *kept[name]), values):
            stored[name], scale = kept[name]
        scales.append(scale)
    if scales:  # two bytes an entry before one byte an entry: every tensor is aligned
        stored = {SCALES: np.concatenate(scales).astype(_NUMPY["float16"]), **stored}
    data = write_header(stored, info) + b"".join(values.tobytes() for values in stored.values())
    parse(data)  # nothing is packed that could not be unpacked
    return data


def _float32(name: str, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if not np.issubdtype(values.dtype, np.floating):
        raise AdapterError(f"adapter tensor {name!r} has dtype {values.dtype}: adapters are floating point")
    if values.ndim not in (1, 2) or values.size == 0:
        raise AdapterError(f"adapter tensor {name!r} is {values.shape}: adapters are vectors and matrices")
    if not bool(np.all(np.abs(values) <= MAX_VALUE)):  # NaN compares false
        raise AdapterError(
            f"adapter tensor {name!r} holds NaN, infinity or a value beyond {MAX_VALUE:.0f}: "
            "it was damaged or its training diverged; use an earlier one"
        )
    return np.ascontiguousarray(values, dtype=np.float32)


def _quantize(values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Entries of int8 in the shape of ``values``, and the scale of each row ``(rows,)``."""
    rows = np.atleast_2d(values).astype(np.float64)  # exact enough that an entry never rounds away from its nearest
    exact = np.abs(rows).max(axis=1) / 127
    scales = exact.astype(np.float16)
    scales = np.where(scales < exact, np.nextafter(scales, np.float16(np.inf)), scales)
    divisor = np.where(scales > 0, scales, 1).astype(np.float64)[:, None]
    return np.rint(rows / divisor).astype(np.int8).reshape(values.shape), scales


def quantized(tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Tensors as an int8 blob has them: int8 by name, and ``scales`` of all rows in the order of the names."""
    found = {name: _quantize(_float32(name, tensors[name])) for name in sorted(tensors)}
    scales = np.concatenate([scale for _, scale in found.values()]).astype(_NUMPY["float16"])
    return {SCALES: scales, **{name: entries for name, (entries, _) in found.items()}}


def restored(stored: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """The values of what :func:`quantized` gave. Raises :class:`AdapterError` where it cannot have given it."""
    entries = {name: stored[name] for name in sorted(stored) if name != SCALES}
    rows = {name: values.shape[0] if values.ndim == 2 else 1 for name, values in entries.items()}
    scales = stored.get(SCALES, np.empty(0)).astype(np.float32)
    if scales.shape != (sum(rows.values()),) or any(values.dtype != np.int8 for values in entries.values()):
        refuse("its entries are not int8 with a scale for each row", "remove it, and enrol again")
    parts = np.split(scales, np.cumsum([*rows.values()])[:-1])
    return {name: _value(name, values, scale) for (name, values), scale in zip(entries.items(), parts, strict=True)}


def read_info(data: bytes) -> PackedInfo:
    """What the header of a blob says, after all checks of the header; values are not looked at. Raises :class:`AdapterError`."""
    return parse(data)[0]


def unpack(data: bytes) -> tuple[Arrays, PackedInfo]:
    """The tensors of a blob as float32 that own their memory, by name, and what it says of itself.

    Raises :class:`AdapterError`, and nothing else, for anything that :func:`pack` would not have written.
    """
    info, found = _stored(data)
    return {name: _value(name, stored, scale) for name, (stored, scale) in found.items()}, info


def _stored(data: bytes) -> tuple[PackedInfo, dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]]:
    """What a blob says of itself; of each tensor the entries as they are stored, and the scale of each row, none but in int8."""
    info, entries, start = parse(data)
    scales = _scales(data, entries.pop(SCALES), start) if info.dtype == "int8" else np.empty(0, np.float32)
    found = {}
    row = 0
    for name in sorted(entries):
        entry = entries[name]
        found[name] = _read(data, entry, start, _NUMPY[info.dtype]), scales[row : row + entry.rows]
        row += entry.rows
    return info, found


def _value(name: str, stored: npt.NDArray[Any], scale: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The values of a tensor from what is stored of it."""
    values = stored
    if scale.size:
        if bool(np.any(stored == -128)):
            refuse(f"tensor {name!r} holds -128, which symmetric int8 has not")
        values = (np.atleast_2d(stored) * scale[:, None]).reshape(stored.shape)
        values = np.clip(values, -MAX_VALUE, MAX_VALUE)  # a scale is rounded up, and 127 times it may be beyond
    if not bool(np.all(np.abs(values) <= MAX_VALUE)):
        refuse(f"tensor {name!r} holds NaN, infinity or a value beyond float16", "use an earlier one")
    return values.astype(np.float32)


def _scales(data: bytes, entry: TensorEntry, start: int) -> npt.NDArray[np.float32]:
    scales = _read(data, entry, start, _NUMPY["float16"]).astype(np.float32)
    if not bool(np.all((scales >= 0) & (scales <= MAX_SCALE))):
        refuse(f"a scale is negative, NaN or above {MAX_SCALE:.0f}")
    return scales


def _read(data: bytes, entry: TensorEntry, start: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A view of the blob."""
    return np.frombuffer(data, dtype, math.prod(entry.shape), start + entry.start).reshape(entry.shape)
