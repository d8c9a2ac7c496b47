"""The header of a packed adapter: written in one way, read with suspicion.

Loads without torch, and without safetensors, which a device that only asks does not have either.
"""

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, cast

from numpy.typing import NDArray

from fl.core.errors import AdapterError

Dtype = Literal["float32", "float16", "int8"]

SCHEMA = 1
FORMAT = "idiolect-adapter"
SCALES = "scales"  # no adapter tensor has a name without a dot
CODES: dict[str, tuple[str, int]] = {
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "int8": ("I8", 1),
}  # and bytes of an entry
MAX_TENSORS = 4096
MAX_PARAMETERS = 32 * 2**20  # 128 MiB as float32: rank 16 on all attention of the largest Whisper is 24 million
MAX_HEADER_BYTES = 2**20
MAX_PACKED_BYTES = 4 * MAX_PARAMETERS + MAX_HEADER_BYTES
MAX_TEXT = 4096  # characters of a name, a base, a setting
MAX_DEPTH = 3  # of lists and tables in the configuration

_SIZE = struct.Struct("<Q")  # the format begins with the header's size in bytes
_NAME = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)+", re.ASCII)
_TEXTS = ("base_name", "base_fingerprint", "tokenizer", "split", "window", "language")
_KEYS = {*_TEXTS, "format", "schema", "config", "dtype", "tensors"}
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
_REMEDY = (
    "give the whole folder of an adapter, not a file in it; or pack it again with 'idiolect device adapter export'"
)


@dataclass(frozen=True)
class PackedInfo:
    """What a blob says of itself. ``tokenizer`` is the hexadecimal SHA-256 of the tokenizer that it was trained with, or
    empty where that is not known; ``config`` is what ``adapter_config.json`` has (``r``, ``lora_alpha``, ``gate``, ...);
    ``tensors`` is their number, which :func:`fl.packed.blob.pack` counts itself."""

    base_name: str
    base_fingerprint: str
    tokenizer: str
    split: str
    window: str
    language: str
    config: dict[str, Any]
    dtype: Dtype = "float16"
    tensors: int = 0


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies in the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def rows(self) -> int:
        """How many scales it has as int8."""
        return self.shape[0] if len(self.shape) == 2 else 1


def refuse(reason: str, remedy: str = _REMEDY) -> NoReturn:
    """Raise the :class:`AdapterError` of a blob that is not sound."""
    raise AdapterError(f"not a sound packed adapter: {reason}; {remedy}")


def write_header(stored: Mapping[str, NDArray[Any]], info: PackedInfo) -> bytes:
    """Everything before the data of the tensors, which lie one behind the other. The same bytes for the same content."""
    header: dict[str, object] = {"__metadata__": _metadata(info, len(stored.keys() - {SCALES}))}
    offset = 0
    for name, values in stored.items():
        end = offset + values.nbytes
        header[name] = {"dtype": _code(name, info)[0], "shape": values.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _SIZE.size)
    return _SIZE.pack(len(text)) + text


def _code(name: str, info: PackedInfo) -> tuple[str, int]:
    """The dtype of a tensor as safetensors names it, and bytes of an entry."""
    return CODES["float16" if name == SCALES else info.dtype]


def _metadata(info: PackedInfo, tensors: int) -> dict[str, str]:
    try:
        config = json.dumps(info.config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise AdapterError(f"the adapter's configuration cannot be written as JSON: {error}") from error
    texts = {key: getattr(info, key) for key in _TEXTS}
    fixed = {"format": FORMAT, "schema": str(SCHEMA), "dtype": info.dtype, "tensors": str(tensors)}
    return {**texts, **fixed, "config": config}


def parse(data: bytes) -> tuple[PackedInfo, dict[str, TensorEntry], int]:
    """The header of a blob, checked: what it says, where its tensors are (``scales`` too), and where the data begins."""
    if len(data) > MAX_PACKED_BYTES:
        refuse(f"it has {len(data):,} bytes, more than the {MAX_PACKED_BYTES:,} that an adapter may have")
    if len(data) < _SIZE.size:
        refuse(f"it has {len(data)} bytes")
    (size,) = _SIZE.unpack_from(data)
    start = _SIZE.size + size
    if size > MAX_HEADER_BYTES or start > len(data):
        if data[:1] == b"\x80" or data[:2] == b"PK":
            refuse("it looks like a pickle, which is never opened", "convert it to safetensors where it was made")
        refuse(f"its header would have {size:,} bytes: it was cut off, or is no safetensors file")
    header = _table(_json(data[_SIZE.size : start], "its header"), "its header")
    info = _info(_table(header.pop("__metadata__", None), "its metadata"))
    entries = {name: _entry(name, _table(value, f"entry {name[:99]!r}")) for name, value in header.items()}
    _check_entries(info, entries, len(data) - start)
    return info, entries, start


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _json(text: bytes, what: str) -> object:
    try:
        found: object = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
        return found
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, thousands of digits, nested too deeply
        refuse(f"{what} is not JSON ({type(error).__name__}: {str(error)[:120]})")


def _table(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        refuse(f"{what} is missing or no JSON object")
    return value


def _info(metadata: dict[str, Any]) -> PackedInfo:
    for key, value in metadata.items():
        limit = MAX_HEADER_BYTES if key == "config" else MAX_TEXT
        if not isinstance(value, str) or len(value) > limit or not value.isprintable():
            refuse(f"metadata {key[:99]!r} is no printable text of at most {limit} characters")
    if metadata.get("format") != FORMAT:
        refuse(f"it does not say that it is {FORMAT!r}")
    if metadata.get("schema") != str(SCHEMA):
        refuse(f"schema {metadata.get('schema')!r} is not {SCHEMA}, which this version reads")
    if metadata.keys() != _KEYS:
        refuse(f"metadata differs by {sorted(metadata.keys() ^ _KEYS)[:5]}")
    if metadata["dtype"] not in CODES:
        refuse(f"precision {metadata['dtype']!r} is none of {', '.join(CODES)}")
    tensors = metadata["tensors"]
    if not (tensors.isascii() and tensors.isdecimal() and len(tensors) < 10):
        refuse(f"number of tensors {tensors[:20]!r} is no number")
    if not re.fullmatch(r"(?:[0-9a-f]{64})?", metadata["tokenizer"]):
        refuse("its tokenizer is no hexadecimal SHA-256")
    config = _table(_json(metadata["config"].encode(), "its configuration"), "its configuration")
    _check_setting(config, 0)
    texts = {key: metadata[key] for key in _TEXTS}
    return PackedInfo(**texts, config=config, dtype=cast(Dtype, metadata["dtype"]), tensors=int(tensors))


def _check_setting(value: object, depth: int) -> None:
    if isinstance(value, dict | list) and depth < MAX_DEPTH:
        for child in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_setting(child, depth + 1)
    elif isinstance(value, str):
        if len(value) > MAX_TEXT or not value.isprintable():
            refuse(f"its configuration has a text that is not printable or longer than {MAX_TEXT} characters")
    elif isinstance(value, int | float):
        if not -(2**63) <= value < 2**63:  # NaN and infinity too
            refuse("its configuration has a number out of range")
    elif value is not None:
        refuse(f"its configuration is nested more than {MAX_DEPTH} deep")


def _entry(name: str, value: dict[str, Any]) -> TensorEntry:
    if value.keys() != _ENTRY_KEYS or not isinstance(value["dtype"], str):
        refuse(f"entry {name[:99]!r} is not of the form dtype, shape, data_offsets")
    if name != SCALES and (len(name) > MAX_TEXT or not _NAME.fullmatch(name)):
        refuse(f"{name[:99]!r} is no name of a tensor")
    shape = _numbers(name, value["shape"], (1, 2))
    start, end = _numbers(name, value["data_offsets"], (2,))
    if 0 in shape:
        refuse(f"tensor {name!r} is empty")
    return TensorEntry(value["dtype"], shape, start, end)


def _numbers(name: str, value: object, lengths: tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) not in lengths:
        refuse(f"shape or offsets of {name!r} are no list of {lengths[-1]} numbers")
    if not all(type(number) is int and 0 <= number <= MAX_PACKED_BYTES for number in value):
        refuse(f"shape or offsets of {name!r} are out of range")
    return tuple(value)


def _check_entries(info: PackedInfo, entries: Mapping[str, TensorEntry], data_bytes: int) -> None:
    """Dtypes, counts and scales, and that the tensors tile the data: no gap, no overlap, nothing behind."""
    tensors = {name: entry for name, entry in entries.items() if name != SCALES}
    if not 1 <= len(tensors) <= MAX_TENSORS:
        refuse(f"it holds {len(tensors):,} tensors; 1 to {MAX_TENSORS:,} are allowed")
    if len(tensors) != info.tensors:
        refuse(f"it holds {len(tensors)} tensors but says {info.tensors}")
    parameters = sum(math.prod(entry.shape) for entry in tensors.values())
    if parameters > MAX_PARAMETERS:
        refuse(f"it would have {parameters:,} parameters, more than the {MAX_PARAMETERS:,} allowed")
    scales = entries.get(SCALES)
    if (scales is not None) != (info.dtype == "int8"):
        refuse("scales are there without int8, or int8 without scales")
    rows = (sum(entry.rows for entry in tensors.values()),)
    if scales is not None and (scales.dtype, scales.shape) != ("F16", rows):
        refuse(f"scales are {scales.dtype} {scales.shape}, not F16 {rows}: one for each row")
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        expected, size = _code(name, info)
        if entry.dtype != expected:
            refuse(f"tensor {name!r} is {entry.dtype[:20]}, not {expected}")
        if (entry.start, entry.end) != (end, end + size * math.prod(entry.shape)):
            refuse(f"tensor {name!r} lies at {entry.start} to {entry.end}: overlapping, apart, or not of its size")
        end = entry.end
    if end != data_bytes:
        refuse(f"its tensors have {end:,} bytes and the file has {data_bytes:,} for them: cut off, or something behind")
