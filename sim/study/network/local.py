"""The two ends of the comparison as processes: one that holds the base, one that asks a server, and the server.

Each runs in a process of its own, so that its memory is its own. The process that holds the base transcribes with the
server's engine (:mod:`fl.serving.engine.engine`), one request at a time and without HTTP: what differs is the network alone.
"""

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from sim.study.network.links import NetworkError
from sim.study.network.proxy import LOOPBACK

START_SECONDS = 180.0  # for a server to load its base, converting it first where that was never done
STOP_SECONDS = 30.0
SERVE = ("-P", "-m", "sim.cli.app", "serve")


@dataclass(frozen=True)
class ProcessCost:
    """Seconds of each repetition on this machine, and the largest resident memory of the process in bytes."""

    seconds: tuple[float, ...]
    peak_bytes: int


def process_cost(what: str, where: object, audio: Path, adapter: Path, repeats: int) -> ProcessCost:
    """What transcribing ``audio`` with the packed ``adapter`` costs a device, in seconds without loading.

    One that is to ``hold`` has the base ``where``, one that is to ``ask`` sends both to the server on this machine's port ``where``.
    """
    command = [sys.executable, "-P", "-m", __name__, what, *map(str, (where, audio, adapter, repeats))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise NetworkError(f"measuring a device that is to {what} failed: {last[0]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return ProcessCost(tuple(found["seconds"]), int(found["peak_bytes"]))


@contextmanager
def served(base: str) -> Iterator[int]:
    """``idiolect serve`` with ``base`` on a free port of this machine, without tokens; the port, once it answers."""
    with socket.create_server((LOOPBACK, 0)) as free:
        port = int(free.getsockname()[1])
    command = [sys.executable, *SERVE, "--base", base, "--host", LOOPBACK, "--port", str(port), "--no-auth"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _healthy(port):
            if process.poll() is not None:
                raise NetworkError(f"the server ended with status {process.returncode}: try, {' '.join(command[3:])}")
            if time.monotonic() > deadline:
                raise NetworkError(f"no answer of the server in {START_SECONDS:.0f} s: is base {base!r} that large?")
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _healthy(port: int) -> bool:
    with closing(HTTPConnection(LOOPBACK, port, timeout=5)) as connection, suppress(OSError, HTTPException):
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    return False


def _hold(base_name: str, audio: Path, adapter: bytes, repeats: int) -> list[float]:
    from fl.bases.resolve import load_base
    from fl.serving.engine.adapters import admit
    from fl.serving.engine.engine import BatchEngine, EngineSettings
    from fl.serving.engine.requests import Request
    from fl.speech.audio import load_audio

    base = load_base(base_name)
    samples, served_adapter = load_audio(audio), admit(adapter, base)
    seconds = []
    with closing(BatchEngine(base, EngineSettings())) as engine:
        for _ in range(repeats + 1):  # the first one warms up
            started = time.perf_counter()
            engine.submit(Request(samples, served_adapter)).result()
            seconds.append(time.perf_counter() - started)
    return seconds[1:]


def _ask(port: str, audio: Path, adapter: bytes, repeats: int) -> list[float]:
    from clients.device.audio import encode_file
    from sim.study.network.latency import AskingDevice

    with tempfile.TemporaryDirectory() as folder:
        device = AskingDevice(Path(folder), adapter)
        upload = encode_file(audio)
        return [device.ask(int(port), upload).seconds for _ in range(repeats)]


def _peak_bytes() -> int:
    """The largest resident memory of this process since it began, 0 where the system does not tell.

    Not ``ru_maxrss``: on Linux a process that a large one starts inherits that one's.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


# hold BASE AUDIO ADAPTER REPEATS, or ask PORT AUDIO ADAPTER REPEATS; prints the cost as JSON
if __name__ == "__main__":
    what, where, audio, adapter, repeats = sys.argv[1:]
    seconds = {"hold": _hold, "ask": _ask}[what](where, Path(audio), Path(adapter).read_bytes(), int(repeats))
    print(json.dumps({"seconds": seconds, "peak_bytes": _peak_bytes()}))
