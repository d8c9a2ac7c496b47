"""The parts of a frozen Wav2Vec2-CTC: its configuration, modules on given weights; or random ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from fl.bases.ctc.catalog import CTC_ARCHITECTURES, ctc_config
from fl.bases.ctc.vocabulary import CtcVocabulary, make_vocabulary
from fl.bases.files import frozen_model, read_config
from fl.core.errors import BaseModelError
from fl.core.rng import derive_seed
from fl.settings.names import OWN

RANDOM_TOKENS = "syllables"  # of a random base whose tokens are its own
_NORM = "wav2vec2.encoder.pos_conv_embed.conv."
_OLD_NAMES = {  # of torch's weight normalization before 2.0
    f"{_NORM}weight_g": f"{_NORM}parametrizations.weight.original0",
    f"{_NORM}weight_v": f"{_NORM}parametrizations.weight.original1",
}
_UNUSED = "wav2vec2.masked_spec_embed"  # stands for masked speech in self-supervised training only


def assemble_ctc(config: Wav2Vec2Config, weights: Mapping[str, Tensor], source: str) -> Wav2Vec2ForCTC:
    """See :func:`fl.bases.files.frozen_model`; older names of tensors are brought to those of today."""
    named = {_OLD_NAMES.get(name, name): tensor for name, tensor in weights.items() if name != _UNUSED}
    return frozen_model(Wav2Vec2ForCTC, config, named, source, head="lm_head.weight")


def read_ctc_config(folder: Path) -> Wav2Vec2Config:
    """The configuration of a folder, without masks: what is learnt here is never masked in the model."""
    path, config = (
        folder / "config.json",
        read_config(folder, Wav2Vec2Config, mask_time_prob=0.0, mask_feature_prob=0.0),
    )
    for key in ("add_adapter", "adapter_attn_dim"):
        if getattr(config, key, None):
            raise BaseModelError(f"{path} sets {key}: adapters inside a Wav2Vec2 are not supported; take one without.")
    if not len(config.conv_kernel) == len(config.conv_stride) == len(config.conv_dim):
        raise BaseModelError(f"{path}: conv_kernel, conv_stride and conv_dim differ in length.")
    return config


def random_ctc(key: str, tokens: str) -> tuple[Wav2Vec2ForCTC, CtcVocabulary]:
    """The architecture ``key`` with weights from a seed that depends on names alone, and a vocabulary of the project's own."""
    vocabulary = make_vocabulary(RANDOM_TOKENS if tokens == OWN else tokens)
    config = ctc_config(CTC_ARCHITECTURES[key], len(vocabulary))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("random base", key, tokens))
        weights = Wav2Vec2ForCTC(config).state_dict()
    return assemble_ctc(config, weights, f"random:{key}"), vocabulary
