"""Ways of asking a server, and how long each takes over a link: real bytes through the proxy, one new connection each time.

A device asks as :class:`clients.device.client.DeviceClient` does, but what fails is not tried again: a latency is that of one
exchange. Encoding the audio and storing the adapter are done before the clock starts, since a device encodes while it records.
"""

import time
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

from clients.device.audio import CODECS, Upload, encode_samples
from clients.device.client import DeviceClient
from clients.device.http import RetryPolicy, ServerAddress
from clients.device.settings import DeviceSettings
from fl.packed.header import MAX_PACKED_BYTES
from fl.speech.audio import Waveform
from sim.study.network.links import LinkProfile
from sim.study.network.proxy import LOOPBACK, Traffic, proxied

SECONDS = 600.0  # that one exchange may take, on the slowest link
HANDLE_SECONDS = 3600.0


@dataclass(frozen=True)
class RequestMode:
    """A way of asking. With ``sends_adapter`` each request carries it, otherwise the server holds it behind a handle."""

    name: str
    codec: str
    sends_adapter: bool
    stream: bool = False


MODES = (
    RequestMode("adapter each time, FLAC", "flac", True),
    RequestMode("handle, FLAC", "flac", False),
    RequestMode("handle, Opus", "opus", False),
    RequestMode("handle, Opus, streamed", "opus", False, stream=True),
)


@dataclass(frozen=True)
class TimedAnswer:
    """The text, the seconds to the end of the answer, and those to its first word: the same where nothing was streamed."""

    text: str
    seconds: float
    first_word: float


class AskingDevice:
    """A device's ``folder`` with a packed adapter. Raises :class:`fl.core.errors.AdapterError` for an unsound one."""

    def __init__(self, folder: Path, adapter: bytes) -> None:
        self.folder, self.adapter = folder, adapter
        self.client(1).store.set(adapter, other_base=True)

    def client(self, port: int, *, handles: bool = True) -> DeviceClient:
        """A client of the server on this machine's ``port``, not connected yet. Without ``handles`` it sends the adapter."""
        url = f"http://{LOOPBACK}:{port}"
        settings = DeviceSettings(server=url, budget_bytes=MAX_PACKED_BYTES, handles=handles)
        retry = RetryPolicy(attempts=1, total=SECONDS)
        return DeviceClient(self.folder, settings, ServerAddress(url, timeout=SECONDS), retry=retry)

    def put(self, port: int) -> str:
        """Have the server on ``port`` hold the adapter; returns its handle."""
        with closing(self.client(port)) as client:
            return client.put_adapter(self.adapter)

    def ask(self, port: int, upload: Upload, *, handle: str = "", stream: bool = False) -> TimedAnswer:
        """Ask for a transcript of ``upload`` on a new connection: by ``handle``, or else with the adapter sent along.

        Raises :class:`clients.device.messages.RefusedError` or :class:`clients.device.messages.UnreachableError`.
        """
        words: list[float] = []
        with closing(self.client(port, handles=bool(handle))) as client:
            if handle:
                client.store.remember(client.server.url, self.adapter, handle, HANDLE_SECONDS)
            started = time.perf_counter()
            on_text = (lambda text: words.append(time.perf_counter()) if text else None) if stream else None
            found = client.transcribe(upload, on_text=on_text)
            ended = time.perf_counter()
        return TimedAnswer(found.text, ended - started, (words or [ended])[0] - started)


@dataclass(frozen=True)
class Latency:
    """One way of asking over one link: seconds of each repetition, to the end and to the first word, and the bytes."""

    profile: str
    mode: str
    seconds: tuple[float, ...]
    first_word: tuple[float, ...]
    bytes_up: int
    bytes_down: int
    modelled: float = 0.0


class LatencyProbe:
    """Who asks the server on ``port`` of this machine, ``repeats`` times in each way.

    The server holds the device's adapter from now on; ``audio`` (samples,) at 16 kHz is encoded here, once for each codec.
    """

    def __init__(self, port: int, device: AskingDevice, audio: Waveform, repeats: int, seed: int = 0) -> None:
        self.port, self.device, self.repeats, self.seed = port, device, repeats, seed
        self.handle = device.put(port)
        self.uploads = {codec: encode_samples(audio, codec) for codec in CODECS}

    def measure(self, mode: RequestMode, profile: LinkProfile | None) -> Latency:
        """Ask ``repeats`` times over ``profile``, each time on a new link with the next seed; None is without a link."""
        upload, handle = self.uploads[mode.codec], "" if mode.sends_adapter else self.handle
        answers = []
        traffic = Traffic()
        for seed in range(self.seed, self.seed + self.repeats):
            direct = nullcontext((self.port, traffic))
            with proxied(profile, LOOPBACK, self.port, seed=seed) if profile else direct as (port, traffic):
                answers.append(self.device.ask(port, upload, handle=handle, stream=mode.stream))
        seconds, first_word = zip(*((answer.seconds, answer.first_word) for answer in answers), strict=True)
        name = profile.name if profile else "none"
        return Latency(name, mode.name, seconds, first_word, traffic.bytes_up, traffic.bytes_down)
