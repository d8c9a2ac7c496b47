"""``idiolect study network``: ask a server over each link, or hold the base on the device? Measured, and where it turns.

Every latency is measured: a real server, real bytes, and the proxy that delays them (:mod:`sim.network.proxy`). The local
side is measured on this machine and multiplied by a slowdown for each device, an assumption that can be set. The thresholds
of round trip and rate are solved from the model (:mod:`sim.network.thresholds`), and two of them are then measured.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from fl.speech.audio import SAMPLE_RATE, Waveform, load_audio, save_audio
from sim.network.client import Device
from sim.network.links import PROFILES, LinkProfile, NetworkError, parse_profile
from sim.network.local import Cost, hold_base, only_ask, served
from sim.network.measure import MODES, Latency, Server
from sim.network.proxy import LOOPBACK
from sim.network.thresholds import Exchange, exchange_seconds, largest_rtt, least_rate, with_rate, with_rtt

# How many times slower than the measuring machine a device computes: assumptions, see docs/network.md.
DEVICES: Mapping[str, float] = {"laptop": 1.0, "phone": 3.0, "raspberry-pi-4": 8.0}
REFERENCE = "lte"  # the link whose rates the round trip's threshold takes, and the other way round


@dataclass(frozen=True)
class Threshold:
    """Where one device with one way of asking is as fast as with the base on it: see :mod:`sim.network.thresholds`."""

    device: str
    mode: str
    local_seconds: float
    rtt: float | None
    rate_up: float | None


@dataclass(frozen=True)
class Confirmed:
    """A threshold that was measured: at ``profile`` the median request took ``seconds``, the device alone ``local_seconds``."""

    profile: str
    mode: str
    device: str
    local_seconds: float
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Study:
    """All that was measured and solved. ``direct`` is without a link between; ``conditions`` say with what."""

    conditions: Mapping[str, Any]
    local: Cost
    asking: Cost
    direct: tuple[Latency, ...]
    latencies: tuple[Latency, ...]
    thresholds: tuple[Threshold, ...]
    confirmed: tuple[Confirmed, ...]

    def document(self) -> dict[str, Any]:
        """For JSON: an infinite threshold is the text ``any``."""
        found = asdict(self)
        for row in found["thresholds"]:
            row["rtt"] = "any" if row["rtt"] == math.inf else row["rtt"]
        return found


def run_study(
    server: Server,
    local: Cost,
    asking: Cost,
    profiles: Sequence[LinkProfile],
    devices: Mapping[str, float],
    conditions: Mapping[str, Any],
    progress: Callable[[str], None] = lambda _: None,
) -> Study:
    """Measure each mode over each of ``profiles``, solve the thresholds for ``devices`` (slowdowns by name), measure two."""
    direct = {mode.name: server.measure(mode, None) for mode in MODES}
    latencies = []
    for profile in profiles:
        for mode in MODES:
            progress(f"{profile.name}: {mode.name}")
            latencies.append(_with_model(server.measure(mode, profile), profile, direct))
    exchanges = {
        row.mode: Exchange(row.bytes_up, row.bytes_down, median(direct[row.mode].seconds)) for row in latencies
    }
    reference = PROFILES[REFERENCE]
    thresholds = []
    for device, slowdown in devices.items():
        seconds = slowdown * median(local.seconds)
        for mode in (
            mode for mode in MODES if not mode.stream
        ):  # streamed or not, the last word comes at the same time
            exchange = exchanges[mode.name]
            rtt, rate = largest_rtt(exchange, reference, seconds), least_rate(exchange, reference, seconds)
            thresholds.append(Threshold(device, mode.name, seconds, rtt, rate))
    confirmed = []
    for profile, row in _turning_points(thresholds, reference):
        progress(f"at the threshold, {profile.name}: {row.mode}")
        mode = next(mode for mode in MODES if mode.name == row.mode)
        found = server.measure(mode, profile)
        confirmed.append(Confirmed(profile.name, row.mode, row.device, row.local_seconds, found.seconds))
    return Study(
        conditions, local, asking, tuple(direct.values()), tuple(latencies), tuple(thresholds), tuple(confirmed)
    )


def _with_model(row: Latency, profile: LinkProfile, direct: Mapping[str, Latency]) -> Latency:
    exchange = Exchange(row.bytes_up, row.bytes_down, median(direct[row.mode].seconds))
    return replace(row, modelled=exchange_seconds(exchange, profile))


def _turning_points(thresholds: Sequence[Threshold], reference: LinkProfile) -> Iterator[tuple[LinkProfile, Threshold]]:
    """The link at one threshold of the round trip and one of the rate: the first of each that is neither none nor any."""
    for row in thresholds:
        if row.rtt is not None and 0 < row.rtt < math.inf:
            yield with_rtt(reference, row.rtt), row
            break
    for row in thresholds:
        if row.rate_up is not None and row.rate_up > 0:
            yield with_rate(reference, row.rate_up), row
            break


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
        name, found, value = (side.strip() for side in part.partition("="))
        try:
            devices[name] = float(value)
        except ValueError:
            devices[name] = math.nan
        if not name or not found or not 0 < devices[name] < math.inf:
            raise NetworkError(f"device {part.strip()!r}: give name=slowdown, how many times slower it is, as phone=3")
    return devices


def _measure(
    packed: bytes,
    samples: Waveform,
    links: Sequence[LinkProfile],
    conditions: Mapping[str, Any],
    running: int,
    progress: Callable[[str], None],
) -> Study:
    """Both sides on this machine; ``running`` is the port of a server that is there already, 0 starts one."""
    base, repeats, seed = str(conditions["base"]), int(conditions["repeats"]), int(conditions["seed"])
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "audio.wav", Path(folder) / "adapter"
        save_audio(files[0], samples)
        files[1].write_bytes(packed)
        device = Device(Path(folder) / "device")
        device.keep(packed)
        progress("the base on this machine")
        local = hold_base(base, *files, repeats)
        with nullcontext(running) if running else served(base) as port:
            asking = only_ask(port, *files, repeats)
            server = Server.prepare(port, device, samples, repeats, seed)
            return run_study(server, local, asking, links, conditions["devices"], conditions, progress)


_ALL_LINKS = ";".join(PROFILES)
_ALL_DEVICES = ",".join(f"{name}={slowdown:g}" for name, slowdown in DEVICES.items())


def network(
    audio: Annotated[Path, typer.Argument(help="An utterance, at most 29 s.")],
    adapter: Annotated[Path, typer.Option(help="The adapter folder of whoever speaks.")],
    base: Annotated[str, typer.Option(help="Base; by default the adapter's own.")] = "",
    precision: Annotated[str, typer.Option(help="Of the adapter on the wire: float32, float16 or int8.")] = "float16",
    profiles: Annotated[str, typer.Option(help="Links, ';' between: names, or lte,rtt=0.2. Default: all.")] = ";".join(
        PROFILES
    ),
    devices: Annotated[
        str, typer.Option(help="name=slowdown: how many times slower than this machine a device computes.")
    ] = _ALL_DEVICES,
    repeats: Annotated[int, typer.Option(help="Of each measurement.", min=1)] = 5,
    seed: Annotated[int, typer.Option(help="Of jitter and loss.", min=0)] = 0,
    server: Annotated[
        str, typer.Option(help="127.0.0.1:PORT of a server without tokens; by default one is started.")
    ] = "",
    write: Annotated[Path | None, typer.Option(help="Markdown page whose section is to be replaced.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for a script instead of text for a person.")
    ] = False,
) -> None:
    """Compare asking a server over all kinds of networks with holding the base on the device, and say where it turns.

    Everything runs on this machine, with a proxy that delays the bytes as the network would; docs/network.md explains it.
    """
    links = [parse_profile(text) for text in profiles.split(";")]
    slowdowns, running = parse_devices(devices), parse_server(server)
    if write is not None:
        from sim.network.report import END, START
        from sim.section import page_parts

        page_parts(write, START, END)  # now, not after minutes of measuring
    from rich.console import Console

    from fl.adapters.files import load_adapter
    from fl.adapters.packing import pack_folder
    from sim.network.report import print_study, write_study
    from strategies.app import machine

    base = base or load_adapter(adapter)[1].base_name
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
    with Console(stderr=True).status("measuring") as status:
        study = _measure(packed, samples, links, conditions, running, status.update)
    if write is not None:
        write_study(study, write)
    if as_json:
        print(json.dumps(study.document(), ensure_ascii=False))
    else:
        print_study(study, Console(width=None if sys.stdout.isatty() else 110))
