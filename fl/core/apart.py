"""Parsers of foreign files in a process of their own: one that crashes, runs on or takes all memory ends there, as a typed error.

:class:`Apart` starts ``python -m fl.core.apart MODULE:CLASS`` when it is first asked and again after a death. The child makes one
object of that class and runs its methods, which are generators of JSON values and bytes. Only these come back, so that a parser
which was taken over by its file has no way to hand over objects.
"""

import importlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import IO, Any

from fl.core.errors import IdiolectError

MEMORY_BYTES = 4 << 30  # of the child, mapped files not counted
CPU_SECONDS = 600  # from one value to the next
MAX_FRAME_BYTES = 1 << 30
_FRAME = struct.Struct(">cQ")  # kind, bytes of the payload
_VALUE, _BYTES, _END, _ERROR = b"v", b"b", b"e", b"!"
_OWN = {kind.__name__: kind for kind in IdiolectError.__subclasses__()}


class Apart:
    """The methods of ``target`` ("module:Class"), run in a child with limits; use it as a context manager.

    What dies, and any error that is not one of ours, becomes ``error`` and names what was being read.
    """

    def __init__(self, target: str, error: type[IdiolectError], *, memory_bytes: int = MEMORY_BYTES) -> None:
        self._target, self._error, self._memory = target, error, memory_bytes
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Apart":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child, whatever it is doing."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def ask(self, source: object, method: str, *arguments: Any) -> Iterator[Any]:
        """What ``method`` yields. ``source`` is the file that a message names."""
        child = self._child = self._child or self._start()
        whole = False
        try:
            with suppress(BrokenPipeError):  # a child that died is noticed below
                _write(child.stdin, _VALUE, json.dumps([method, *arguments]).encode())
            for kind, payload in _frames(child.stdout):
                whole = kind in (_END, _ERROR)
                if kind == _END:
                    return
                if kind == _ERROR:
                    name, text = json.loads(payload)
                    raise _OWN[name](text) if name in _OWN else self._error(f"{source}: {text}")
                yield payload if kind == _BYTES else json.loads(payload)
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
        return subprocess.Popen(
            [sys.executable, "-m", "fl.core.apart", self._target, str(self._memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )


def _write(file: IO[bytes] | None, kind: bytes, payload: bytes = b"") -> None:
    assert file is not None
    file.write(_FRAME.pack(kind, len(payload)))
    file.write(payload)
    file.flush()


def _frames(file: IO[bytes] | None) -> Iterator[tuple[bytes, bytes]]:
    """Kind and payload of each frame, until the other end is gone."""
    assert file is not None
    while len(head := file.read(_FRAME.size)) == _FRAME.size:
        kind, size = _FRAME.unpack(head)
        if size > MAX_FRAME_BYTES or len(payload := file.read(size)) < size:
            return
        yield kind, payload


def _limit(kind: int, limit: int) -> None:
    with suppress(ValueError):  # a limit from outside that is lower stays
        resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))


def _allow_seconds() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + CPU_SECONDS)


def _serve(target: str, memory_bytes: int) -> None:
    """The child: answer what is asked on standard input until it ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    module, _, name = target.partition(":")
    reader = getattr(importlib.import_module(module), name)()
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_DATA, memory_bytes)
    for _, payload in _frames(sys.stdin.buffer):
        method, *arguments = json.loads(payload)
        try:
            _allow_seconds()
            for value in getattr(reader, method)(*arguments):
                if isinstance(value, bytes):
                    _write(answers, _BYTES, value)
                else:
                    _write(answers, _VALUE, json.dumps(value, default=str).encode())
                _allow_seconds()
            _write(answers, _END)
        except IdiolectError as error:
            _write(answers, _ERROR, json.dumps([type(error).__name__, str(error)]).encode())
        except MemoryError:
            text = f"needs more than {memory_bytes / 2**30:g} GiB of memory to be read: it is damaged or crafted"
            _write(answers, _ERROR, json.dumps(["", text]).encode())
        except Exception as error:  # whatever a parser of others raises
            text = (
                f"is damaged or crafted ({type(error).__name__}: {str(error)[:200]}); fetch it again, or leave it out"
            )
            _write(answers, _ERROR, json.dumps(["", text]).encode())


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
