"""Does the voice tell who writes how?

    python -m benchmarks.heard POPULATION ...

A linear classifier learns from the participants of a matched population, by mean and spread of the log-mel spectrum of each sentence, who
writes loanwords in Latin script and who does not, and guesses it for held-out speakers. The area under the curve is 0.5 where sound
tells nothing. That it can hear is shown beside it: the same numbers of half a person's sentences find, among all held-out speakers, the
other half, or that of the one with whom the person shares a voice.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.directions import auc
from fl.data.manifest import read_manifest
from fl.data.synthetic.population import POPULATION_NAME
from fl.speech.audio import load_audio
from fl.speech.features import log_mel

MELS = 80
RIDGE = 0.1  # of the mean variance
RESAMPLES = 2000


def heard(path: Path) -> np.ndarray:
    """Mean and standard deviation over time of each mel band (160,)."""
    spectrum = log_mel(load_audio(path), MELS)
    return np.concatenate([spectrum.mean(1), spectrum.std(1)])


def direction(x: np.ndarray, latin: np.ndarray) -> np.ndarray:
    """Of Fisher's discriminant with a shrunk covariance, for features (sentences, 160)."""
    within = np.concatenate([x[latin] - x[latin].mean(0), x[~latin] - x[~latin].mean(0)])
    covariance = within.T @ within / len(within)
    ridge = RIDGE * np.trace(covariance) / len(covariance)
    return np.linalg.solve(covariance + ridge * np.eye(len(covariance)), x[latin].mean(0) - x[~latin].mean(0))


def measured(folder: Path) -> tuple[dict[str, list[tuple[float, bool]]], list[bool]]:
    """By couple of held-out speakers score and habit of either, and of each speaker whether the halves found each other."""
    people = json.loads((folder / POPULATION_NAME).read_text(encoding="utf-8"))["people"]
    people = {one["name"]: one for one in people if one["habit"] in ("latin", "matrix")}  # who mixes is neither
    latin = {name: one["habit"] == "latin" for name, one in people.items()}
    couple = {name: one.get("matched_to") or name for name, one in people.items()}
    sounds = defaultdict(list)
    for utterance in read_manifest(folder / "manifest.jsonl"):
        if utterance.speaker in people:
            sounds[utterance.speaker].append(heard(folder / utterance.audio))
    x = {name: np.stack(rows) for name, rows in sounds.items()}
    known, held_out = ([n for n, one in people.items() if one["new_person"] == new] for new in (False, True))
    every = np.concatenate([x[name] for name in known])
    mean, spread = every.mean(0), every.std(0)
    x = {name: (rows - mean) / spread for name, rows in x.items()}
    labels = np.concatenate([np.full(len(x[name]), latin[name]) for name in known])
    told = direction(np.concatenate([x[name] for name in known]), labels)
    scores = defaultdict(list)
    for name in held_out:
        scores[couple[name]].append((float((x[name] @ told).mean()), latin[name]))
    first, second = ({name: x[name][half::2].mean(0) for name in held_out} for half in (0, 1))
    nearest = {
        name: min(held_out, key=lambda other: float(np.square(first[name] - second[other]).sum())) for name in held_out
    }
    return dict(scores), [couple[name] == couple[found] for name, found in nearest.items()]


def area(couples: Iterable[Sequence[tuple[float, bool]]]) -> float:
    """Under the curve of those who write Latin against the others."""
    people = [person for couple in couples for person in couple]
    return auc(*(np.array([score for score, latin in people if latin == one]) for one in (True, False)))


def main() -> None:
    """Print both for all populations together: areas within each, intervals over couples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("populations", type=Path, nargs="+")
    parser.add_argument("--write", type=Path, help="a file for the scores of each person")
    arguments = parser.parse_args()
    found = [measured(folder) for folder in arguments.populations]
    hits = [hit for _, each in found for hit in each]
    couples = [[*each.values()] for each, _ in found]
    draw = np.random.default_rng(0)

    def drawn() -> float:
        picked = [[own[i] for i in draw.integers(len(own), size=len(own))] for own in couples]
        return float(np.mean([area(own) for own in picked]))

    low, high = np.quantile([drawn() for _ in range(RESAMPLES)], (0.025, 0.975))
    whole = np.mean([area(own) for own in couples])
    print(
        f"who writes Latin, by the voice: area {whole:.2f} ({low:.2f} to {high:.2f}) of {len(hits)} held-out speakers"
    )
    if arguments.write:
        scores = [
            {name: [[round(score, 4), latin] for score, latin in own] for name, own in each.items()}
            for each, _ in found
        ]
        rows = {"area": [whole, low, high], "couples": scores, "found again": [sum(hits), len(hits)]}
        arguments.write.write_text(json.dumps(rows) + "\n", encoding="utf-8")
    print(f"halves of a person's sentences that find a half of the same voice: {100 * np.mean(hits):.0f} %")


if __name__ == "__main__":
    main()
