"""The files of a folder in transformers' layout, a frozen model on mapped weights, and what makes two bases the same."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from fl.bases.attention import attention_for
from fl.bases.sources.mapped import read_mapped
from fl.core.errors import BaseModelError
from fl.core.files import write_atomically
from fl.core.rng import derive_seed

Model = TypeVar("Model", bound=PreTrainedModel)
Config = TypeVar("Config", bound=PretrainedConfig)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a small file of a base. Raises :class:`BaseModelError` where it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise BaseModelError(f"{path} holds {type(value).__name__} where an object should be.")
    return value


def read_config(folder: Path, kind: type[Config], **changes: Any) -> Config:
    """The ``config.json`` of a folder, which must be of ``kind``, with ``changes``."""
    path = folder / "config.json"
    if not path.is_file():
        raise BaseModelError(
            f"{folder} has no config.json: not a model in transformers' layout. "
            "Save one there with `model.save_pretrained(folder)`, or check the path."
        )
    facts = read_json(path)
    if facts.get("model_type") != kind.model_type:
        raise BaseModelError(
            f"{path} is of model type {facts.get('model_type')!r}; this command needs {kind.model_type!r}."
        )
    try:
        config: Config = kind.from_dict({**facts, **changes})
    except Exception as error:  # transformers validates with several unrelated exception types
        raise BaseModelError(f"{path} is not a valid {kind.__name__}: {error}") from error
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a folder: one file, or the shards that its index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise BaseModelError(
            f"{folder} has no model.safetensors. Pickled weights (pytorch_model.bin) are not read, because they can "
            "run code: convert them with `model.save_pretrained(folder, safe_serialization=True)`. Files of CTranslate2 "
            "(model.bin), of ggml and of an adapter are no base: take the model that they were made of."
        )
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise BaseModelError(f"{index} has no weight_map.")
    files = sorted({folder / Path(str(name)).name for name in shards.values()})
    for file in files:
        if not file.is_file():
            raise BaseModelError(f"{file} is named by {index.name} and is not there: get it again.")
    return files


def read_weights(files: list[Path]) -> dict[str, Tensor]:
    """All tensors of some safetensors files, memory-mapped: pages are read when they are first used."""
    return {name: tensor for file in files for name, tensor in read_mapped(file).items()}


def random_weights(kind: type[PreTrainedModel], config: Any, *names: str) -> Mapping[str, Tensor]:
    """The initial weights of ``kind`` from a seed that depends on ``names`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("random base", *names))
        return dict(kind(config).state_dict())


def frozen_model(
    kind: type[Model], config: Any, weights: Mapping[str, Tensor], source: str, *, head: str = "", tied: str = ""
) -> Model:
    """A model of ``kind`` in eval mode that uses ``weights`` themselves, without a copy. ``head`` is left out if it is ``tied``.

    Raises :class:`BaseModelError` when names or shapes are not those of ``config``.
    """
    with torch.device("meta"):
        model: Model = kind._from_config(config, attn_implementation=attention_for(next(iter(weights.values()))))
    own = {name: tensor for name, tensor in weights.items() if not tied or name != head}
    expected = {name: tensor.shape for name, tensor in model.state_dict().items() if not tied or name != head}
    missing, unknown = expected.keys() - own.keys(), own.keys() - expected.keys()
    if missing or unknown:
        named = ", ".join(sorted(missing | unknown)[:3])
        raise BaseModelError(
            f"{source}: {len(missing)} tensors are missing and {len(unknown)} are unknown to its config.json (first: {named}). "
            + (
                "It has no CTC head: fine-tune it with one first, or take a base that has."
                if not tied and head in missing
                else f"The folder is incomplete or not a {kind.__name__}."
            )
        )
    for name, tensor in own.items():
        if tensor.shape != expected[name]:
            raise BaseModelError(
                f"{source}: {name} has the shape {tuple(tensor.shape)}, its config.json says {tuple(expected[name])}."
            )
    model.load_state_dict(own, strict=not tied, assign=True)
    if tied:
        model.get_submodule(head.rpartition(".")[0]).weight = model.get_parameter(tied)
    model.requires_grad_(False)
    model.eval()
    return model


def fingerprint_of(kind: str, shape: str, weights: Mapping[str, Tensor], vocabulary: str = "") -> str:
    """``<kind>:<shape>:<16 hex digits of SHA-256>``.

    The hash runs over names, types, shapes and bytes of the float32 weights in the order of their names, so the same weights have
    the same fingerprint whichever files they came in; and over the digest of the ``vocabulary``, where a head means nothing without.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} float32\n".encode())
        array = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(array.reshape(-1).astype("<f4", copy=False).view(np.uint8).data)
    digest.update(vocabulary.encode())
    return f"{kind}:{shape}:{digest.hexdigest()[:16]}"


def remembered(root: Path, files: list[Path], compute: Callable[[], str]) -> str:
    """The fingerprint of what was loaded from ``files``, computed if ``root`` does not have it by their paths, sizes and times."""
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]
    path = root / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()}.txt"
    with suppress(OSError, UnicodeDecodeError):
        known = path.read_text(encoding="ascii")
        if known.startswith(("whisper:", "wav2vec2:")) and len(known) < 100:
            return known
    value = compute()
    with suppress(OSError):
        write_atomically(path, value.encode())
    return value
