"""Decoding of foreign audio in a process of its own with bounds of memory and time: a file that was made to break a decoder ends
that process, and no other.

The two speak over a socket, in frames of a letter and a length. For each file: the file; its header back; ``y`` or ``n``; its
samples a second at a time, each with how many frames are decoded. The process imports little, keeps nothing, and can write no file.
"""

import io
import json
import math
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from fl.core.errors import AudioError, IdiolectError
from fl.speech.mono import SAMPLE_RATE, Mono, Waveform
from fl.speech.sound import open_sound

MEMORY = 384 * 2**20  # bytes of address space beside a few copies of the file; the libraries take half of it
PER_CPU_SECOND = 20  # seconds of audio; slow formats are decoded ten times as fast
SPARE_CPU_SECONDS = 10
MOST = 2**20  # bytes that are believed of it at once: more than a second of samples
_NAME = "recording"  # what the process calls a file
PATIENCE = 120.0  # seconds without a sign of life that are taken for death
_HEAD, _DECODED = struct.Struct("<cQ"), struct.Struct("<q")


@dataclass(frozen=True)
class AudioHeader:
    """What a file claims to be, or, where its header cannot be believed, what is decoded of it so far."""

    rate: int
    channels: int
    frames: int | None

    @property
    def seconds(self) -> float:
        """Of audio."""
        return (self.frames or 0) / max(1, self.rate)


class Decoder:
    """One process, started when it is needed and again where it died. It decodes one file at a time, of at most ``max_bytes`` and
    ``max_seconds``."""

    def __init__(self, max_bytes: int, max_seconds: float) -> None:
        self._bounds = (MEMORY + 4 * max_bytes, math.ceil(SPARE_CPU_SECONDS + max_seconds / PER_CPU_SECOND))
        self.process: subprocess.Popen[bytes] | None = None

    def decode(self, data: bytes, accept: Callable[[AudioHeader], None], source: str) -> Waveform:
        """Samples at 16 kHz, mono. ``accept`` may refuse what the header claims, by raising, before anything is decoded; a header
        that says no length comes again and again, with what is decoded so far.

        Raises :class:`AudioError`, beginning with ``source``, for what is no audio or costs more than it may.
        """
        try:
            return self._decode(data, accept, source)
        except (OSError, EOFError, ValueError, TypeError):
            self.close()
            reason = "cannot be decoded within the memory and time that one file has; record or convert it again"
            raise AudioError(f"{source}: {reason}") from None

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            with suppress(OSError):  # what it did not read is dropped
                self._stream.close()

    def _decode(self, data: bytes, accept: Callable[[AudioHeader], None], source: str) -> Waveform:
        if self.process is None:
            self._start()
        _write(self._stream, b"F", data)
        header = AudioHeader(*json.loads(self._next(b"H", source)))
        try:
            accept(header)
        except IdiolectError:
            _write(self._stream, b"n", b"")
            raise
        _write(self._stream, b"y", b"")
        blocks, left = [], None if header.frames is None else header.seconds + 1.0
        while block := self._next(b"S", source):
            blocks.append(np.frombuffer(block, np.float32, offset=_DECODED.size))
            if left is None:
                try:
                    accept(replace(header, frames=_DECODED.unpack_from(block)[0]))
                except IdiolectError:
                    self.close()  # in the middle of a file
                    raise
            elif (left := left - len(blocks[-1]) / SAMPLE_RATE) < 0:
                raise EOFError
        return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)

    def _next(self, kind: bytes, source: str) -> bytes:
        found, data = _read(self._stream, MOST)
        if found == b"E":
            raise AudioError(f"{source}: {data.decode()}")
        if found != kind:
            raise EOFError
        return data

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, *map(str, self._bounds)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env={  # no secret of ours
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""),
                    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
                },
                start_new_session=True,  # Ctrl-C is the server's
            )
        with ours:  # the stream keeps it open
            self._stream = ours.makefile("rwb")


def _write(stream: io.BufferedRWPair, kind: bytes, data: bytes) -> None:
    stream.write(_HEAD.pack(kind, len(data)))
    stream.write(data)
    stream.flush()


def _read(stream: io.BufferedRWPair, most: int = 2**63) -> tuple[bytes, bytes]:
    kind, size = _HEAD.unpack(_exactly(stream, _HEAD.size))
    if size > most:
        raise EOFError
    return kind, _exactly(stream, size)


def _exactly(stream: io.BufferedRWPair, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _serve(memory: int, seconds: int) -> None:
    """The process: one file after another until the other end is closed."""
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(kind, (most, most))
    with socket.socket(fileno=os.dup(0)) as ours, ours.makefile("rwb") as stream, suppress(EOFError, BrokenPipeError):
        while True:
            _, data = _read(stream)
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + seconds, resource.RLIM_INFINITY))
            try:
                with open_sound(io.BytesIO(data), _NAME) as sound:
                    frames = None if sound.frames is None else max(0, sound.frames)
                    _write(stream, b"H", json.dumps([sound.rate, sound.channels, frames]).encode())
                    if _read(stream)[0] == b"n":
                        continue
                    for block in (mono := Mono(sound, _NAME)):
                        _write(stream, b"S", _DECODED.pack(mono.decoded) + block.tobytes())
                _write(stream, b"S", b"")
            except AudioError as error:
                _write(stream, b"E", str(error).removeprefix(f"{_NAME}: ").encode()[: MOST // 2])
            except (RuntimeError, ValueError, TypeError, MemoryError) as error:
                _write(stream, b"E", f"cannot be read as audio ({type(error).__name__})".encode())


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
