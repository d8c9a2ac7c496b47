"""A transformers folder (config.json, safetensors, vocab.json) as a frozen Wav2Vec2-CTC, memory-mapped; or random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from fl.bases.ctc.catalog import CTC_ARCHITECTURES, ctc_config
from fl.bases.ctc.vocabulary import CtcVocabulary, load_vocabulary, make_vocabulary
from fl.bases.sources.mapped import read_mapped
from fl.bases.whisper.loading import weight_files
from fl.bases.whisper.tokenizer import read_json
from fl.core.errors import BaseModelError
from fl.core.rng import derive_seed
from fl.settings.names import OWN

MODEL_TYPE = "wav2vec2"
RANDOM_TOKENS = "syllables"  # of a random base whose tokens are its own
_NORM = "wav2vec2.encoder.pos_conv_embed.conv."
_OLD_NAMES = {  # of torch's weight normalization before 2.0
    f"{_NORM}weight_g": f"{_NORM}parametrizations.weight.original0",
    f"{_NORM}weight_v": f"{_NORM}parametrizations.weight.original1",
}
_UNUSED = "wav2vec2.masked_spec_embed"  # stands for masked speech in self-supervised training only


@dataclass(frozen=True)
class LoadedCtc:
    """What a folder holds. ``model`` uses the mapped ``weights`` in the type that the files have."""

    model: Wav2Vec2ForCTC
    weights: dict[str, Tensor]
    vocabulary: CtcVocabulary
    weight_files: list[Path]


def assemble_ctc(config: Wav2Vec2Config, weights: Mapping[str, Tensor], source: str) -> Wav2Vec2ForCTC:
    """A frozen model in eval mode that uses ``weights`` themselves, without a copy.

    Raises :class:`BaseModelError` when names or shapes are not those of ``config``.
    """
    with torch.device("meta"):
        model = Wav2Vec2ForCTC._from_config(config, attn_implementation="sdpa")
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    missing, unknown = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    if missing or unknown:
        named = ", ".join(sorted(missing | unknown)[:3])
        headless = any(name.startswith("lm_head.") for name in missing)
        raise BaseModelError(
            f"{source}: {len(missing)} tensors are missing and {len(unknown)} are unknown to its config.json (first: {named}). "
            + (
                "It has no CTC head: fine-tune it with one first, or take a base that has."
                if headless
                else "The folder is incomplete or not a Wav2Vec2 with a CTC head."
            )
        )
    for name, tensor in weights.items():
        if tensor.shape != expected[name]:
            raise BaseModelError(
                f"{source}: {name} has the shape {tuple(tensor.shape)}, its config.json says {tuple(expected[name])}."
            )
    model.load_state_dict(dict(weights), strict=True, assign=True)
    model.requires_grad_(False)
    frozen: Wav2Vec2ForCTC = model.eval()
    return frozen


def load_ctc_folder(folder: Path) -> LoadedCtc:
    """Map a Wav2Vec2-CTC in transformers' layout; raises :class:`BaseModelError` that names the file at fault."""
    config = _read_config(folder)
    files = weight_files(folder)
    read: dict[str, Tensor] = {}
    for file in files:
        read.update(read_mapped(file))
    weights = {_OLD_NAMES.get(name, name): tensor for name, tensor in read.items() if name != _UNUSED}
    vocabulary = load_vocabulary(folder, size=int(config.vocab_size), blank=int(config.pad_token_id or 0))
    return LoadedCtc(assemble_ctc(config, weights, str(folder)), weights, vocabulary, files)


def _read_config(folder: Path) -> Wav2Vec2Config:
    path = folder / "config.json"
    facts = read_json(path)
    for key in ("add_adapter", "adapter_attn_dim"):
        if facts.get(key):
            raise BaseModelError(f"{path} sets {key}: adapters inside a Wav2Vec2 are not supported; take one without.")
    masks = dict.fromkeys(
        ("mask_time_prob", "mask_feature_prob"), 0.0
    )  # what is learnt here is never masked in the model
    try:
        config = Wav2Vec2Config.from_dict({**facts, **masks})
        consistent = len(config.conv_kernel) == len(config.conv_stride) == len(config.conv_dim)
    except Exception as error:  # transformers validates with several unrelated exception types
        raise BaseModelError(f"{path} is not a valid Wav2Vec2 configuration: {error}") from error
    if not consistent:
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
