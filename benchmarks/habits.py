"""When do a few sentences tell how somebody spells words that they do not hold?

    python -m benchmarks.habits [--seeds 200 201] [--sentences 1 5 10 20] [--certain 0 0.7 0.75 0.8]

A recognizer that hears every word right throws a coin for the spelling of each loanword, and a spelling table corrects it, made of some
sentences of a held-out speaker and a lexicon of the participants'. For each number of sentences and each certainty that the table
asks of a habit: by how much the errors of all people fall, and who is harmed. Text alone: no recognizer runs.
"""

import argparse
from collections.abc import Iterator, Sequence
from random import Random

from fl.core.rng import derive_random
from fl.data.manifest import Utterance, read_manifest
from fl.data.synthetic import new_people_of
from fl.metrics import Counts, score_utterance
from fl.settings.config import make_config
from fl.speech.spelling import CERTAIN, SpellingTable, Written
from fl.tasks.speech.population import population_manifest

TESTS = 20  # sentences of each person
POPULATION = {"devices": 24, "sentences": 24, "new-people": 12, "new-people-sentences": 60, "matched": True}
Errors = tuple[int, int]  # before and after


def heard(utterance: Utterance, random: Random) -> str:
    """The transcript of a perfect ear that spells each loanword by a coin."""
    text = utterance.text
    for matrix, latin in utterance.loanwords:
        wrong, right = (matrix, latin) if random.random() < 0.5 else (latin, matrix)
        text = text.replace(wrong, right)
    return text


def errors(utterances: Sequence[Utterance], texts: Sequence[str]) -> int:
    """Of mixed tokens."""
    scores = [
        score_utterance(u.text, text, spans=u.spans, loanwords=u.loanwords).metrics["mer"]
        for u, text in zip(utterances, texts, strict=True)
    ]
    return sum(scores, Counts()).errors


def measured(seed: int, sentences: Sequence[int], certain: Sequence[float]) -> Iterator[tuple[int, float, Errors]]:
    """The errors of each held-out speaker of a population, by sentences and certainty."""
    manifest = population_manifest(make_config({"seed": seed, **POPULATION}))
    held_out, utterances = new_people_of(manifest), read_manifest(manifest)
    known = [written(u) for u in utterances if u.speaker not in held_out]
    for name in held_out:
        random = derive_random(seed, "habits", name)
        own = [u for u in utterances if u.speaker == name]
        random.shuffle(own)
        tests, own = own[:TESTS], own[TESTS:]
        texts = [heard(one, random) for one in tests]
        before = errors(tests, texts)
        for size in sentences:
            for each in certain:
                table = SpellingTable.of([written(one) for one in own[:size]], known, each)
                yield size, each, (before, errors(tests, [table.respell(text) for text in texts]))


def written(utterance: Utterance) -> Written:
    """What a table is made of."""
    return utterance.text, utterance.loanwords


def main() -> None:
    """Print a line for each number of sentences and certainty."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[*range(200, 212)])
    parser.add_argument("--sentences", type=int, nargs="*", default=[1, 5, 10, 20])
    parser.add_argument("--certain", type=float, nargs="*", default=[0.0, 0.7, CERTAIN, 0.8])
    args = parser.parse_args()
    rows = [row for seed in args.seeds for row in measured(seed, args.sentences, args.certain)]
    for size in args.sentences:
        for certain in args.certain:
            found = [one for sentences, asked, one in rows if (sentences, asked) == (size, certain)]
            before, after = (sum(column) for column in zip(*found, strict=True))
            harmed = sum(end > start for start, end in found) / len(found)
            print(
                f"{size:2} sentences, certain {certain:g}: {100 * (after / before - 1):+.1f} % errors, "
                f"harmed {100 * harmed:.1f} % of {len(found)} people"
            )


if __name__ == "__main__":
    main()
