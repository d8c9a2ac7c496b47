"""The pinned bases, and whether each is there. Needs no torch, so that a listing is quick."""

import json
from dataclasses import dataclass
from pathlib import Path

from fl.bases.sources.wheels import TEXT_BASES, WHEEL_BASES
from fl.core.paths import cache_root

MANIFEST = "idiolect.json"  # written last; names every file with its size and SHA-256
SCHEMA = 1


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
        KnownBase(base.name, base.source, base.licence, base.download_bytes, is_whole(root / base.name))
        for base in (*WHEEL_BASES.values(), *TEXT_BASES.values())
    ]
