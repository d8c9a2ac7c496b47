"""Resident memory of workers that share one machine: each has loaded the base and trained a step.

    python -m benchmarks.memory [--workers 4] [--start threads|fresh] [--batch-size 2]

The figure is what the workers take from the machine together: a page that they share counts once. Two ways of starting:
``threads`` is how ``idiolect run`` has them, in one process; ``fresh`` is how Ray and Flower start workers, each with its own
imports. The row's ratio is all workers against one, and its conditions say where a worker's own memory goes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO

from benchmarks._report import BenchmarkRow, machine, write_row
from benchmarks.table import target_here

TEXT = "내일 meeting 전에 presentation 파일 보내 줄 수 있어요"
MIB = 2**20


def own_mib() -> float:
    """USS of this process in MiB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024


def mappings(pid: int) -> dict[str, Counter[str]]:
    """What each mapping of a process takes in KiB, by the name of its file; empty for a process that has ended."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    name = ""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            key, _, rest = line.partition(" ")
            if not key.endswith(":"):
                parts = line.split(maxsplit=5)
                name = parts[5] if len(parts) == 6 else "anonymous"
            elif rest.endswith("kB"):
                found[name][key[:-1]] += int(rest.split()[0])
    return found


def together(pids: Sequence[int]) -> dict[str, float]:
    """MiB of processes together: ``alone`` is what they would take on a machine of their own.

    PSS depends on who else has the same files mapped. ``alone`` does not: pages that are a process's own (private and
    written) are added up, and those that can be shared count once, as many as the process with the most of them has.
    """
    processes = [mappings(pid) for pid in pids]
    own = sum(m["Private_Dirty"] for process in processes for m in process.values())
    shared: Counter[str] = Counter()
    for process in processes:
        for name, m in process.items():
            shared[name] = max(shared[name], m["Private_Clean"] + m["Shared_Clean"] + m["Shared_Dirty"])
    base = {name: kib for name, kib in shared.items() if name.endswith(".safetensors")}
    copied = sum(m["Private_Dirty"] for process in processes for name, m in process.items() if name in base)
    return {
        "alone_mib": round((own + shared.total()) / 1024, 1),
        "own_mib": round(own / 1024, 1),
        "shared_mib": round(shared.total() / 1024, 1),
        "base_mib": round((sum(base.values()) + copied) / 1024, 1),
        "pss_mib": round(sum(m["Pss"] for process in processes for m in process.values()) / 1024, 1),
    }


class Stages:
    """What each stage of a worker's life adds to its own memory (USS, MiB)."""

    def __init__(self) -> None:
        self.added: dict[str, float] = {}
        self._last = 0.0

    def done(self, name: str) -> None:
        """The stage called ``name`` is over."""
        own = own_mib()
        self.added[name] = round(own - self._last, 1)
        self._last = own


def prepare(arguments: argparse.Namespace, stages: Stages) -> Callable[[], None]:
    """Import what a simulation's worker imports and map the base; the function trains one step."""
    stages.done("python")
    import torch

    stages.done("torch")
    import fl.tasks.speech.task  # noqa: F401 - transformers, PEFT, audio

    stages.done("transformers, PEFT, audio")
    import clients.app  # noqa: F401 - the ClientApp and Flower's client side

    stages.done("the ClientApp")
    if arguments.ray and arguments.start == "fresh":
        import ray  # noqa: F401
        from flwr.simulation.ray_transport import ray_actor  # noqa: F401 - what Flower's own actors load

        stages.done("Ray and Flower's actor")
    import numpy as np
    from peft import get_peft_model

    from fl.adapters.config import GatedLoraConfig
    from fl.bases.resolve import load_base
    from fl.core.machine import return_free_memory
    from fl.core.rng import derive_generator
    from fl.speech.audio import SAMPLE_RATE

    base = load_base(arguments.base)
    stages.done("base")

    def step() -> None:
        torch.set_num_threads(arguments.threads)
        model = get_peft_model(base.new_model(), GatedLoraConfig(target_modules=arguments.targets, init_seed=0))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        noise = derive_generator(arguments.seed, "audio")
        samples = int(arguments.seconds * SAMPLE_RATE)
        rows = [0.05 * noise.standard_normal(samples, dtype=np.float32) for _ in range(arguments.batch_size)]
        language = "ko" if "ko" in base.languages else None
        batch = base.collate([base.features(row) for row in rows], [TEXT] * arguments.batch_size, "trimmed", language)
        stages.done("adapter and batch")
        base.loss(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        stages.done("one training step, freed but kept")
        return_free_memory()
        stages.done("returned to the system")
        _alive.extend([model, optimizer, batch])

    return step


_alive: list[object] = []  # what a worker keeps between messages


def serve(arguments: argparse.Namespace) -> None:
    """A worker process, or with ``--start threads`` all workers: told by lines on standard input.

    Says ``ready`` when prepared, waits for ``go``, trains, says what each stage took, and waits for the end.
    """
    stages = Stages()
    step = prepare(arguments, stages)
    _say(sys.stdout, {"pids": [os.getpid()]})
    sys.stdin.readline()
    count = arguments.workers if arguments.start == "threads" else 1
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(step) for _ in range(count)]:
            done.result()
        _say(sys.stdout, stages.added)
        sys.stdin.readline()


def _say(stream: IO[str], value: object) -> None:
    stream.write(json.dumps(value) + "\n")
    stream.flush()


class Peak:
    """What processes take together at most while the block runs, sampled (as ``alone_mib`` of :func:`together`)."""

    def __init__(self, pids: Sequence[int], every: float = 0.05) -> None:
        self.pids, self.every, self.mib = pids, every, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._stop.wait(self.every):
            self.mib = max(self.mib, together(self.pids)["alone_mib"])

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def measure(workers: int, arguments: argparse.Namespace) -> dict[str, object]:
    """``workers`` workers that have each trained a step: what they take together, and where one worker's part goes."""
    count = workers if arguments.start == "fresh" else 1
    command = [sys.executable, "-m", "benchmarks.memory", *sys.argv[1:], "--serve", "--workers", str(workers)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    try:
        pids = [pid for process in processes for pid in _answer(process)["pids"]]
        with Peak(pids) as peak:
            for process in processes:
                _order(process)
            stages = [_answer(process) for process in processes]
        time.sleep(0.2)
        return {
            "processes": len(pids),
            **together(pids),
            "peak_mib": peak.mib,
            "one_worker_adds_mib": stages[0],
        }
    finally:
        for process in processes:
            if process.poll() is None:
                _order(process)
                process.communicate()


def _answer(process: subprocess.Popen[str]) -> dict[str, list[int]]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a worker ended early with exit code {process.wait()}")
    answer: dict[str, list[int]] = json.loads(line)
    return answer


def _order(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="whisper-base")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--start", choices=("threads", "fresh"), default="threads")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each utterance")
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--targets", nargs="+", default=["q_proj", "k_proj", "v_proj", "out_proj"])
    parser.add_argument("--no-ray", dest="ray", action="store_false", help="leave Ray's and Flower's actor code out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: seconds, no figure")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measure one worker, then all, and write ``benchmarks/results/memory.json`` (not with ``--smoke``); 1 where the target is missed."""
    arguments = parse_arguments()
    if arguments.smoke:
        arguments.base = "random:whisper-nano"
    if arguments.serve:
        serve(arguments)
        return 0
    from fl.bases.resolve import load_base  # converted before the workers start, and its pages in the cache

    load_base(arguments.base)
    one, all_of_them = measure(1, arguments), measure(arguments.workers, arguments)
    ratio, peak = (float(str(all_of_them[key])) / float(str(one[key])) for key in ("alone_mib", "peak_mib"))
    row = BenchmarkRow(
        name="memory" if arguments.start == "threads" else f"memory_{arguments.start}",
        value=float(str(all_of_them["alone_mib"])),
        unit=f"MiB of {arguments.workers} workers",
        ratio=round(ratio, 2),
        target=target_here("memory"),
        at_most=True,
        conditions={
            **{name: value for name, value in vars(arguments).items() if name != "serve"},
            "one_worker": one,
            "all_workers": all_of_them,
            "ratio_at_the_peak_of_the_step": round(peak, 2),
            "machine": machine(),
        },
    )
    written = "not written: smoke" if arguments.smoke else f"written to {write_row(row)}"
    for name, found in (("1 worker", one), (f"{arguments.workers} workers", all_of_them)):
        print(
            f"{name:>10}: "
            + ", ".join(f"{key.removesuffix('_mib')} {found[key]}" for key in found if key.endswith("mib"))
        )
    print(f"ratio {row.ratio:.2f} (at most {row.target:g}: {'met' if row.met else 'MISSED'}), {written}")
    return 0 if row.met or arguments.smoke else 1


if __name__ == "__main__":
    sys.exit(main())
