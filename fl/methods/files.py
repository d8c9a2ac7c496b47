"""The trained tensors of a method on disk: a folder like an adapter's (:mod:`fl.adapters.files`), with the recipe as its configuration.

Low-rank methods are saved as adapters, since PEFT, the server and thin devices read those.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from fl.adapters.files import MAX_ADAPTER_BYTES, TrainedInfo, read_folder, write_folder
from fl.adapters.state import State, check_tensors
from fl.core.errors import AdapterError, ConfigError
from fl.methods.base import Recipe
from fl.methods.table import METHODS
from fl.packed.folder import SCHEMA, read_config

KIND = "idiolect_method"
MAX_WHOLE_BYTES = 16 * 2**30  # of a method that trains the base itself


@dataclass(frozen=True)
class MethodInfo(TrainedInfo):
    """What a folder says of a method's tensors."""

    recipe: Recipe


def save_method(folder: Path, tensors: State, info: MethodInfo) -> None:
    """Write a folder. A failed write, on a full disk for example, leaves the old one intact."""
    write_folder(folder, tensors, info, {KIND: SCHEMA, **asdict(info.recipe)})


def load_method(folder: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> tuple[State, MethodInfo]:
    """Read a folder back, all of it checked, against ``shapes`` too where they are given.

    Raises :class:`AdapterError` with the reason for anything but a sound one, and
    :class:`fl.core.errors.AdapterMismatchError` if it does not fit.
    """
    recipe = read_config(folder, _recipe)
    tensors, trained = read_folder(folder, MAX_WHOLE_BYTES if METHODS[recipe.method].whole else MAX_ADAPTER_BYTES)
    check_tensors(tensors, shapes if shapes is not None else {n: tuple(t.shape) for n, t in tensors.items()})
    return tensors, MethodInfo(**vars(trained), recipe=recipe)


def _recipe(values: Any) -> Recipe:
    if not isinstance(values, dict) or values.pop(KIND, None) != SCHEMA:
        raise ConfigError("it is not of a method: an adapter is read by fl.adapters.files.load_adapter")
    if set(values) != {field.name for field in fields(Recipe)} or values["method"] not in METHODS:
        raise ConfigError("it has other fields than a recipe, or an unknown method: get it again")
    for name, kind in get_type_hints(Recipe).items():
        listed = name == "targets" and isinstance(values[name], list) and all(isinstance(t, str) for t in values[name])
        plain = kind if isinstance(kind, type) else str
        if not listed and type(values[name]) is not plain:
            raise ConfigError(f"{name} = {values[name]!r} is not of its kind: get it again")
    return Recipe(**values)


def is_method(folder: Path) -> bool:
    """Whether a folder says that it is of :func:`save_method`; an adapter's (:mod:`fl.adapters.files`) does not."""
    try:
        return read_config(folder, lambda values: KIND in values)
    except AdapterError:
        return False
