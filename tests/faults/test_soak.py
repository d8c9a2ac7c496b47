"""Rounds with faults and a server under mixed load, again and again: memory, file handles, threads and temporary files stay flat."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.reliability import InjectionRow, store

ROOT = Path(__file__).parents[2]
SEED = 21
PARTS = ("memory", "handles", "threads", "litter")
SLACK = {"memory": 1.05, "handles": 1.0, "threads": 1.0, "litter": 1.0}  # of the most in the first quarter
MORE = {
    "memory": 24 << 20,
    "handles": 4,
    "threads": 2,
    "litter": 0,
}  # an allocator's arenas, sockets that are being closed


def usage(process: subprocess.Popen[str], temporary: Path) -> dict[str, int]:
    """What a process holds now, and the temporary files that it left."""
    proc = Path(f"/proc/{process.pid}")
    status = dict(re.findall(r"(VmRSS|Threads):\s+(\d+)", (proc / "status").read_text()))
    litter = sum(1 for path in temporary.rglob("*") if path.is_file())
    handles = len(list((proc / "fd").iterdir()))
    return dict(zip(PARTS, (1024 * int(status["VmRSS"]), handles, int(status["Threads"]), litter), strict=True))


def flac(seconds: float, seed: int) -> bytes:
    buffer = io.BytesIO()
    noise = 0.1 * np.random.default_rng(seed).standard_normal(int(16_000 * seconds))
    soundfile.write(buffer, noise.clip(-1, 1).astype(np.float32), 16_000, format="FLAC")
    return buffer.getvalue()


def form(file: bytes) -> tuple[bytes, dict[str, str]]:
    mark = "soak-0123456789"
    head = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="a.flac"\r\n\r\n'.encode()
    return head + file + f"\r\n--{mark}--\r\n".encode(), {"Content-Type": f"multipart/form-data; boundary={mark}"}


def mixed_load(port: int, generator: random.Random) -> int:
    """One of each: speech, no speech, half a form, a caller who leaves, a path that is none; returns how many were right."""
    body, headers = form(flac(0.3 + 0.7 * generator.random(), generator.randrange(1 << 30)))
    noise, _ = form(generator.randbytes(2_000))
    right = 0
    for content, path, expected in (
        (body, "/v1/audio/transcriptions", (200,)),
        (noise, "/v1/audio/transcriptions", (400, 415, 422)),
        (body[:-40], "/v1/audio/transcriptions", (400, 422)),
        (body, "/v1/nothing", (404, 405)),
    ):
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        client.request("POST", path, content, headers)
        answer = client.getresponse()
        answer.read()
        assert answer.status in expected, (path, answer.status)
        right += 1
        client.close()
    with socket.create_connection(("127.0.0.1", port)) as leaving:
        leaving.sendall(b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\nhalf")
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    client.request("GET", "/metrics")  # answers, so the server has seen all of the above
    client.getresponse().read()
    client.close()
    return right + 1


@contextlib.contextmanager
def processes(folder: Path) -> Iterator[tuple[subprocess.Popen[str], subprocess.Popen[str], int]]:
    """The rounds' process, the server's and its port, with temporary folders of their own."""
    found = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "IDIOLECT_HOME": str(folder / "home")}
    found["MALLOC_ARENA_MAX"] = "2"
    for name in ("rounds", "server"):
        (folder / f"tmp-{name}").mkdir()
    with (folder / "log").open("w") as log:
        rounds = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "killing" / "rounds.py")], text=True, cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env={**found, "TMPDIR": str(folder / "tmp-rounds")},
        )  # fmt: skip
        command = ["-m", "sim.cli.app", "serve", "--base", "random:whisper-nano", "--no-auth", "--port", "0",
                   "--requests-per-minute", "0"]  # fmt: skip
        server = subprocess.Popen(
            [sys.executable, *command], text=True, cwd=ROOT, stderr=(folder / "server.log").open("w"),
            stdout=subprocess.DEVNULL, env={**found, "TMPDIR": str(folder / "tmp-server")},
        )  # fmt: skip
        try:
            while not (ready := re.search(r"http://127\.0\.0\.1:(\d+)", (folder / "server.log").read_text())):
                assert server.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.2)
            yield rounds, server, int(ready[1])
        finally:
            for process in (rounds, server):
                process.kill()
                process.wait()


def soak(folder: Path, manifest: Path, go_on: Callable[[int], bool]) -> tuple[int, int, list[str]]:
    """Cycles of a failing run, its resumption and requests until ``go_on`` ends; faults, requests and what grew."""
    generator, seen, faults, requests = random.Random(SEED), [], 0, 0
    config = {
        "base": "random:whisper-nano", "language": "ko", "rank": 2, "gate": "self", "rounds": 2, "local-steps": 1, "batch-size": 2,
        "arms": "personalized", "private-share": 0.5, "evaluate-every": 0, "manifest": str(manifest), "new-people": 0,
    }  # fmt: skip
    with processes(folder) as (rounds, server, port):
        assert rounds.stdin is not None
        assert rounds.stdout is not None
        cycle = 0
        while go_on(cycle):
            output = folder / "run"
            job = {"config": {**config, "output": str(output)}, "fail": generator.randint(1, 60)}
            print(json.dumps(job), file=rounds.stdin, flush=True)
            requests += mixed_load(port, generator)
            answer = rounds.stdout.readline()
            assert answer, (folder / "log").read_text()[-3000:]
            faults += bool(json.loads(answer)["said"])
            assert not [path for path in output.rglob(".*") if path.is_file()]
            shutil.rmtree(output)
            seen.append([usage(rounds, folder / "tmp-rounds"), usage(server, folder / "tmp-server")])
            cycle += 1
    grew = []
    warm, late = seen[1 : max(2, len(seen) // 4 + 1)], seen[len(seen) // 2 :]
    for place, name in enumerate(("rounds", "server")):
        for part in PARTS:
            most, later = (max(sample[place][part] for sample in some) for some in (warm, late))
            if later > most * SLACK[part] + MORE[part]:
                grew.append(f"{name}: {part} grew from {most:,} to {later:,}")
    return faults, requests, grew


def test_nothing_grows_over_rounds_with_faults_and_a_server_under_mixed_load(
    tmp_path: Path, noise_manifest: Callable[..., Path]
) -> None:
    faults, requests, grew = soak(tmp_path, noise_manifest(["ann", "bob"], 4), lambda cycle: cycle < 6)
    assert faults > 0
    assert requests == 30
    assert not grew


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_nothing_grows_in_half_an_hour(tmp_path: Path, noise_manifest: Callable[..., Path]) -> None:
    """``make soak``."""
    end = time.monotonic() + 60 * float(os.environ.get("SOAK_MINUTES", "30"))
    cycles = 0

    def go_on(cycle: int) -> bool:
        nonlocal cycles
        cycles = cycle
        return cycle < 12 or time.monotonic() < end

    faults, requests, grew = soak(tmp_path, noise_manifest(["ann", "bob"], 4), go_on)
    store(
        InjectionRow(
            "soak",
            "a disk that fails at a random write of a run, beside a server under mixed load",
            faults + requests,
            faults + requests,
            len(grew),
            (SEED,),
            "make soak",
            f"{cycles} cycles: {faults} runs that failed and were resumed, {requests} requests (speech, noise, half forms, leavers); "
            "memory, handles, threads and temporary files of the second half against the first quarter",
        )
    )
    assert not grew
