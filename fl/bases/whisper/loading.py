"""The parts of a frozen Whisper: its configuration, modules on given weights, tokenizer and decoding rules; or random ones."""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from fl.bases.files import frozen_model, random_weights, read_json
from fl.bases.whisper.decoder import DecodingRules
from fl.bases.whisper.tokenizer import ByteTokenizer, FileTokenizer, SpecialTokens
from fl.core.errors import BaseModelError

EMBEDDING = "model.decoder.embed_tokens.weight"
HEAD = "proj_out.weight"  # tied to the embedding


@dataclass(frozen=True)
class Architecture:
    """The shape of a published Whisper (Radford et al. 2022, table 1, and the model cards of large-v3 and turbo)."""

    d_model: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    vocabulary: int = 51_865  # 51,864 in English-only models; large-v3 and turbo have one language more
    mels: int = 80


ARCHITECTURES: dict[str, Architecture] = {
    "whisper-nano": Architecture(64, 2, 2, 2, vocabulary=300),  # ours: for unit tests
    "whisper-tiny": Architecture(384, 4, 4, 6),
    "whisper-tiny.en": Architecture(384, 4, 4, 6, vocabulary=51_864),
    "whisper-base": Architecture(512, 6, 6, 8),
    "whisper-base.en": Architecture(512, 6, 6, 8, vocabulary=51_864),
    "whisper-small": Architecture(768, 12, 12, 12),
    "whisper-small.en": Architecture(768, 12, 12, 12, vocabulary=51_864),
    "whisper-medium": Architecture(1024, 24, 24, 16),
    "whisper-large-v2": Architecture(1280, 32, 32, 20),
    "whisper-large-v3": Architecture(1280, 32, 32, 20, vocabulary=51_866, mels=128),
    "whisper-large-v3-turbo": Architecture(1280, 32, 4, 20, vocabulary=51_866, mels=128),
}


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
    """See :func:`fl.bases.files.frozen_model`; the output head is the decoder's embedding."""
    return frozen_model(WhisperForConditionalGeneration, config, weights, source, head=HEAD, tied=EMBEDDING)


def read_generation(folder: Path) -> dict[str, Any]:
    """The ``generation_config.json`` of a folder, empty where there is none."""
    path = folder / "generation_config.json"
    return read_json(path) if path.exists() else {}


def read_text_side(folder: Path, config: WhisperConfig) -> tuple[FileTokenizer, DecodingRules]:
    """The tokenizer and the decoding rules of a folder; raises :class:`fl.core.errors.BaseModelError` that names the file at fault."""
    generation = read_generation(folder)
    multilingual = generation.get("is_multilingual", config.vocab_size >= 51_865)
    tokenizer = FileTokenizer(folder / "tokenizer.json", multilingual=bool(multilingual))
    facts = read_json(folder / "config.json") | generation
    if facts.get("decoder_start_token_id", tokenizer.special.start) != tokenizer.special.start:
        raise BaseModelError(
            f"{folder}: config.json begins with token {facts['decoder_start_token_id']}, its tokenizer with {tokenizer.special.start}: "
            "the tokenizer is of another model. Get both from the same place."
        )
    if beyond := [index for index in tokenizer.words if index >= config.vocab_size]:
        raise BaseModelError(
            f"{folder}: its tokenizer has {tokenizer.plain([min(beyond)])!r} and {len(beyond) - 1} more added tokens, the model only "
            f"{config.vocab_size:,} rows: call `model.resize_token_embeddings(len(tokenizer))`, train the new rows, and save again."
        )
    suppressed = (facts.get(key) for key in ("suppress_tokens", "begin_suppress_tokens"))
    return tokenizer, make_rules(tokenizer.special, config.vocab_size, *suppressed, words=tokenizer.words)


def make_rules(
    special: SpecialTokens,
    vocabulary: int,
    suppress: object = None,
    begin: object = None,
    *,
    words: Set[int] = frozenset(),
) -> DecodingRules:
    """Decoding rules from a model's own lists; in any case all tokens behind the end are forbidden, except added ``words``."""
    own = {int(token) for token in suppress} if isinstance(suppress, list) else set()
    first = {int(token) for token in begin} if isinstance(begin, list) else set()
    never = (own | set(range(special.end + 1, vocabulary)) - words) - {special.end}
    return DecodingRules(
        end=special.end,
        suppress=tuple(sorted(token for token in never if 0 <= token < vocabulary)),
        begin_suppress=tuple(sorted(token for token in first if 0 <= token < vocabulary)),
    )


def random_whisper(key: str) -> tuple[WhisperForConditionalGeneration, ByteTokenizer, DecodingRules]:
    """The architecture ``key`` with weights from a seed that depends on its name alone, and a byte tokenizer."""
    shape = ARCHITECTURES[key]
    tokenizer = ByteTokenizer(shape.vocabulary)
    config = whisper_config(shape, tokenizer.special.end, tokenizer.special.start)
    weights = random_weights(WhisperForConditionalGeneration, config, key)
    return assemble(config, weights, key), tokenizer, make_rules(tokenizer.special, shape.vocabulary)
