"""A transformers folder (config.json, safetensors, tokenizer.json) as a frozen Whisper, memory-mapped."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from fl.bases.sources.catalog import Architecture
from fl.bases.sources.mapped import read_mapped
from fl.bases.whisper.decoding import Rules
from fl.bases.whisper.tokenizer import FileTokenizer, SpecialTokens, read_json
from fl.core.errors import BaseModelError

HEAD = "proj_out.weight"  # tied to the decoder's embedding


def whisper_config(shape: Architecture, end: int = 0, start: int = 0) -> WhisperConfig:
    """transformers' configuration of ``shape``; ``end`` and ``start`` are ids of special tokens."""
    return WhisperConfig(
        vocab_size=shape.vocabulary,
        d_model=shape.d_model,
        num_mel_bins=shape.mels,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=4 * shape.d_model,
        decoder_ffn_dim=4 * shape.d_model,
        init_std=0.1 if shape.d_model < 128 else 0.02,  # small models are nearly constant at 0.02
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=start,
    )


def assemble(config: WhisperConfig, weights: Mapping[str, Tensor], source: str) -> WhisperForConditionalGeneration:
    """A frozen model in eval mode that uses ``weights`` themselves, without a copy.

    Raises :class:`BaseModelError` when names or shapes are not those of ``config``.
    """
    with torch.device("meta"):
        model = WhisperForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    own = {name: tensor for name, tensor in weights.items() if name != HEAD}
    expected = {name: tensor.shape for name, tensor in model.state_dict().items() if name != HEAD}
    missing, unknown = expected.keys() - own.keys(), own.keys() - expected.keys()
    if missing or unknown:
        named = ", ".join(sorted(missing | unknown)[:3])
        raise BaseModelError(
            f"{source}: {len(missing)} tensors are missing and {len(unknown)} are unknown to its config.json "
            f"(first: {named}). The folder is incomplete or not a Whisper."
        )
    for name, tensor in own.items():
        if tensor.shape != expected[name]:
            raise BaseModelError(
                f"{source}: {name} has the shape {tuple(tensor.shape)}, its config.json says {tuple(expected[name])}."
            )
    model.load_state_dict(own, strict=False, assign=True)
    model.proj_out.weight = model.model.decoder.embed_tokens.weight
    model.requires_grad_(False)
    frozen: WhisperForConditionalGeneration = model.eval()
    return frozen


@dataclass(frozen=True)
class Loaded:
    """What a folder holds. ``model`` uses the mapped ``weights`` in the type that the files have."""

    model: WhisperForConditionalGeneration
    weights: dict[str, Tensor]
    tokenizer: FileTokenizer
    rules: Rules
    weight_files: list[Path]


def load_folder(folder: Path) -> Loaded:
    """Map a Whisper in transformers' layout; raises :class:`BaseModelError` that names the file at fault.

    Nothing is copied: pages of the files are read when they are first used. Only safetensors are read: pickled weights
    could run code.
    """
    config = read_config(folder)
    files = weight_files(folder)
    weights: dict[str, Tensor] = {}
    for file in files:
        weights.update(read_mapped(file))
    generation = read_json(folder / "generation_config.json") if (folder / "generation_config.json").exists() else {}
    multilingual = generation.get("is_multilingual", config.vocab_size >= 51_865)
    tokenizer = FileTokenizer(folder / "tokenizer.json", multilingual=bool(multilingual))
    facts = read_json(folder / "config.json") | generation
    rules = make_rules(
        tokenizer.special, config.vocab_size, facts.get("suppress_tokens"), facts.get("begin_suppress_tokens")
    )
    return Loaded(assemble(config, weights, str(folder)), weights, tokenizer, rules, files)


def read_config(folder: Path) -> WhisperConfig:
    """The ``config.json`` of a folder, which must be of a Whisper."""
    path = folder / "config.json"
    if not path.is_file():
        raise BaseModelError(
            f"{folder} has no config.json: not a model in transformers' layout. "
            "Save one there with `model.save_pretrained(folder)`, or check the path."
        )
    facts = read_json(path)
    if facts.get("model_type") != "whisper":
        raise BaseModelError(f"{path} is of model type {facts.get('model_type')!r}; this command needs 'whisper'.")
    try:
        return WhisperConfig.from_dict(facts)
    except Exception as error:  # transformers validates with several unrelated exception types
        raise BaseModelError(f"{path} is not a valid Whisper configuration: {error}") from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a folder: one file, or the shards that its index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise BaseModelError(
            f"{folder} has no model.safetensors. Pickled weights (pytorch_model.bin) are not read, because they can "
            "run code: convert them with `model.save_pretrained(folder, safe_serialization=True)`."
        )
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise BaseModelError(f"{index} has no weight_map.")
    files = sorted({folder / Path(str(name)).name for name in shards.values()})
    for file in files:
        if not file.is_file():
            raise BaseModelError(f"{file} is named by {index.name} and is not there: get it again.")
    return files


def make_rules(special: SpecialTokens, vocabulary: int, suppress: object, begin: object) -> Rules:
    """Decoding rules from a model's own lists; every special token except the end is forbidden in any case."""
    own = {int(token) for token in suppress} if isinstance(suppress, list) else set()
    first = {int(token) for token in begin} if isinstance(begin, list) else set()
    never = (own | set(range(special.end + 1, vocabulary))) - {special.end}
    return Rules(
        end=special.end,
        suppress=tuple(sorted(token for token in never if 0 <= token < vocabulary)),
        begin_suppress=tuple(sorted(token for token in first if 0 <= token < vocabulary)),
    )
