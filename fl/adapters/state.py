"""An adapter's tensors by name: read them out of a model, write them into one, check them, count them."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fl.adapters.config import PREFIX
from fl.core.errors import AdapterError, AdapterMismatchError

PEFT_PREFIX = "base_model.model."
State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


def tensor_name(module: str, what: str) -> str:
    """``what`` (A, B, gate_weight or gate_bias) of a module, by the name that PEFT gives it."""
    return f"{PEFT_PREFIX}{module}.{PREFIX}{what}"


def module_of(name: str) -> str:
    """The module to which an adapter's tensor belongs: the inverse of :func:`tensor_name`."""
    return name.removeprefix(PEFT_PREFIX).rsplit(f".{PREFIX}", 1)[0]


def part_of(name: str) -> str:
    """What a tensor is of its module: A, B or a gate's parameter."""
    return name.rsplit(f".{PREFIX}", 1)[-1]


def adapter_parameters(model: nn.Module, adapter: str = "default") -> dict[str, nn.Parameter]:
    """The live parameters of ``adapter``, sorted by the names of ``peft.get_peft_model_state_dict``, ``...q_proj.gated_lora_A``."""
    suffix = f".{adapter}"
    found = {
        name.removesuffix(suffix): parameter
        for name, parameter in model.named_parameters()
        if name.endswith(suffix) and PREFIX in name
    }
    if not found:
        raise AdapterError(f"adapter {adapter!r} has no tensors in this model: check its name and target_modules")
    return dict(sorted(found.items()))


def adapter_state(model: nn.Module, adapter: str = "default") -> State:
    """A copy of the adapter's tensors on the CPU, by name, sorted."""
    return {name: p.detach().to("cpu", copy=True) for name, p in adapter_parameters(model, adapter).items()}


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits of SHA-256 over names, shapes and float32 values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False)
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]


def load_state(model: nn.Module, tensors: Mapping[str, Tensor], adapter: str = "default") -> None:
    """Copy ``tensors`` into the adapter; names that are not given keep their values. All are checked before one is copied.

    Raises :class:`AdapterMismatchError` for an unknown name or a wrong shape, :class:`AdapterError` for a non-finite value.
    """
    copy_state(tensors, adapter_parameters(model, adapter))


def copy_state(tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    """Copy ``tensors`` into ``parameters`` of the same names, after all of them are checked: what :func:`load_state` does."""
    check_tensors(tensors, {name: tuple(p.shape) for name, p in parameters.items()}, complete=False)
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def check_tensors(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], *, complete: bool = True
) -> None:
    """Check names, shapes, dtypes and finiteness of an adapter's tensors against ``shapes``.

    Raises :class:`AdapterMismatchError` for names or shapes that differ (with ``complete``, for missing names too),
    :class:`AdapterError` for tensors that are not floating point or hold NaN or infinity.
    """
    unknown = sorted(set(tensors) - set(shapes))
    if unknown:
        raise AdapterMismatchError(
            f"adapter has {len(unknown)} tensors that this configuration does not, first {unknown[0]!r}: "
            "was it trained with another gate, rank or set of sites?"
        )
    missing = sorted(set(shapes) - set(tensors))
    if complete and missing:
        raise AdapterMismatchError(
            f"adapter lacks {len(missing)} tensors, first {missing[0]!r}: the file is incomplete, get it again"
        )
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != tuple(shapes[name]):
            raise AdapterMismatchError(
                f"adapter tensor {name!r} is {tuple(tensor.shape)} but {tuple(shapes[name])} is expected: check rank and base"
            )
        if not tensor.is_floating_point():
            raise AdapterError(f"adapter tensor {name!r} has dtype {tensor.dtype}: adapters are floating point")
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(
                f"adapter tensor {name!r} holds NaN or infinity: it was damaged or its training diverged; use an earlier one"
            )


@dataclass(frozen=True)
class TensorSize:
    """Number of parameters, and bytes at the tensors' own precision."""

    parameters: int
    bytes: int


def size_of(tensors: Mapping[str, Tensor], names: Iterable[str] | None = None) -> TensorSize:
    """Size of the tensors, or of those named."""
    chosen = [tensors[name] for name in names] if names is not None else list(tensors.values())
    return TensorSize(sum(t.numel() for t in chosen), sum(t.numel() * t.element_size() for t in chosen))
