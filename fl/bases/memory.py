"""How much memory a training step needs, estimated before the step: what autograd keeps of one utterance."""

from __future__ import annotations

from transformers import Wav2Vec2Config, WhisperConfig

FLOAT = 4  # bytes; autocast to 16 bits needs less, and the estimate stays on the safe side


def training_bytes(config: WhisperConfig, frames: int, tokens: int) -> int:
    """Bytes of activations of one utterance of ``frames`` mel frames and ``tokens`` target tokens in a training step.

    Counted in units of d_model for each position and layer. Encoder: about 16 (inputs of both layer norms, normed states, q, k,
    v, attention output, their low-rank updates) and the feed-forward width twice, with the attention weights. Decoder: about 28,
    with keys and values of the encoder's states, and three copies of the logits. A test compares it with what autograd saves.
    """
    d, positions = config.d_model, (frames + 1) // 2
    heads = config.encoder_attention_heads
    encoder_layer = positions * (16 * d + 2 * config.encoder_ffn_dim) + heads * positions**2
    self_attention = config.decoder_attention_heads * tokens**2
    cross_attention = config.decoder_attention_heads * tokens * positions + 4 * d * positions
    decoder_layer = tokens * (28 * d + 2 * config.decoder_ffn_dim) + self_attention + cross_attention
    stem = 2 * frames * d + 4 * positions * d
    floats = (
        stem
        + config.encoder_layers * encoder_layer
        + config.decoder_layers * decoder_layer
        + 3 * tokens * config.vocab_size
    )
    return int(FLOAT * floats)


def ctc_training_bytes(config: Wav2Vec2Config, states: int) -> int:
    """Bytes of activations of one utterance of ``states`` (20 ms) behind the frozen convolutions of a Wav2Vec2, counted alike.

    For the head: logits, log-probabilities and their gradient.
    """
    d = config.hidden_size
    layer = states * (16 * d + 2 * config.intermediate_size) + config.num_attention_heads * states**2
    return int(FLOAT * (4 * states * d + config.num_hidden_layers * layer + 3 * states * config.vocab_size))
