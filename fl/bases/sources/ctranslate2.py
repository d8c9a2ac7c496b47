"""Read a Whisper in CTranslate2's ``model.bin`` (version 6) and name its tensors as transformers does.

The file is: u32 version; string spec; u32 revision; u32 count; then for each variable a string name, u8 rank, u32
dimensions, u8 type, u32 byte count and the data; then u32 count of aliases, each two strings. Integers are little
endian; a string is a u16 length, which includes a final NUL, and its bytes. Nothing is allocated before its size was
compared with what the file still holds.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fl.core.errors import BaseModelError

FloatArray = npt.NDArray[np.float32]
Variables = dict[str, npt.NDArray[np.generic]]

DTYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype("<f4"),
    1: np.dtype("i1"),
    2: np.dtype("<i2"),
    3: np.dtype("<i4"),
    4: np.dtype("<f2"),
}
MAX_RANK = 4
MAX_VARIABLES = 100_000


class _BinaryCursor:
    """A cursor over bytes that refuses to read beyond their end."""

    def __init__(self, data: memoryview, source: str) -> None:
        self.data, self.source, self.at = data, source, 0

    def fail(self, why: str) -> BaseModelError:
        return BaseModelError(
            f"{self.source} is not a readable CTranslate2 model: {why} (at byte {self.at} of {len(self.data)}). "
            "The file may be truncated: download it again."
        )

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise self.fail(f"it ends where {count} more bytes should be")
        self.at += count
        return self.data[self.at - count : self.at]

    def integer(self, code: str) -> int:
        return int(struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0])

    def string(self) -> str:
        raw = bytes(self.take(self.integer("H")))
        try:
            return raw.rstrip(b"\0").decode()
        except UnicodeDecodeError as error:
            raise self.fail("a name is not text") from error


def parse(path: Path) -> Variables:
    """All variables of ``model.bin`` by name, as arrays that view the memory-mapped file (aliases resolved).

    Raises :class:`BaseModelError` for another format, version or spec, and for any size that does not add up.
    """
    try:
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{path} cannot be read: {error}.") from error
    reader = _BinaryCursor(memoryview(mapped.data), str(path))
    version = reader.integer("I")
    if version != 6:
        raise reader.fail(f"version {version} where 6 is supported")
    spec = reader.string()
    if spec != "WhisperSpec":
        raise reader.fail(f"it holds a {spec!r}, not a WhisperSpec")
    reader.integer("I")  # revision of the spec
    variables = dict(_variables(reader))
    for _ in range(reader.integer("I")):
        alias, name = reader.string(), reader.string()
        if name not in variables:
            raise reader.fail(f"alias {alias!r} of the unknown {name!r}")
        variables[alias] = variables[name]
    return variables


def _variables(reader: _BinaryCursor) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    count = reader.integer("I")
    if count > MAX_VARIABLES:
        raise reader.fail(f"{count} variables")
    for _ in range(count):
        name, rank = reader.string(), reader.integer("B")
        if rank > MAX_RANK:
            raise reader.fail(f"{name!r} has {rank} dimensions")
        shape = tuple(reader.integer("I") for _ in range(rank))
        code, size = reader.integer("B"), reader.integer("I")
        if code not in DTYPES:
            raise reader.fail(f"{name!r} has the unknown type {code}")
        if size != math.prod(shape) * DTYPES[code].itemsize:
            raise reader.fail(f"{name!r} has {size} bytes, which is not {shape} of {DTYPES[code]}")
        yield name, np.frombuffer(reader.take(size), dtype=DTYPES[code]).reshape(shape)


class _Tensors:
    """Variables as float32, dequantized, each of which must be asked for by name and shape."""

    def __init__(self, variables: Variables, source: str) -> None:
        self.variables, self.source = variables, source

    def raw(self, name: str) -> npt.NDArray[np.generic]:
        if name not in self.variables:
            raise BaseModelError(f"{self.source} lacks {name!r}: not a Whisper that Idiolect can convert.")
        return self.variables[name]

    def __call__(self, name: str) -> FloatArray:
        """Integer weights come with ``<name>_scale`` (one for all, or one for each row): ``w = q / scale``."""
        value = self.raw(name)
        if value.dtype.kind != "i":
            return value.astype(np.float32)
        scale = self.raw(f"{name}_scale").astype(np.float32)
        if scale.size not in (1, value.shape[0]) or not np.all(scale > 0):
            raise BaseModelError(f"{self.source}: the scales of {name!r} do not fit its shape {value.shape}.")
        return value.astype(np.float32) / scale.reshape(-1, *[1] * (value.ndim - 1))


def whisper_tensors(variables: Variables, source: str) -> dict[str, FloatArray]:
    """The variables under the names of transformers' ``WhisperForConditionalGeneration``, as float32.

    CTranslate2 fuses attention by rows: self-attention ``linear_0`` is q, k, v; cross-attention ``linear_0`` is q and
    ``linear_1`` is k, v; the last one is the output projection. Whisper's key projection has no bias, so the k part
    of a fused bias is zero, and a file where it is not is refused. The output head is tied to the embedding.
    """
    get = _Tensors(variables, source)
    out: dict[str, FloatArray] = {"model.decoder.embed_tokens.weight": get("decoder/embeddings/weight")}
    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            out[f"model.encoder.{conv}.{part}"] = get(f"encoder/{conv}/{part}")
    for side in ("encoder", "decoder"):
        out[f"model.{side}.embed_positions.weight"] = get(f"{side}/position_encodings/encodings")
        _norm(get, out, f"{side}/layer_norm", f"model.{side}.layer_norm")
        for index in range(count_layers(variables, side)):
            _layer(get, out, f"{side}/layer_{index}", f"model.{side}.layers.{index}", cross=side == "decoder")
    return out


def _layer(get: _Tensors, out: dict[str, FloatArray], old: str, new: str, *, cross: bool) -> None:
    _norm(get, out, f"{old}/self_attention/layer_norm", f"{new}.self_attn_layer_norm")
    _fused(get, out, f"{old}/self_attention/linear_0", f"{new}.self_attn", ("q_proj", "k_proj", "v_proj"))
    _fused(get, out, f"{old}/self_attention/linear_1", f"{new}.self_attn", ("out_proj",))
    if cross:
        _norm(get, out, f"{old}/attention/layer_norm", f"{new}.encoder_attn_layer_norm")
        _fused(get, out, f"{old}/attention/linear_0", f"{new}.encoder_attn", ("q_proj",))
        _fused(get, out, f"{old}/attention/linear_1", f"{new}.encoder_attn", ("k_proj", "v_proj"))
        _fused(get, out, f"{old}/attention/linear_2", f"{new}.encoder_attn", ("out_proj",))
    _norm(get, out, f"{old}/ffn/layer_norm", f"{new}.final_layer_norm")
    _fused(get, out, f"{old}/ffn/linear_0", new, ("fc1",))
    _fused(get, out, f"{old}/ffn/linear_1", new, ("fc2",))


def _norm(get: _Tensors, out: dict[str, FloatArray], old: str, new: str) -> None:
    out[f"{new}.weight"], out[f"{new}.bias"] = get(f"{old}/gamma"), get(f"{old}/beta")


def _fused(get: _Tensors, out: dict[str, FloatArray], old: str, new: str, names: tuple[str, ...]) -> None:
    weight, bias = get(f"{old}/weight"), get(f"{old}/bias")
    if weight.ndim != 2 or weight.shape[0] % len(names) or bias.shape != weight.shape[:1]:
        raise BaseModelError(f"{get.source}: {old} of shape {weight.shape} cannot be split into {', '.join(names)}.")
    for name, rows, offsets in zip(names, np.split(weight, len(names)), np.split(bias, len(names)), strict=True):
        out[f"{new}.{name}.weight"] = rows
        if name != "k_proj":
            out[f"{new}.{name}.bias"] = offsets
        elif np.any(offsets):
            raise BaseModelError(f"{get.source}: {old} has a bias on its keys, which Whisper has not.")


def count_layers(variables: Variables, side: str) -> int:
    """How many layers ``side`` ("encoder" or "decoder") has."""
    prefix = f"{side}/layer_"
    indices = {name.removeprefix(prefix).split("/")[0] for name in variables if name.startswith(prefix)}
    return sum(index.isdigit() for index in indices)


def count_heads(variables: Variables, source: str) -> int:
    """How many attention heads each layer has; :class:`BaseModelError` if encoder and decoder differ in it."""
    get = _Tensors(variables, source)
    found = {int(get.raw(f"{side}/num_heads").reshape(-1)[0]) for side in ("encoder", "decoder")}
    if len(found) > 1:
        raise BaseModelError(f"{source}: encoder and decoder differ in their number of heads, which Whisper's do not.")
    return found.pop()
