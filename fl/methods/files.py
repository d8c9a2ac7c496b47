"""The trained tensors of a method on disk: a folder like an adapter's (:mod:`fl.adapters.files`), with the recipe as its configuration.

Low-rank methods are saved as adapters, since PEFT, the server and thin devices read those. Nothing is ever unpickled, and sizes
are bounded before anything is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import get_type_hints

from fl.adapters.files import (
    CONFIG_NAME,
    MAX_ADAPTER_BYTES,
    MAX_CONFIG_BYTES,
    SCHEMA,
    WEIGHTS_NAME,
    read_tensors,
)
from fl.adapters.split import make_split
from fl.adapters.state import State, check_tensors
from fl.core.errors import AdapterError, AdapterMismatchError, ConfigError, SplitError
from fl.core.files import write_together
from fl.core.tensorfile import tensor_bytes
from fl.methods.base import Recipe
from fl.settings.names import METHODS

KIND = "idiolect_method"
MAX_WHOLE_BYTES = 16 * 2**30  # of a method that trains the base itself


@dataclass(frozen=True)
class MethodInfo:
    """What a folder says of its tensors."""

    base_name: str
    base_fingerprint: str
    split: str
    recipe: Recipe

    def require_base(self, fingerprint: str) -> None:
        """Raise :class:`AdapterMismatchError` unless the tensors were trained on the base with this fingerprint."""
        if self.base_fingerprint != fingerprint:
            raise AdapterMismatchError(
                f"{self.recipe.method} was trained on base {self.base_name!r} ({self.base_fingerprint}), not on {fingerprint}: "
                "load that base instead"
            )


def save_method(folder: Path, tensors: State, info: MethodInfo) -> None:
    """Write a folder. A failed write, on a full disk for example, leaves the old one intact."""
    metadata = {
        "format": "pt",
        "schema": str(SCHEMA),
        "base": info.base_name,
        "base_fingerprint": info.base_fingerprint,
        "split": info.split,
        "tensors": str(len(tensors)),
    }
    config = json.dumps({KIND: SCHEMA, **asdict(info.recipe)}, indent=2, sort_keys=True).encode()
    try:
        write_together(folder, {WEIGHTS_NAME: tensor_bytes(tensors, metadata), CONFIG_NAME: config})
    except OSError as error:
        raise AdapterError(
            f"{folder} could not be written: {error}; free some space or choose another folder"
        ) from error


def load_method(folder: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> tuple[State, MethodInfo]:
    """Read a folder back, all of it checked, against ``shapes`` too where they are given.

    Raises :class:`AdapterError` with the reason for anything but a sound one, :class:`AdapterMismatchError` if it does not fit.
    """
    weights, config = folder / WEIGHTS_NAME, folder / CONFIG_NAME
    for path in (weights, config):
        if not path.is_file():
            raise AdapterError(f"nothing trained at {folder}: {path.name} is missing; give the folder that a run wrote")
    _require_size(config, MAX_CONFIG_BYTES)
    recipe = _read_recipe(config)
    _require_size(weights, MAX_WHOLE_BYTES if recipe.method in ("full", "scratch") else MAX_ADAPTER_BYTES)
    tensors, metadata = read_tensors(weights)
    if metadata.get("schema") != str(SCHEMA) or metadata.get("tensors") != str(len(tensors)):
        raise AdapterError(
            f"{weights} has schema {metadata.get('schema')!r} and says that it holds {metadata.get('tensors')} tensors; there are "
            f"{len(tensors)}, and this version reads schema {SCHEMA}: get it again"
        )
    try:
        make_split(metadata.get("split", ""), tensors)
    except (ConfigError, SplitError) as error:
        raise AdapterError(f"{weights} does not say what of it is private: {error}; get it again") from error
    check_tensors(tensors, shapes if shapes is not None else {n: tuple(t.shape) for n, t in tensors.items()})
    info = MethodInfo(metadata.get("base", ""), metadata.get("base_fingerprint", ""), metadata["split"], recipe)
    return tensors, info


def _require_size(path: Path, limit: int) -> None:
    if path.stat().st_size > limit:
        raise AdapterError(f"{path} has {path.stat().st_size:,} bytes, more than the {limit:,} allowed")


def _read_recipe(path: Path) -> Recipe:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.pop(KIND, None) != SCHEMA:
            raise AdapterError(f"{path} is not of a method: an adapter is read by fl.adapters.load_adapter")
        known = get_type_hints(Recipe)
        if set(values) != {field.name for field in fields(Recipe)} or values["method"] not in METHODS:
            raise AdapterError(f"{path} has other fields than a recipe, or an unknown method: get it again")
        for name, kind in known.items():
            listed = (
                name == "targets" and isinstance(values[name], list) and all(isinstance(t, str) for t in values[name])
            )
            plain = kind if isinstance(kind, type) else str
            if not listed and type(values[name]) is not plain:
                raise AdapterError(f"{path}: {name} = {values[name]!r} is not of its kind: get it again")
        return Recipe(**values)
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not a recipe: {error}; get it again") from error
