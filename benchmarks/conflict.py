"""How much of the error is a conflict of spelling habits: what a perfect ear would still get wrong in the default population.

    python -m benchmarks.conflict [--seeds 1 2 3]

For each seed the mixed error rate of a recognizer that hears every word right, and

- writes every loanword the other way (the whole conflict);
- writes each loanword as most of its *other* occurrences in the population are written, half an error for a tie: the best that
  one spelling for each word can do, without knowing who speaks;
- throws a coin for each.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import product

from fl.data.manifest import Utterance, read_manifest
from fl.data.synthetic import new_people_of
from fl.metrics import Counts, score_utterance
from fl.settings.config import make_config
from fl.tasks.speech.population import population_manifest

Loan = tuple[str, str]


def is_latin(utterance: Utterance, loan: Loan) -> bool:
    """Whether the utterance holds this loanword in its Latin spelling."""
    return loan[1] in utterance.text


def mixed_errors(utterance: Utterance, latin: dict[Loan, bool]) -> Counts:
    """Errors of a transcript that is right but for the spelling of its loanwords."""
    text = utterance.text
    for loan, choice in latin.items():
        text = text.replace(loan[1 - choice], loan[choice])
    return score_utterance(utterance.text, text, spans=utterance.spans, loanwords=utterance.loanwords).metrics["mer"]


def rate(utterances: Iterable[Utterance], chance: Callable[[Utterance, Loan], float]) -> float:
    """Expected rate when each loanword is written in Latin with probability ``chance``."""
    errors, reference = 0.0, 0
    for utterance in utterances:
        chances = [chance(utterance, loan) for loan in utterance.loanwords]
        for choices in product((True, False), repeat=len(chances)):
            weight = 1.0
            for choice, p in zip(choices, chances, strict=True):
                weight *= p if choice else 1 - p
            if weight:
                counts = mixed_errors(utterance, dict(zip(utterance.loanwords, choices, strict=True)))
                errors += weight * counts.errors
        reference += mixed_errors(utterance, {}).reference
    return errors / reference


def conflict(utterances: list[Utterance]) -> dict[str, float]:
    """The three rates of one population."""
    votes: Counter[Loan] = Counter()
    for utterance in utterances:
        votes.update({loan: 1 if is_latin(utterance, loan) else -1 for loan in utterance.loanwords})

    def majority(utterance: Utterance, loan: Loan) -> float:
        others = votes[loan] - (1 if is_latin(utterance, loan) else -1)
        return 0.5 if others == 0 else float(others > 0)

    return {
        "the other way": rate(utterances, lambda u, loan: float(not is_latin(u, loan))),
        "by the majority": rate(utterances, majority),
        "by a coin": rate(utterances, lambda u, loan: 0.5),
    }


def main() -> None:
    """Print a line for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    for seed in parser.parse_args().seeds:
        manifest = population_manifest(make_config({"seed": seed}))
        held_out = new_people_of(manifest)
        people = [u for u in read_manifest(manifest) if u.speaker not in held_out]
        rates = ", ".join(f"{name} {100 * value:.1f} %" for name, value in conflict(people).items())
        print(f"seed {seed}, {len(people)} sentences, MER of a perfect ear that spells loanwords: {rates}")


if __name__ == "__main__":
    main()
