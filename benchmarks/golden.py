"""Golden runs: small runs of every kind, and whether two checkouts of the project give the same numbers.

    python -m benchmarks.golden run FOLDER              # each run of RUNS, below FOLDER; on one thread, so that it is deterministic
    python -m benchmarks.golden compare BEFORE AFTER    # every row, prediction and tensor of two such folders

For a refactoring: run it in a checkout of the commit before and in one of the commit after, on one machine and in one environment,
since a processor of another kind rounds otherwise. Nothing is stored in the repository for the same reason.
"""

from __future__ import annotations

import json
import re
import sys
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from fl.data.manifest import Utterance, write_manifest
from fl.settings.config import make_config
from fl.speech.audio import save_audio

WORDS = ["나는", "커피를", "마셨어", "meeting", "있어", "deadline", "오늘", "내일", "bug", "고쳤어"]
SMALL: dict[str, Any] = {
    "base": "random:whisper-nano",
    "rounds": 3,
    "local-steps": 2,
    "batch-size": 2,
    "rank": 2,
    "alpha": 4.0,
    "learning-rate": 1e-2,
    "private-learning-rate": 2e-2,
    "finetune-steps": 2,
    "new-people": 1,
    "language": "ko",
    "evaluate-every": 2,
    "private-share": 0.34,
    "seed": 1,
    "gate": "self",
}
ALL_ARMS = "zero-shot,local,global,global+finetune,personalized,neutral,centralized"
PERSONAL, TWO = {"arms": "personalized"}, {"arms": "global,personalized"}
RUNS: dict[str, dict[str, Any]] = {
    "all-arms": {"arms": ALL_ARMS},
    "defaults": {"arms": ALL_ARMS, "gate": "none"},
    "gates-joint": {**TWO, "private-share": 0.0, "gate": "cross"},
    "cohort": {"arms": "local,global,personalized,neutral", "cohort": 3, "gate": "low-rank", "gated-arms": "all"},
    "edge": {**TWO, "aggregation": "edge", "sample": 2.0},
    "codec": {**TWO, "codec": "int8", "error-feedback": True},
    "top-k": {"arms": "global", "codec": "top-k:0.2+int8"},
    "edge-codec": {"arms": "global", "aggregation": "edge", "codec": "int8:1.0"},
    "dp-server": {"arms": "global", "dp": "server", "noise-multiplier": 0.3, "epsilon-budget": 1e6, "clip-quantile": 0.5},
    "dp-local": {"arms": "global", "dp": "local", "noise-multiplier": 0.3, "epsilon-budget": 1e6},
    "secure": {"arms": "global", "secure-sum": "pairwise", "dp": "distributed", "noise-multiplier": 0.3, "epsilon-budget": 1e6},
    "secure-edge": {"arms": "global", "secure-sum": "pairwise", "aggregation": "edge", "update-norm": 4.0},
    "fedprox": {"arms": "global", "algorithm": "fedprox", "proximal": 0.1, "server-optimizer": "fedadam"},
    "fednova": {"arms": "global", "algorithm": "fednova", "sample": 0.67, "schedule": "linear"},
    "scaffold": {**TWO, "algorithm": "scaffold"},
    "scaffold-cohort": {"arms": "global", "algorithm": "scaffold", "cohort": 3, "aggregation": "edge"},
    "fedsa": {**PERSONAL, "algorithm": "fedsa", "split": "fedsa", "gate": "none"},
    "ffa": {**PERSONAL, "algorithm": "ffa", "split": "ffa", "gate": "self"},
    "rolora": {**TWO, "algorithm": "rolora", "server-optimizer": "fedavgm"},
    "flexlora": {**TWO, "algorithm": "flexlora", "device-ranks": "1,2"},
    "sparsity-weighted": {"arms": "global", "algorithm": "sparsity-weighted", "device-ranks": "1,2"},
    "fedex": {"arms": "global", "algorithm": "fedex"},
    "flora": {"arms": "global", "algorithm": "flora"},
    "median": {"arms": "global", "algorithm": "median", "attack": "scale", "attacker-share": 0.34},
    "trimmed-mean": {"arms": "global", "algorithm": "trimmed-mean", "trim-share": 0.34, "attack": "label-swap", "attacker-share": 0.34},
    "multi-krum": {"arms": "global", "algorithm": "multi-krum", "hostile-share": 0.0},
    "norm-bound": {"arms": "global", "algorithm": "norm-bound", "attack": "sign-flip", "attacker-share": 0.34},
    "geometric-median": {"arms": "global", "algorithm": "geometric-median", "attack": "collusion", "attacker-share": 0.34},
    "fedper": {**PERSONAL, "algorithm": "fedper"},
    "fedrep": {**PERSONAL, "algorithm": "fedrep"},
    "ditto": {"arms": "personalized,neutral", "algorithm": "ditto", "cohort": 3},
    "mixture": {**PERSONAL, "algorithm": "mixture"},
    "pfedme": {**PERSONAL, "algorithm": "pfedme"},
    "dual-adapter": {**PERSONAL, "algorithm": "dual-adapter", "rank": 1},
    "interpolation": {**PERSONAL, "algorithm": "interpolation", "rank": 1},
    "clusters": {"arms": "personalized,neutral", "algorithm": "clusters", "agreement": 0.99, "count": 2},
    "bottleneck": {**TWO, "method": "bottleneck", "split": "layers:decoder"},
    "prefix": {"arms": "global", "method": "prefix"},
    "bitfit": {"arms": "global", "method": "bitfit"},
    "full": {"arms": "centralized", "method": "full", "learning-rate": 1e-4},
    "dora": {"arms": "global", "method": "dora"},
    "scalar-gate": {**TWO, "method": "scalar-gate", "gated-arms": "all"},
    "augmented": {"arms": "global", "spec-augment": 1.0, "speed-perturbation": 0.1, "noise-snr": 10.0, "weight-decay": 0.1},
    "ctc": {**TWO, "base": "random:wav2vec2-nano", "sites": "encoder.self,ffn"},
    "text": {**TWO, "task": "language-id", "base": "random:bert-nano", "pair": "es-en", "sentences": 24, "devices": 3},
    "images": {**TWO, "task": "digits", "base": "random:vit-nano", "sentences": 30, "devices": 3},
}  # fmt: skip
TASKS_OF_THEIR_OWN = ("text", "images")  # without recordings
NO_RESULTS = ("seconds_train", "seconds_evaluate", "crc32")  # fields that differ where nothing of a result does
OLDER = re.compile(r"before/|/state-\d+\.")  # how many rounds before the last are kept is no result


def make_speech(folder: Path, speakers: int = 4, each: int = 8) -> Path:
    """A manifest of noise: four words a recording, no text twice."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    texts = list(permutations(WORDS, 4))
    chosen = iter(rng.choice(len(texts), speakers * each, replace=False))
    utterances = []
    for speaker in range(speakers):
        for number in range(each):
            path = folder / f"{speaker}-{number}.wav"
            noise = 0.1 * rng.standard_normal(int(16_000 * rng.uniform(0.6, 1.2)))
            save_audio(path, noise.clip(-1, 1).astype(np.float32))
            words = texts[next(chosen)]
            spans = tuple((word, "en" if word.isascii() else "ko") for word in words)
            utterances.append(
                Utterance(
                    f"{speaker}-{number}",
                    path,
                    " ".join(words),
                    f"화자 {speaker}",
                    lang="ko",
                    spans=spans,
                    level="word",
                )
            )
    write_manifest(folder / "manifest.jsonl", utterances)
    return folder / "manifest.jsonl"


def run_all(folder: Path, names: list[str]) -> None:
    """Run those of RUNS that are not finished yet; a refused or failed run leaves its reason."""
    from sim.backends.run import run_simulation

    torch.set_num_threads(1)
    manifest = make_speech(folder / "speech")
    for name in names or RUNS:
        output = folder / name
        if (output / "costs.json").exists():
            continue
        own = {} if name in TASKS_OF_THEIR_OWN else {"manifest": str(manifest)}
        try:
            run_simulation(make_config({**SMALL, **own, **RUNS[name], "output": str(output)}), serial=True)
            print(f"{name}: done", flush=True)
        except Exception as error:  # what is refused is a result too
            print(f"{name}: {type(error).__name__}: {error}", flush=True)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """JSON lines without times, in an order of their own."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["audio"] = Path(row.get("audio") or "").name  # each folder has its own copy of the speech
    kept = [{key: value for key, value in row.items() if key not in NO_RESULTS} for row in rows]
    return sorted(kept, key=lambda row: json.dumps(row, sort_keys=True, ensure_ascii=False))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor below a run's folder, by file and name."""
    return {
        f"{path.relative_to(folder)}:{name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def compare_run(before: Path, after: Path) -> tuple[bool, str]:
    """Whether two runs are equal to the bit, and what differs."""
    if not (before / "costs.json").exists() or not (after / "costs.json").exists():
        both = not (before / "costs.json").exists() and not (after / "costs.json").exists()
        return both, "no result in either" if both else "a result in one alone"
    notes: list[str] = []
    for name in ("results.jsonl", "transcripts.jsonl"):
        if (before / name).exists():
            one, other = rows_of(before / name), rows_of(after / name)
            fields = {key for a, b in zip(one, other, strict=False) for key in {*a, *b} if a.get(key) != b.get(key)}
            if len(one) != len(other) or fields:
                notes.append(f"{name}: {len(one)} and {len(other)} rows, fields that differ: {sorted(fields)}")
    one, other = tensors_of(before), tensors_of(after)
    if odd := [name for name in sorted(one.keys() ^ other.keys()) if not OLDER.search(name)]:
        notes.append(f"{len(odd)} tensors in one alone, first {odd[0]}")
    worst, place, different = 0.0, "", 0
    for name in one.keys() & other.keys():
        a, b = one[name].double(), other[name].double()
        if a.shape != b.shape:
            notes.append(f"{name} has another shape")
        elif not torch.equal(a, b):
            different += 1
            distance = float((a - b).norm() / max(float(a.norm()), 1e-30))
            worst, place = max((worst, place), (distance, name))
    if different:
        notes.append(f"{different} of {len(one)} tensors differ, at most by {worst:.1e} of their size ({place})")
    return not notes, "; ".join(notes) or f"equal: {len(one)} tensors"


def main() -> None:
    command, *rest = sys.argv[1:]
    if command == "run":
        run_all(Path(rest[0]), rest[1:])
        return
    before, after = map(Path, rest[:2])
    for name in RUNS:
        if (before / name).exists() or (after / name).exists():
            equal, text = compare_run(before / name, after / name)
            print(f"{'=' if equal else '!'} {name:<18} {text}")


if __name__ == "__main__":
    main()
