"""The parts of a frozen Wav2Vec2-CTC: its configuration, modules on given weights; or random ones, also for pretraining."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from fl.bases.ctc.vocabulary import CtcVocabulary, make_vocabulary
from fl.bases.files import frozen_model, random_weights, read_config
from fl.core.errors import BaseModelError
from fl.settings.names import OWN

RANDOM_TOKENS = "syllables"  # of a random base whose tokens are its own
_NORM = "wav2vec2.encoder.pos_conv_embed.conv."
_OLD_NAMES = {  # of torch's weight normalization before 2.0
    f"{_NORM}weight_g": f"{_NORM}parametrizations.weight.original0",
    f"{_NORM}weight_v": f"{_NORM}parametrizations.weight.original1",
}
_UNUSED = "wav2vec2.masked_spec_embed"  # stands for masked speech in self-supervised training only


@dataclass(frozen=True)
class CtcArchitecture:
    """The shape of a Wav2Vec2 (Baevski et al. 2020, arXiv 2006.11477, section 4.2; XLS-R, arXiv 2111.09296).

    ``channels`` are those of the seven convolutions, which see 400 samples (25 ms) every 320 (20 ms). ``group_norm`` is the
    published base model's: one norm over time in the first convolution, and layer norms behind the transformer's blocks;
    otherwise a norm in every convolution and before every block, as in the large ones.
    """

    d_model: int
    layers: int
    heads: int
    ffn: int
    channels: int = 512
    group_norm: bool = False
    positions: int = 128  # width of the convolution that stands for positions
    position_groups: int = 16


CTC_ARCHITECTURES: dict[str, CtcArchitecture] = {
    # Three of our own: two for unit tests, and one for pretraining on two cores.
    "wav2vec2-nano": CtcArchitecture(32, 2, 2, 64, channels=16, positions=16, position_groups=4),
    "wav2vec2-nano-group": CtcArchitecture(32, 2, 2, 64, channels=16, group_norm=True, positions=16, position_groups=4),
    "wav2vec2-small": CtcArchitecture(256, 6, 4, 1024, channels=128, positions=64),
    "wav2vec2-base": CtcArchitecture(768, 12, 12, 3072, group_norm=True),
    "wav2vec2-large": CtcArchitecture(1024, 24, 16, 4096),
    "wav2vec2-xls-r-1b": CtcArchitecture(1280, 48, 16, 5120),
}


def ctc_config(shape: CtcArchitecture, outputs: int, **options: Any) -> Wav2Vec2Config:
    """transformers' configuration of ``shape`` with a head of ``outputs`` symbols, of which the first is the blank."""
    return Wav2Vec2Config(
        **{
            "vocab_size": outputs,
            "hidden_size": shape.d_model,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "intermediate_size": shape.ffn,
            "conv_dim": (shape.channels,) * 7,
            "conv_bias": not shape.group_norm,
            "feat_extract_norm": "group" if shape.group_norm else "layer",
            "do_stable_layer_norm": not shape.group_norm,
            "num_conv_pos_embeddings": shape.positions,
            "num_conv_pos_embedding_groups": shape.position_groups,
            "initializer_range": 0.1 if shape.d_model < 128 else 0.02,  # small models are nearly constant at 0.02
            "mask_time_prob": 0.0,
            "layerdrop": 0.0,
            "hidden_dropout": 0.0,
            "activation_dropout": 0.0,
            "attention_dropout": 0.0,
            "final_dropout": 0.0,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": None,
            **options,
        }
    )


def assemble_ctc(config: Wav2Vec2Config, weights: Mapping[str, Tensor], source: str) -> Wav2Vec2ForCTC:
    """See :func:`fl.bases.files.frozen_model`; older names of tensors are brought to those of today."""
    named = {_OLD_NAMES.get(name, name): tensor for name, tensor in weights.items() if name != _UNUSED}
    return frozen_model(Wav2Vec2ForCTC, config, named, source, head="lm_head.weight")


def read_ctc_config(folder: Path) -> Wav2Vec2Config:
    """The configuration of a folder, without masks: what is learnt here is never masked in the model."""
    config = read_config(folder, Wav2Vec2Config, mask_time_prob=0.0, mask_feature_prob=0.0)
    for key in ("add_adapter", "adapter_attn_dim"):
        if getattr(config, key, None):
            raise BaseModelError(
                f"{folder}/config.json sets {key}: adapters inside a Wav2Vec2 are not supported; take one without."
            )
    if not len(config.conv_kernel) == len(config.conv_stride) == len(config.conv_dim):
        raise BaseModelError(f"{folder}/config.json: conv_kernel, conv_stride and conv_dim differ in length.")
    return config


def random_ctc(key: str, tokens: str) -> tuple[Wav2Vec2ForCTC, CtcVocabulary]:
    """The architecture ``key`` with weights from a seed that depends on names alone, and a vocabulary of the project's own."""
    vocabulary = make_vocabulary(RANDOM_TOKENS if tokens == OWN else tokens)
    config = ctc_config(CTC_ARCHITECTURES[key], len(vocabulary))
    weights = random_weights(Wav2Vec2ForCTC, config, key, tokens)
    return assemble_ctc(config, weights, key), vocabulary
