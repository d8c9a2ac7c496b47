"""Exploration of the private part's training, on validation data only: one line of JSON for each variant.

    python -m benchmarks.explore NAME [KEY=VALUE ...] --out FILE [--start CHECKPOINT]

Settings are written as for ``idiolect run --set``. Runs the arms ``personalized`` and ``neutral`` (or those of ``arms=``) of the
default experiment in this process with one thread, on a population whose seed no reported result uses, and appends the validation
rates. Test data is not touched.

Rounds before the gates' own equal those of ``global``, so ``--start`` lets variants of what comes after them go on from one checkpoint
of a ``global`` run with the same settings, instead of each training the same rounds again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import torch

from fl.metrics import Counts
from fl.protocol.wire import add_counts
from fl.settings.config import make_config
from sim.backends.run import run_simulation
from sim.cli.options import parse_settings

EXPLORATION_SEED = 101  # the reported seeds are 1, 2 and 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="checkpoint of global after the last of those rounds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings: dict[str, object] = {
        "seed": EXPLORATION_SEED,
        "adapter.gate": "self",
        "federation.arms": "personalized,neutral",
        "federation.final-split": "validation",
        "federation.evaluate-every": 0,
        "data.new-people": 0,
        **parse_settings(arguments.settings),
    }
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.start is not None:
            checkpoints = Path(folder) / "checkpoints"
            checkpoints.mkdir()
            shutil.copy(arguments.start, checkpoints / "personalized.safetensors")
        run = run_simulation(make_config({**settings, "output": folder}), serial=True)
        rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    last = max(row["round"] for row in rows)
    rates: dict[str, dict[str, float | None]] = {}
    for arm in {row["arm"] for row in rows}:
        final = [row for row in rows if row["arm"] == arm and row["metrics"] and row["round"] in (last, 1)]
        total = add_counts([{m: Counts(**c) for m, c in row["metrics"].items()} for row in final])
        rates[arm] = {name: total[name].rate for name in ("wer", "mer", "mer_folded", "cer")}
    line = {
        "name": arguments.name,
        "settings": settings,
        "rates": rates,
        "seconds": round(time.perf_counter() - started),
    }
    with arguments.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
