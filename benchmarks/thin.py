"""What the client of a thin device needs: resident memory, time to import, bytes of its adapter.

    python -m benchmarks.thin [--seconds 3] [--repeats 5] [--smoke]

Each figure comes from new processes, with everything that a use needs: the memory from one that has set nothing up before,
reads a file, encodes it, puts an adapter with self gates at a stub server on the loopback address, streams a transcript and is then
asked for its largest resident size so far. The import time is of ``clients.device.cli``, Python's own start left out; the median
counts, and that of numpy alone stands beside it.
The adapter is one of whisper-base with gates (rank 8, self gates on q, k, v, out of all attention) with random
values, packed in each precision.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from benchmarks._report import BenchmarkRow, machine, spread, write_row
from benchmarks.stub_server import StubServer
from clients.device.settings import DeviceSettings, initialize
from clients.device.store import AdapterStore
from fl.packed.blob import PackedInfo, pack
from fl.packed.header import CODES, Dtype

MIB = 2**20
TARGET_MIB, TARGET_IMPORT_SECONDS = 60.0, 0.3
TARGET_ADAPTER_MIB = {"float16": 2.0, "int8": 1.0}
D_MODEL, LAYERS, RANK = 512, 6, 8  # whisper-base
SAMPLE_RATES = (16_000, 44_100)  # the second needs soxr too

# In a process of its own. VmHWM is the largest resident size that it ever had, in KiB.
TRANSCRIBE = """
import sys
sys.argv = ["idiolect", "device", "transcribe", *{words!r}]
from sim.cli.entry import main
try:
    main()
except SystemExit as end:
    assert end.code == 0, end.code
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print("\\n" + status["VmHWM"].split()[0], status["VmRSS"].split()[0])
"""
IMPORT = """
import time
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"a process failed: {done.stderr}")
    return done.stdout.splitlines()[-1]


def default_adapter(dtype: Dtype) -> bytes:
    generator = np.random.default_rng(0)
    blocks = [f"encoder.layers.{layer}.self_attn" for layer in range(LAYERS)]
    blocks += [f"decoder.layers.{layer}.{kind}" for layer in range(LAYERS) for kind in ("self_attn", "encoder_attn")]
    parts = {"A": (RANK, D_MODEL), "B": (D_MODEL, RANK), "gate_weight": (RANK, D_MODEL), "gate_bias": (RANK,)}
    tensors = {
        f"base_model.model.model.{block}.{target}.gated_lora_{part}": 0.05
        * generator.standard_normal(shape).astype(np.float32)
        for block in blocks
        for target in ("q_proj", "k_proj", "v_proj", "out_proj")
        for part, shape in parts.items()
    }
    config = {"peft_type": "GATED_LORA", "r": RANK, "lora_alpha": 16.0, "gate": "self", "target_modules": ["q_proj"]}
    return pack(tensors, PackedInfo("whisper-base", "whisper:512x6+6", "", "gates", "trimmed", "ko", config, dtype))


def measure_memory(seconds: float, rate: int, repeats: int) -> list[tuple[float, float]]:
    """Largest and last resident size in MiB of processes that transcribe ``seconds`` of audio at ``rate``."""
    found = []
    with tempfile.TemporaryDirectory(prefix="idiolect-thin-") as folder, StubServer() as server:
        wav = Path(folder) / "speech.wav"
        noise = 0.1 * np.random.default_rng(1).standard_normal(round(seconds * rate))
        soundfile.write(wav, noise, rate)
        initialize(Path(folder) / "device", DeviceSettings(server=server.url))
        store = AdapterStore(Path(folder) / "device", 4 * MIB)
        store.set(default_adapter("float16"))
        for _ in range(repeats):
            store.forget_handle()  # so that each process also sends the adapter
            line = run(TRANSCRIBE.format(words=[str(wav), "--stream", "--folder", str(Path(folder) / "device")]))
            found.append((int(line.split()[0]) / 1024, int(line.split()[1]) / 1024))
    return found


def main() -> int:
    """Measure, write three rows, print them; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of the utterance")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="once, and keep no figure")
    arguments = parser.parse_args()
    repeats = 1 if arguments.smoke else arguments.repeats
    run(IMPORT.format(module="clients.device.cli"))  # files into the cache, and compiled
    imports: dict[str, list[float]] = {"clients.device.cli": [], "numpy": []}
    for _ in range(repeats):
        for module, found in imports.items():
            found.append(float(run(IMPORT.format(module=module))))
    import_seconds = round(statistics.median(imports["clients.device.cli"]), 3)
    memory = {rate: measure_memory(arguments.seconds, rate, repeats) for rate in SAMPLE_RATES}
    peaks = {rate: [peak for peak, _ in found] for rate, found in memory.items()}
    sizes = {dtype: len(default_adapter(dtype)) / MIB for dtype in ("float32", *TARGET_ADAPTER_MIB)}
    assert sizes.keys() == CODES.keys()
    conditions: dict[str, object] = {"seconds": arguments.seconds, "machine": machine(["soundfile", "soxr"])}
    worst = max(statistics.median(found) for found in peaks.values())
    rows = [
        BenchmarkRow(
            name="thin_memory",
            value=round(worst, 1),
            unit="MiB resident at most, after a transcription",
            ratio=round(worst, 1),
            target=TARGET_MIB,
            at_most=True,
            conditions={
                "peak_mib_by_rate": {str(rate): spread(found) for rate, found in peaks.items()},
                "last_mib_by_rate": {str(rate): spread([last for _, last in found]) for rate, found in memory.items()},
                **conditions,
            },
        ),
        BenchmarkRow(
            name="thin_import",
            value=import_seconds,
            unit="s to import the thin client",
            ratio=import_seconds,
            target=TARGET_IMPORT_SECONDS,
            at_most=True,
            conditions={"seconds_by_module": {name: spread(found) for name, found in imports.items()}, **conditions},
        ),
    ]
    rows += [
        BenchmarkRow(
            name=f"thin_adapter_{dtype}",
            value=round(sizes[dtype], 3),
            unit=f"MiB of an adapter with self gates as {dtype}",
            ratio=round(sizes[dtype], 3),
            target=target,
            at_most=True,
            conditions={"mib_by_dtype": {name: round(size, 3) for name, size in sizes.items()}, **conditions},
        )
        for dtype, target in TARGET_ADAPTER_MIB.items()
    ]
    for row in rows:
        verdict = "met" if row.met else "MISSED"
        print(f"{row.name:<21} {row.value:>8} {row.unit} (at most {row.target:g}: {verdict})")
        if not arguments.smoke:
            write_row(row)
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
