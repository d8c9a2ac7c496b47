"""A person's own transcripts in front of an example, as Whisper's previous text (Radford et al. 2022, arXiv 2212.04356)."""

from collections.abc import Sequence
from dataclasses import replace

from fl.core.rng import derive_random
from fl.speech.augment import DrawnLater
from fl.tasks.speech.recognition import PROMPT
from fl.tasks.task import Example

MOST_SENTENCES = 10  # in front of an example in training


def prompt_of(own: Sequence[Example]) -> str:
    """The transcripts of a person's examples."""
    return " ".join(example.target for example in own)


def behind(example: Example, before: Sequence[Example]) -> Example:
    """The example with the transcripts of ``before`` in front of it."""
    return replace(example, details={**example.details, PROMPT: prompt_of(before)})


def behind_others(examples: Sequence[Example]) -> list[Example]:
    """Each example behind all others."""
    return [behind(one, [other for other in examples if other is not one]) for one in examples]


def behind_some(examples: Sequence[Example], seed: int) -> Sequence[Example]:
    """Each example behind none to :data:`MOST_SENTENCES` of the others, drawn by ``seed``: in-context examples of the same person, as
    many as there may be (arXiv 2509.15516)."""

    def drawn(example: Example) -> Example:
        others = [other for other in examples if other is not example]
        random = derive_random(seed, "prompt", example.key)
        return behind(example, random.sample(others, random.randint(0, min(MOST_SENTENCES, len(others)))))

    return DrawnLater(examples, drawn)
