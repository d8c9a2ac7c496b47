"""Ways of asking a server, and how long each takes over a link: real bytes through the proxy, one new connection each time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clients.device.audio import CODECS, Upload, encode_samples
from fl.speech.audio import Waveform
from sim.network.client import Answer, Device
from sim.network.links import LinkProfile
from sim.network.proxy import LOOPBACK, proxied


@dataclass(frozen=True)
class Mode:
    """A way of asking. With ``sends_adapter`` each request carries it, otherwise the server holds it behind a handle."""

    name: str
    codec: str
    sends_adapter: bool
    stream: bool = False


MODES = (
    Mode("adapter each time, FLAC", "flac", True),
    Mode("handle, FLAC", "flac", False),
    Mode("handle, Opus", "opus", False),
    Mode("handle, Opus, streamed", "opus", False, stream=True),
)


@dataclass(frozen=True)
class Latency:
    """One way of asking over one link: seconds of each repetition, to the end and to the first word, and what was sent."""

    profile: str
    mode: str
    seconds: tuple[float, ...]
    first_word: tuple[float, ...]
    bytes_up: int
    bytes_down: int
    modelled: float = 0.0


@dataclass(frozen=True)
class Server:
    """The server on a port of this machine, and who asks it what: ``uploads`` by codec, ``handle`` of the device's adapter."""

    port: int
    device: Device
    handle: str
    uploads: Mapping[str, Upload]
    repeats: int
    seed: int = 0

    @classmethod
    def prepare(cls, port: int, device: Device, audio: Waveform, repeats: int, seed: int) -> Server:
        """Have the server hold the device's adapter, and encode ``audio`` (samples,) at 16 kHz once for each codec."""
        uploads = {codec: encode_samples(audio, codec) for codec in CODECS}
        return cls(port, device, device.put(port), uploads, repeats, seed)

    def measure(self, mode: Mode, profile: LinkProfile | None) -> Latency:
        """Ask ``repeats`` times over ``profile``, each time on a new link with the next seed; None is without a link."""
        upload, handle = self.uploads[mode.codec], "" if mode.sends_adapter else self.handle
        answers: list[Answer] = []
        up = down = 0
        for repeat in range(self.repeats):
            if profile is None:
                answers.append(self.device.ask(self.port, upload, handle=handle, stream=mode.stream))
                continue
            with proxied(profile, LOOPBACK, self.port, seed=self.seed + repeat) as (port, traffic):
                answers.append(self.device.ask(port, upload, handle=handle, stream=mode.stream))
            up, down = traffic.bytes_up, traffic.bytes_down
        return Latency(
            profile.name if profile else "none",
            mode.name,
            tuple(answer.seconds for answer in answers),
            tuple(answer.first_word for answer in answers),
            up,
            down,
        )
