"""Do directions of updates tell who took part?

    python -m benchmarks.directions --manifest POPULATION/manifest.jsonl --shared FOLDER [--new-people 12] [--seed 11]

Somebody has the shared adapter, the directions beside it and recordings of a person, makes the update that these give, and looks at how
much of it lies in the span of the directions. Participants' updates lie there more than others' do as far as the directions tell them
apart: the area under the curve is 0.5 where they do not, and 1 where they always do. Recordings are those that the participant trained on,
or others. Beside it stands what the adapter alone tells: whose recordings it has less loss on. The mean update of (other) people who
took no part is taken out first.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from fl.adapters.files import load_adapter
from fl.adapters.split import in_part
from fl.adapters.stacked import StackedAdapters, StackedModel
from fl.adapters.state import State
from fl.aggregation.directions import main_directions
from fl.algorithms.personal.enrolment import DECODER_PART
from fl.core.machine import machine
from fl.core.rng import derive_random
from fl.settings.config import make_config
from fl.tasks.speech.task import SpeechTask
from fl.tasks.task import Example
from sim.study.enrol.command import FULL
from sim.study.enrol.shared import SharedTraining

COUNTS = (4, 8, 16)
RESAMPLES = 2000


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The share of pairs in which the positive one is larger; equal ones count half."""
    apart = positive[:, None] - negative[None, :]
    return float(((apart > 0) + 0.5 * (apart == 0)).mean())


def interval(positive: np.ndarray, negative: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of :func:`auc` over people."""
    draw = np.random.default_rng(seed)
    values = [auc(draw.choice(positive, len(positive)), draw.choice(negative, len(negative))) for _ in range(RESAMPLES)]
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def first(examples: Sequence[Example], count: int, seed: int, name: str) -> Sequence[Example]:
    """So many of somebody's examples, in a random order."""
    return derive_random(seed, "directions", name).sample(list(examples), min(count, len(examples)))


def loss_of(training: SharedTraining, state: State, examples: Sequence[Example]) -> float:
    """Nats a label that the shared adapter is wrong by, which whoever has the model alone can look at."""
    stack = StackedAdapters.from_states([training.adapter(state).slot], [state])
    with training.host.rows(stack, [0] * len(examples)) as model, torch.no_grad():
        losses, labels = training.task.losses(model, examples)
    return float(losses.sum() / labels.sum())


def main() -> None:
    """Print the area under the curve by number of directions and kind of recordings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--shared", type=Path, required=True, help="folder of the shared adapter of that population")
    parser.add_argument("--new-people", type=int, default=12)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--language", default="ko")
    given = parser.parse_args()
    settings = {**FULL, "manifest": str(given.manifest), "new-people": given.new_people, "language": given.language}
    config = make_config({**settings, "test-share": 0.1, "seed": given.seed})
    task = SpeechTask(config)
    training = SharedTraining(config, task, StackedModel(task.new_model(), task.targets))
    state, info = load_adapter(given.shared)
    info.require_base(task.fingerprint)
    names = [name for name in sorted(state) if in_part(DECODER_PART)(name)]

    def away(people: Mapping[str, Sequence[Example]] | None, later: int) -> list[dict[str, np.ndarray]]:
        found: list[State] = training.local(state, people, later)
        return [{name: (one[name] - state[name]).numpy() for name in names} for one in found]

    def flat(rows: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
        return np.stack([np.concatenate([row[name].ravel() for name in names]) for row in rows]).astype(np.float64)

    last = away(None, 1)
    own = {name: list(task.device(name).train) for name in training.people}
    others = {name: [*task.device(name).validation, *task.device(name).test] for name in own}
    outside = {name: task.device(name).test for name in task.device_ids() if task.is_new(name)}
    for kind, inside in (("trained on", own), ("others", others)):
        many = round(np.mean([len(examples) for examples in inside.values()]))
        as_many = {name: first(examples, many, config.seed, name) for name, examples in outside.items()}
        well_known, strange = (-np.array([loss_of(training, state, e) for e in g.values()]) for g in (inside, as_many))
        low, high = interval(well_known, strange, config.seed)
        print(
            f"recordings {kind} ({many} a person), loss alone: area {auc(well_known, strange):.2f} ({low:.2f} to {high:.2f})"
        )
        strangers = flat(away(as_many, 2))
        known, mean = flat(away(inside, 2)), strangers.mean(0)
        apart = (strangers - mean) * len(strangers) / (len(strangers) - 1)  # from the mean of the others
        for count in COUNTS:
            rows = main_directions(last, names, count)
            basis = np.concatenate([rows[name] for name in names], axis=1).astype(np.float64)
            known_share, stranger_share = (
                np.square(group @ basis.T).sum(1) / np.square(group).sum(1) for group in (known - mean, apart)
            )
            low, high = interval(known_share, stranger_share, config.seed)
            area = auc(known_share, stranger_share)
            print(
                f"recordings {kind} ({many} a person), {count} directions: area {area:.2f} ({low:.2f} to {high:.2f}); "
                f"share in them {known_share.mean():.2f} of {len(known)} participants, {stranger_share.mean():.2f} of "
                f"{len(strangers)} others"
            )
    print(machine()["processor"])


if __name__ == "__main__":
    main()
