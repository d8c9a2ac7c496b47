"""The frozen text encoder: from a name to a BERT with its tokenizer, whose words know their pieces."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import BertConfig, BertModel

from fl.bases.files import read_config, read_weights, weight_files
from fl.bases.resolve import find_folder
from fl.bases.sources.wheels import TEXT_BASES
from fl.core.errors import BaseModelError, TextError
from fl.core.paths import cache_root
from fl.core.rng import derive_seed
from fl.tasks.classifier import weights_digest

NANO = "random:bert-nano"  # for unit tests: random weights, and bytes as pieces


@dataclass(frozen=True)
class TextEncoder:
    """A frozen BERT. ``tokenizer`` neither pads nor cuts."""

    name: str
    fingerprint: str
    model: BertModel
    tokenizer: Tokenizer

    def pieces(self, words: Sequence[str]) -> tuple[list[int], list[int | None]]:
        """Token ids of a sentence, and for each the index of its word (None for the marks of the sentence's ends).

        Raises :class:`TextError` for a sentence that is longer than the encoder takes or a word of which nothing is left.
        """
        found = self.tokenizer.encode(list(words), is_pretokenized=True)
        limit = self.model.config.max_position_embeddings
        if len(found.ids) > limit:
            raise TextError(f"a sentence of {len(found.ids)} pieces, {self.name} takes {limit}: cut it")
        if missing := set(range(len(words))) - set(found.word_ids):
            raise TextError(f"word {words[min(missing)]!r} is nothing to {self.name}: leave it out")
        return list(found.ids), list(found.word_ids)


@lru_cache(maxsize=4)
def load_encoder(name: str) -> TextEncoder:
    """The encoder called ``name``: a folder in transformers' layout, a Hub name (owner/model), a pinned wheel, or
    ``random:bert-nano``. The same object for the same name in one process. Raises :class:`BaseModelError`."""
    if name == NANO:
        return _random()
    folder = find_folder(name, cache_root(), TEXT_BASES, f"Random weights: {NANO}")
    config, weights = read_config(folder, BertConfig), read_weights(weight_files(folder))
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises plain exceptions
        raise BaseModelError(f"{folder}/tokenizer.json cannot be read ({error}): get it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return _frozen(name, config, weights, tokenizer)


def _frozen(name: str, config: BertConfig, weights: dict[str, Tensor], tokenizer: Tokenizer) -> TextEncoder:
    """The encoder on these very tensors; the pooler, heads and other extras of a checkpoint are left out."""
    model = _empty(config)
    own = {key.removeprefix("bert."): tensor.float() for key, tensor in weights.items()}
    wanted = dict(model.named_parameters())
    odd = [key for key, value in wanted.items() if key not in own or own[key].shape != value.shape]
    if odd:
        raise BaseModelError(
            f"{name}: {len(odd)} tensors are missing or of another shape than config.json says, first {odd[0]}"
        )
    model.load_state_dict({key: own[key] for key in wanted}, strict=False, assign=True)
    return _encoder(name, model, tokenizer)


def _empty(config: BertConfig) -> BertModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("random text base"))
        return BertModel(config, add_pooling_layer=False)


def _encoder(name: str, model: BertModel, tokenizer: Tokenizer) -> TextEncoder:
    config = model.config
    model.requires_grad_(False)
    model.eval()
    mark = f"bert:{config.hidden_size}x{config.num_hidden_layers}:{weights_digest(model)}"
    return TextEncoder(name, mark, model, tokenizer)


def _random() -> TextEncoder:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    config = BertConfig(
        vocab_size=len(alphabet),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.2,  # small models are nearly constant at 0.02
    )
    return _encoder(NANO, _empty(config), tokenizer)
