"""The parts of a frozen Whisper: its configuration, modules on given weights, tokenizer and decoding rules."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from fl.bases.files import frozen_model, read_json
from fl.bases.sources.catalog import Architecture
from fl.bases.whisper.decoder import DecodingRules
from fl.bases.whisper.tokenizer import FileTokenizer, SpecialTokens

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
    """See :func:`fl.bases.files.frozen_model`; the output head is the decoder's embedding."""
    return frozen_model(
        WhisperForConditionalGeneration,
        config,
        weights,
        source,
        head=HEAD,
        tied="model.decoder.embed_tokens.weight",
    )


def read_text_side(folder: Path, config: WhisperConfig) -> tuple[FileTokenizer, DecodingRules]:
    """The tokenizer and the decoding rules of a folder; raises :class:`fl.core.errors.BaseModelError` that names the file at fault."""
    generation = read_json(folder / "generation_config.json") if (folder / "generation_config.json").exists() else {}
    multilingual = generation.get("is_multilingual", config.vocab_size >= 51_865)
    tokenizer = FileTokenizer(folder / "tokenizer.json", multilingual=bool(multilingual))
    facts = read_json(folder / "config.json") | generation
    suppressed = (facts.get(key) for key in ("suppress_tokens", "begin_suppress_tokens"))
    return tokenizer, make_rules(tokenizer.special, config.vocab_size, *suppressed)


def make_rules(special: SpecialTokens, vocabulary: int, suppress: object = None, begin: object = None) -> DecodingRules:
    """Decoding rules from a model's own lists; every special token except the end is forbidden in any case."""
    own = {int(token) for token in suppress} if isinstance(suppress, list) else set()
    first = {int(token) for token in begin} if isinstance(begin, list) else set()
    never = (own | set(range(special.end + 1, vocabulary))) - {special.end}
    return DecodingRules(
        end=special.end,
        suppress=tuple(sorted(token for token in never if 0 <= token < vocabulary)),
        begin_suppress=tuple(sorted(token for token in first if 0 <= token < vocabulary)),
    )
