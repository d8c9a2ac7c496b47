r"""What the aggregator knows beyond the devices' low-rank pairs: full matrices that make their product the exact mean.

The algorithms ``flora`` and ``fedex`` keep for each layer a matrix C (d_out x d_in) such that ``B A + C`` is the weighted mean of the
devices' products ``B_k A_k`` (:mod:`fl.algorithms.shared.products`). C is of the product *without* the adapters' scale
s = alpha / rank, while a layer computes ``W0 x + s B A x``. So :func:`weight_corrections` multiplies by s once, and everything else
here deals in ``s C``, in float32: what is added to the frozen weight, which has to be float32 too (bf16 may round it away).
Decoding is then ``(W0 + s C) x + s B A x``, that is s times the exact mean.
A gate acts on the pair alone, never on the correction.

Layers are named as in an adapter (``base_model.model.model.decoder.layers.0.self_attn.q_proj``). A correction belongs to one base
and is known by its digest, which is a part of the fingerprint of a base that contains it: an adapter that was made for a
correction names it as its base, and is refused under another one or none.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fl.adapters.state import PEFT_PREFIX, tensors_digest
from fl.core.errors import AdapterError, AdapterMismatchError
from fl.core.files import write_atomically
from fl.core.tensorfile import tensor_bytes
from fl.packed.folder import read_tensors

Corrections = Mapping[str, Tensor]
KIND, SCHEMA = "idiolect_correction", "1"
FOLDER = "corrections"  # of a run: <digest>.safetensors for each
MARK = "+correction:"  # between the fingerprint of a base and the digest of what was added to it
MAX_CORRECTION_BYTES = 16 * 2**30  # every attention map of whisper-large-v2 takes 2.4 GiB


def weight_corrections(corrections: Mapping[str, Any], scale: float) -> dict[str, Tensor]:
    """``scale * C`` by layer, float32, from an algorithm's corrections C (arrays or tensors); ``scale`` is alpha / rank."""
    return {layer: scale * torch.as_tensor(values, dtype=torch.float32) for layer, values in corrections.items()}


def save_correction(path: Path, corrections: Corrections, fingerprint: str) -> None:
    """Write weight corrections of the base with ``fingerprint`` as safetensors; a failed write leaves the old file intact."""
    metadata = {"format": "pt", KIND: SCHEMA, "base_fingerprint": fingerprint, "digest": tensors_digest(corrections)}
    try:
        write_atomically(path, tensor_bytes({n: t.detach().cpu().float() for n, t in corrections.items()}, metadata))
    except OSError as error:
        raise AdapterError(f"{path} could not be written: {error}; free some space or choose another folder") from error


def load_correction(path: Path, fingerprint: str) -> dict[str, Tensor]:
    """Read :func:`save_correction` back for the base with ``fingerprint``.

    Raises :class:`AdapterError` for anything but a sound file, :class:`AdapterMismatchError` for one of another base.
    """
    if not path.is_file():
        raise AdapterError(
            f"no correction at {path}: give a file of the folder {FOLDER!r} of a run with flora or fedex"
        )
    if path.stat().st_size > MAX_CORRECTION_BYTES:
        raise AdapterError(f"{path} has {path.stat().st_size:,} bytes, more than the {MAX_CORRECTION_BYTES:,} allowed")
    tensors, metadata = read_tensors(path, "pt")
    if metadata.get(KIND) != SCHEMA:
        raise AdapterError(
            f"{path} is not a correction of schema {SCHEMA}: give a file of the folder {FOLDER!r} of a run"
        )
    for layer, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.dim() != 2 or not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"{path}: {layer} is not a finite float32 matrix; get the file again")
    if not tensors or metadata.get("digest") != tensors_digest(tensors):
        raise AdapterError(f"{path} does not hold what its digest says: the file was altered, get it again")
    if metadata.get("base_fingerprint") != fingerprint:
        raise AdapterMismatchError(
            f"{path} corrects the base {metadata.get('base_fingerprint')!r}, not {fingerprint}: load that base instead"
        )
    return tensors


def corrected_fingerprint(fingerprint: str, corrections: Corrections) -> str:
    """The fingerprint of the base with ``fingerprint`` when ``corrections`` are in its weights; its own without any."""
    if not corrections:
        return fingerprint
    return f"{fingerprint}{MARK}{tensors_digest(corrections)}"


def split_fingerprint(fingerprint: str) -> tuple[str, str]:
    """The plain base's fingerprint and the digest of its correction, empty for none."""
    plain, _, digest = fingerprint.partition(MARK)
    return plain, digest


def require_fingerprint(adapter: str, base: str) -> None:
    """Raise :class:`AdapterMismatchError`, which names the corrections, if adapter and base differ in nothing but these."""
    (plain, wanted), (own, digest) = split_fingerprint(adapter), split_fingerprint(base)
    if plain == own and wanted != digest:
        named = [f"correction {one[:16]}" if one else "no correction" for one in (wanted, digest)]
        file = (
            f"give --correction {FOLDER}/{wanted[:16]}.safetensors of its run" if wanted else "leave --correction out"
        )
        raise AdapterMismatchError(f"the adapter was made for {named[0]}, and this base has {named[1]}: {file}")


def find_correction(adapter: Path, digest: str) -> Path:
    """The file of a correction in the run folder in which the folder ``adapter`` lies; :class:`AdapterError` if there is none."""
    if not re.fullmatch("[0-9a-f]{16}", digest):
        raise AdapterError(
            f"the adapter at {adapter} names a correction {digest[:40]!r}, which is no digest: get it again"
        )
    places = [folder / FOLDER / f"{digest}.safetensors" for folder in adapter.resolve().parents[:4]]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise AdapterError(
            f"the adapter at {adapter} was made for the correction {digest}, and no folder above it has "
            f"{FOLDER}/{digest}.safetensors: copy it from the run, or give it with --correction FILE"
        )
    return found


def corrected_weights(weights: Mapping[str, Tensor], corrections: Corrections) -> dict[str, Tensor]:
    """``weights`` of a plain model by name with ``corrections`` added: corrected ones are new tensors, all others the same."""
    found = dict(weights)
    for layer, correction in corrections.items():
        name = f"{layer.removeprefix(PEFT_PREFIX)}.weight"
        found[name] = _added(layer, weights.get(name), correction)
    return found


@contextmanager
def corrected(model: nn.Module, corrections: Corrections) -> Iterator[nn.Module]:
    """Within the block the frozen linear maps of ``model``, plain or wrapped by PEFT, have ``corrections`` in their weights.

    Weights may be read-only pages that processes share: they are swapped for new ones and put back, never written to, so that
    the very same tensors are there afterwards, also behind an exception. Not for several threads on one model. Raises
    :class:`AdapterMismatchError` for corrections that do not fit, before anything is changed.
    """
    maps = {layer: _linear(model, layer) for layer in corrections}
    changed = [(linear, _added(layer, linear.weight, corrections[layer])) for layer, linear in maps.items()]
    before = [(linear, linear.weight) for linear, _ in changed]
    try:
        for linear, weight in changed:
            linear.weight = nn.Parameter(weight, requires_grad=False)
        yield model
    finally:
        for linear, own in before:
            linear.weight = own


def _linear(model: nn.Module, layer: str) -> nn.Linear:
    """The frozen linear map of a layer, under whatever wraps it."""
    for name in (layer, layer.removeprefix(PEFT_PREFIX)):
        try:
            module: Any = model.get_submodule(name)
        except AttributeError:
            continue
        while hasattr(module, "base_layer"):
            module = module.base_layer
        if isinstance(module, nn.Linear):
            return module
    raise AdapterMismatchError(
        f"a correction is of {layer!r}, which is no linear map of this base: is it of another one?"
    )


def _added(layer: str, weight: Tensor | None, correction: Tensor) -> Tensor:
    if weight is None or weight.shape != correction.shape:
        shape = "no map" if weight is None else tuple(weight.shape)
        raise AdapterMismatchError(
            f"a correction of {layer!r} is {tuple(correction.shape)}, and this base has {shape} there: is it of another one?"
        )
    if weight.element_size() < correction.element_size():
        raise AdapterMismatchError(
            f"a correction of {layer!r} may be rounded away in the base's {str(weight.dtype).removeprefix('torch.')} weights: "
            "load the base with precision float32"
        )
    return (weight.detach() + correction.to(weight.device)).to(weight.dtype)
