"""``idiolect study network``: is it faster to ask a server over each link, or to hold the base on the device?"""

import json
import math
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from fl.speech.audio import SAMPLE_RATE, load_audio, save_audio
from sim.cli.app import errors
from sim.cli.options import Json, wide_console
from sim.study.network.latency import AskingDevice, LatencyProbe
from sim.study.network.links import PROFILES, NetworkError, parse_profile
from sim.study.network.local import process_cost, served
from sim.study.network.proxy import LOOPBACK
from sim.study.network.study import REFERENCE, run_study

# How many times slower than the measuring machine a device computes: assumptions, see docs/network.md.
DEVICES: Mapping[str, float] = {"laptop": 1.0, "phone": 3.0, "raspberry-pi-4": 8.0}
_ALL_DEVICES = ",".join(f"{name}={slowdown:g}" for name, slowdown in DEVICES.items())


def parse_server(text: str) -> int:
    """The port of ``127.0.0.1:PORT``, 0 for an empty text. Raises :class:`NetworkError` for another machine's."""
    host, _, port = text.rpartition(":")
    if text and (host not in (LOOPBACK, "localhost") or not port.isdecimal()):
        raise NetworkError(f"server {text!r}: give {LOOPBACK}:PORT; the link is in front of a server on this machine")
    return int(port or 0)


def parse_devices(text: str) -> dict[str, float]:
    """``phone=3,raspberry-pi-4=8``: slowdowns by name. Raises :class:`NetworkError` for one that is not above 0."""
    devices = {}
    for part in text.split(","):
        name, _, value = (side.strip() for side in part.partition("="))
        try:
            devices[name] = float(value)
        except ValueError:
            devices[name] = math.nan
        if not name or not 0 < devices[name] < math.inf:
            raise NetworkError(f"device {part.strip()!r}: give name=slowdown, how many times slower it is, as phone=3")
    return devices


def network(
    audio: Annotated[Path, Argument(help="An utterance, at most 29 s.")],
    adapter: Annotated[Path, Option(help="The adapter folder of whoever speaks.")],
    base: Annotated[str, Option(help="Base; by default the adapter's own.")] = "",
    precision: Annotated[str, Option(help="Of the adapter that is sent: or float32, int8.")] = "float16",
    profiles: Annotated[str, Option(help="Links.")] = ";".join(PROFILES),
    devices: Annotated[str, Option(help="How much slower.")] = _ALL_DEVICES,
    repeats: Annotated[int, Option(help="Of each measurement.", min=1)] = 5,
    seed: Annotated[int, Option(help="Of jitter and loss.", min=0)] = 0,
    server: Annotated[str, Option(help="127.0.0.1:PORT of one without tokens.")] = "",
    write: Annotated[Path | None, Option(help="Markdown page whose section is to be replaced.")] = None,
    as_json: Json = False,
) -> None:
    """Compare asking a server over all kinds of networks with holding the base on the device, and say where it turns.

    Everything runs on this machine, with a proxy that delays the bytes as the network would; docs/network.md explains it.

    A link is a name, or a name with changes (lte,rtt=0.2). A device is NAME=SLOWDOWN against this machine.
    """
    links = [parse_profile(text) for text in profiles.split(";")]
    slowdowns, running = parse_devices(devices), parse_server(server)
    from fl.adapters.files import load_adapter
    from fl.core.machine import machine
    from fl.packed.folder import pack_folder
    from sim.section import markdown_tables, page_parts, print_tables, write_section
    from sim.study.network.report import END, START, conditions_text, tables

    if write is not None:
        page_parts(write, START, END)  # now, not after minutes of measuring
    _, info = load_adapter(adapter)
    base = base or info.base_name
    packed, samples = pack_folder(adapter, precision), load_audio(audio)  # type: ignore[arg-type]
    conditions = {
        "base": base,
        "audio_seconds": round(len(samples) / SAMPLE_RATE, 2),
        "adapter_bytes": len(packed),
        "precision": precision,
        "repeats": repeats,
        "seed": seed,
        "devices": slowdowns,
        "reference": REFERENCE,
        "profiles": {link.name: asdict(link) for link in links},
        "machine": machine(),
    }
    with errors.status("the base on this machine") as status, tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "audio.wav", Path(folder) / "adapter"
        save_audio(files[0], samples)
        files[1].write_bytes(packed)
        device = AskingDevice(Path(folder) / "device", packed)
        local = process_cost("hold", base, *files, repeats)
        with nullcontext(running) if running else served(base) as port:
            asking = process_cost("ask", port, *files, repeats)
            probe = LatencyProbe(port, device, samples, repeats, seed)
            study = run_study(probe, local, asking, links, conditions, status.update)
    if write is not None:
        write_section(write, START, END, markdown_tables(tables(study), conditions_text(study)))
    if as_json:
        print(json.dumps(study.document(), ensure_ascii=False))
    else:
        print_tables(tables(study), conditions_text(study), wide_console(110))
