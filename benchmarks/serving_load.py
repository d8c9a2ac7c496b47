"""Many thin clients at once on one server: errors, latency and the server's memory over thousands of requests.

    python -m benchmarks.serving_load [--clients 32] [--requests 2000] [--adapters runs/demo/devices/personalized] [--smoke]

Starts ``idiolect serve`` in a process of its own. Each client is a :class:`clients.device.client.DeviceClient` with an adapter of its
own behind a handle, and asks again as soon as it has its answer: recordings of the synthetic population if there are any
adapters that were trained on it, else noise and fresh adapters. Latency is what a client waits, from before it sends to
after it has the text. Memory is the server's resident set after each tenth of the requests.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import soundfile

from benchmarks._report import BenchmarkRow, machine, write_row
from clients.device.audio import Upload, encode_file
from clients.device.client import DeviceClient
from clients.device.http import ServerAddress
from clients.device.settings import DeviceSettings
from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.files import AdapterInfo, save_adapter
from fl.adapters.layer import fresh_adapter
from fl.bases.resolve import load_base
from fl.core.rng import derive_generator
from fl.packed.folder import pack_folder
from fl.speech.audio import SAMPLE_RATE
from sim.study.network.local import served

MOST_SPREAD = 3.0  # p95 against p50
MOST_GROWTH = 1.10  # of memory, from the second tenth to the last


@dataclass
class LoadTally:
    """What the clients saw."""

    left: int
    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> bool:
        """Whether one more request is to be made."""
        with self.lock:
            self.left -= 1
            return self.left >= 0


def packed_adapters(arguments: argparse.Namespace, folder: Path) -> list[bytes]:
    """Trained adapters where there are some, else fresh ones, packed at half precision."""
    found = sorted(arguments.adapters.glob("*/adapter"))
    if found and not arguments.smoke:
        return [pack_folder(path) for path in found]
    base = load_base(arguments.base)
    config = GatedLoraConfig(
        target_modules=target_pattern(("encoder.self", "decoder.self", "decoder.cross")), gate="self", init_seed=1
    )
    info = AdapterInfo(base.name, base.fingerprint, "gates", config, window="trimmed", language="ko")
    save_adapter(folder / "fresh", fresh_adapter(base.model, config), info)
    return [pack_folder(folder / "fresh")]


def uploads(arguments: argparse.Namespace, folder: Path) -> list[Upload]:
    """Recordings of the synthetic population of the demo, or noise of the same length."""
    run = arguments.adapters.parent.parent / "transcripts.jsonl"
    if run.is_file() and not arguments.smoke:
        rows = [json.loads(line) for line in run.read_text(encoding="utf-8").splitlines()]
        paths = sorted({row["audio"] for row in rows if row["arm"] == "personalized"})
        return [encode_file(Path(path)) for path in paths]
    noise = derive_generator(arguments.seed, "audio")
    path = folder / "noise.wav"
    soundfile.write(path, 0.05 * noise.standard_normal(int(2.5 * SAMPLE_RATE)), SAMPLE_RATE)
    return [encode_file(path)]


def ask(number: int, url: str, folder: Path, adapter: bytes, speech: list[Upload], tally: LoadTally) -> None:
    """One client, until nothing is left."""
    client = DeviceClient(folder / f"device-{number}", DeviceSettings(server=url), ServerAddress(url, timeout=300.0))
    client.store.set(adapter)
    turn = number
    while tally.take():
        started = time.perf_counter()
        try:
            client.transcribe(speech[turn % len(speech)])
        except Exception as error:  # counted, whatever it is
            with tally.lock:
                tally.errors.append(f"{type(error).__name__}: {error}")
        else:
            with tally.lock:
                tally.seconds.append(time.perf_counter() - started)
        turn += 7
    client.close()


def server_process(port: int) -> psutil.Process:
    """The child that listens at ``port``."""
    for child in psutil.Process().children(recursive=True):
        if any(c.laddr and c.laddr.port == port and c.status == "LISTEN" for c in child.net_connections("tcp")):
            return child
    raise RuntimeError("the server is not among the children")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="whisper-base")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--adapters", type=Path, default=Path("runs/demo/devices/personalized"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="sizes that only show that it runs; nothing is written")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.base, arguments.clients, arguments.requests = "random:whisper-nano", 3, 12
    return arguments


def main() -> int:
    """Measure, write ``benchmarks/results/serving_load_*.json``; 1 where a target is missed or a request failed."""
    arguments = parse_arguments()
    tally = LoadTally(arguments.requests)
    memory: list[int] = []
    with tempfile.TemporaryDirectory() as name, served(arguments.base) as port:
        folder, url = Path(name), f"http://127.0.0.1:{port}"
        adapters, speech = packed_adapters(arguments, folder), uploads(arguments, folder)
        server = server_process(port)
        started = time.perf_counter()
        threads = [
            threading.Thread(target=ask, args=(i, url, folder, adapters[i % len(adapters)], speech, tally))
            for i in range(arguments.clients)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.2)
            done = len(tally.seconds) + len(tally.errors)
            while len(memory) < 10 * done // arguments.requests:
                memory.append(server.memory_info().rss)
                print(
                    f"{done:>6} requests, {memory[-1] / 2**20:,.0f} MiB, {done / (time.perf_counter() - started):.1f} / s",
                    flush=True,
                )
        spent = time.perf_counter() - started
    p50, p95 = (float(np.percentile(tally.seconds, q)) for q in (50, 95))
    growth = memory[-1] / memory[1]
    conditions = {
        **{name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()},
        "p50_seconds": round(p50, 3),
        "p95_seconds": round(p95, 3),
        "requests_a_second": round(len(tally.seconds) / spent, 2),
        "errors": len(tally.errors),
        "memory_mib": [round(value / 2**20) for value in memory],
        "machine": machine(("fastapi", "uvicorn")),
    }
    rows = [
        BenchmarkRow(
            "serving_load_latency",
            round(p95, 3),
            "seconds at the 95th percentile",
            round(p95 / p50, 2),
            MOST_SPREAD,
            conditions,
            True,
        ),
        BenchmarkRow(
            "serving_load_memory",
            round(memory[-1] / 2**20),
            "MiB of the server at the end",
            round(growth, 3),
            MOST_GROWTH,
            conditions,
            True,
        ),
    ]
    print(
        f"{len(tally.seconds)} answers, {len(tally.errors)} errors {tally.errors[:3]}; p50 {p50:.2f} s, p95 {p95:.2f} s"
    )
    for row in rows:
        print(f"{row.name:>22}: {row.ratio} (at most {row.target}: {'met' if row.met else 'MISSED'})")
        if not arguments.smoke:
            write_row(row)
    return 0 if all(row.met for row in rows) and not tally.errors else 1


if __name__ == "__main__":
    sys.exit(main())
