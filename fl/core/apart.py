"""Parsers of foreign files in a process of their own: one that crashes, runs on or takes all memory ends there, as a typed error.

:class:`Apart` starts ``python -m fl.core.apart MODULE:CLASS`` when it is first asked and again after a death. The child makes one
object of that class and runs its methods, which are generators of JSON values and bytes. Only these come back, so that a parser
which was taken over by its file has no way to hand over objects. It knows nothing of the environment but where modules are.
"""

import importlib
import json
import math
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from io import BufferedRWPair
from types import TracebackType
from typing import IO, Any, Self

from fl.core.errors import IdiolectError

Stream = IO[bytes] | BufferedRWPair
_FRAME = struct.Struct(">cQ")  # kind, bytes of the payload
_VALUE, _BYTES, _END, _ERROR = b"v", b"b", b"e", b"!"
_OWN = {kind.__name__: kind for kind in IdiolectError.__subclasses__()}


@dataclass(frozen=True)
class Bounds:
    """What a child may take. For a ``stranger``, whose file a server reads, it also may write no file, memory counts as address
    space, and ``cpu_seconds`` are those of a whole answer."""

    memory_bytes: int = 4 << 30  # mapped files not counted
    cpu_seconds: int = 600  # from one value to the next
    frame_bytes: int = 1 << 30  # that are believed of it at once
    silent_seconds: float | None = None  # without a sign of life, which are taken for death
    stranger: bool = False


class Apart:
    """The methods of ``target`` ("module:Class"), run in a child with limits; use it as a context manager.

    What dies, and any error that is not one of ours, becomes ``error`` and names what was being read.
    """

    def __init__(self, target: str, error: type[IdiolectError], bounds: Bounds = Bounds()) -> None:
        self._target, self._error, self._bounds = target, error, bounds
        self.child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child, whatever it is doing."""
        child, self.child = self.child, None
        if child is not None:
            child.kill()
            child.wait()
            with suppress(OSError):  # what it did not read is dropped
                self._stream.close()

    def ask(self, source: object, method: str, *arguments: Any) -> Generator[Any, None, None]:
        """What ``method`` yields. ``source`` is the file that a message names; of ``arguments`` bytes go before all others."""
        child = self.child = self.child or self._start()
        whole = False
        try:
            with suppress(OSError):  # a child that died is noticed below
                for data in (value for value in arguments if isinstance(value, bytes)):
                    _write(self._stream, _BYTES, data)
                plain = [value for value in arguments if not isinstance(value, bytes)]
                _write(self._stream, _VALUE, json.dumps([method, *plain]).encode())
            for kind, payload in _frames(self._stream, self._bounds.frame_bytes):
                whole = kind in (_END, _ERROR)
                if kind == _END:
                    return
                try:
                    value = payload if kind == _BYTES else json.loads(payload)
                    name, text = value if kind == _ERROR else ("", "")
                except (ValueError, TypeError):  # whoever took it over may send anything
                    whole = False
                    break
                if kind == _ERROR:
                    raise _OWN[name](text) if name in _OWN else self._error(f"{source}: {text}")
                yield value
            child.kill()  # it is dead, or has sent what is no answer
            code = child.wait()
            end = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise self._error(
                f"{source}: the process that read it ended with {end}: the file is damaged or crafted; fetch it again, "
                "or leave it out"
            )
        finally:
            if not whole:
                self.close()

    def one(self, source: object, method: str, *arguments: Any) -> Any:
        """The only value that ``method`` yields."""
        (value,) = self.ask(source, method, *arguments)
        return value

    def _start(self) -> subprocess.Popen[bytes]:
        ours, theirs = socket.socketpair()
        ours.settimeout(self._bounds.silent_seconds)
        with ours, theirs:  # the stream keeps ours open
            self._stream = ours.makefile("rwb")
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "fl.core.apart", self._target, json.dumps(astuple(self._bounds))],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env={  # no secret of ours
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""),
                    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
                },
                start_new_session=True,  # Ctrl-C is ours
            )


def _write(file: Stream, kind: bytes, payload: bytes = b"") -> None:
    file.write(_FRAME.pack(kind, len(payload)))
    file.write(payload)
    file.flush()


def _frames(file: Stream, most: int) -> Iterator[tuple[bytes, bytes]]:
    """Kind and payload of each frame, until the other end is gone, or silent for too long."""
    with suppress(OSError):
        while len(head := file.read(_FRAME.size)) == _FRAME.size:
            kind, size = _FRAME.unpack(head)
            if size > most or len(payload := file.read(size)) < size:
                return
            yield kind, payload


def _limit(kind: int, limit: int, most: int | None = None) -> None:
    """For good, or such that it may be raised again up to ``most``."""
    with suppress(ValueError):  # a limit from outside that is lower stays
        resource.setrlimit(kind, (limit, limit if most is None else most))


def _allow(seconds: int) -> None:
    """So much processor time from now on."""
    kind = resource.RLIMIT_CPU
    _limit(kind, math.ceil(time.process_time()) + seconds, resource.getrlimit(kind)[1])


def _serve(target: str, bounds: Bounds) -> None:
    """The child: answer what is asked on standard input until it ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(2, 1)  # what a library prints is no answer
    module, _, reads = target.partition(":")
    reader = getattr(importlib.import_module(module), reads)()
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS if bounds.stranger else resource.RLIMIT_DATA, bounds.memory_bytes)
    if bounds.stranger:
        _limit(resource.RLIMIT_FSIZE, 0)
    data: list[bytes] = []
    for kind, payload in _frames(sys.stdin.buffer, 1 << 30):
        if kind == _BYTES:
            data.append(payload)
            continue
        method, *plain = json.loads(payload)
        arguments, data, name = [*data, *plain], [], ""
        try:
            _allow(bounds.cpu_seconds)
            for value in getattr(reader, method)(*arguments):
                if isinstance(value, bytes):
                    _write(answers, _BYTES, value)
                else:
                    _write(answers, _VALUE, json.dumps(value, default=str).encode())
                if not bounds.stranger:
                    _allow(bounds.cpu_seconds)
            _write(answers, _END)
            continue
        except IdiolectError as error:
            name, text = type(error).__name__, str(error)
        except MemoryError:
            text = f"needs more than {bounds.memory_bytes / 2**30:g} GiB of memory to be read: it is damaged or crafted"
        except Exception as error:  # whatever a parser of others raises
            fault = f"{type(error).__name__}: {str(error)[:200]}"
            text = f"is damaged or crafted ({fault}); fetch it again, or leave it out"
        _write(answers, _ERROR, json.dumps([name, text]).encode())


if __name__ == "__main__":
    _serve(sys.argv[1], Bounds(*json.loads(sys.argv[2])))
