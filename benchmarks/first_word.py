"""Seconds from asking to the first word of a transcript: a thin client, a server with an adapter of its own, 3 s of speech.

    python -m benchmarks.first_word [--requests 10] [--smoke]

Starts ``idiolect serve`` in a process of its own and asks one request after the other over HTTP, with a streamed answer and the
adapter behind a handle. The first word is there when the text so far has a space behind a word, or is the whole transcript.
The first request, which also sends the adapter, is not counted; its time stands among the conditions.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import soundfile

from benchmarks._report import BenchmarkRow, machine, spread, write_row
from benchmarks.serving_load import packed_adapters
from clients.device.audio import Upload, encode_file
from clients.device.client import DeviceClient
from clients.device.http import ServerAddress
from clients.device.settings import DeviceSettings
from fl.data.manifest import read_manifest
from fl.data.synthetic import synthesize
from sim.study.network.local import served

TARGET_SECONDS = 0.6  # with matrix units for bfloat16; without them it is only measured


@dataclass(frozen=True)
class Waited:
    """Seconds of one request until the first text, the first word, and the whole transcript."""

    text: float
    word: float
    whole: float


def ask(client: DeviceClient, upload: Upload) -> Waited:
    """One streamed request."""
    started = time.perf_counter()
    texts: list[tuple[float, str]] = []
    client.transcribe(upload, on_text=lambda text: texts.append((time.perf_counter() - started, text)))
    whole = time.perf_counter() - started
    word = next((when for when, text in texts if len(text.split(maxsplit=1)) > 1), whole)
    return Waited(texts[0][0] if texts else whole, word, whole)


def speech(folder: Path, seconds: float) -> Upload:
    """The synthetic utterance whose length is closest to ``seconds``."""
    manifest = synthesize(folder / "speech", pair="ko-en", devices=1, new_people=0, sentences=12, seed=0)
    paths = {utterance.audio for utterance in read_manifest(manifest)}
    return encode_file(min(paths, key=lambda path: (abs(soundfile.info(path).duration - seconds), path)))


def main() -> int:
    """Measure, write ``benchmarks/results/first_word.json``; 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="whisper-base")
    parser.add_argument("--seconds", type=float, default=3.0, help="of speech")
    parser.add_argument("--adapters", type=Path, default=Path("runs/demo/devices/personalized"))
    parser.add_argument("--requests", type=int, default=10)
    parser.add_argument("--smoke", action="store_true", help="sizes that only show that it runs; nothing is written")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.base, arguments.requests = "random:whisper-nano", 2
    with tempfile.TemporaryDirectory() as name, served(arguments.base) as port:
        folder, url = Path(name), f"http://127.0.0.1:{port}"
        upload = speech(folder, arguments.seconds)
        client = DeviceClient(folder / "device", DeviceSettings(server=url), ServerAddress(url, timeout=300.0))
        client.store.set(packed_adapters(arguments, folder)[0])
        first = ask(client, upload)
        found = [ask(client, upload) for _ in range(arguments.requests)]
        client.close()
    words = spread([one.word for one in found])
    row = BenchmarkRow(
        name="first_word",
        value=float(words["median"]),
        unit="s to the first word",
        ratio=float(words["median"]),
        target=TARGET_SECONDS,
        conditions={
            "base": arguments.base,
            "seconds": arguments.seconds,
            "spread": words,
            "seconds_to_first_text": round(statistics.median(one.text for one in found), 3),
            "seconds_to_transcript": round(statistics.median(one.whole for one in found), 3),
            "first_request_seconds": round(first.word, 3),
            "machine": machine(("fastapi", "uvicorn")),
        },
        at_most=True,
    )
    print(f"first_word: {row.value:.2f} s (at most {row.target:g}: {'met' if row.met else 'MISSED'})")
    print({name: row.conditions[name] for name in row.conditions if name.startswith(("seconds_to", "first_"))})
    if not arguments.smoke:
        write_row(row)
    return 0 if row.met or arguments.smoke else 1


if __name__ == "__main__":
    sys.exit(main())
