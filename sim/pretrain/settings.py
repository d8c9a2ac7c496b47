"""What decides the weights of a pretrained base. Needs no torch, so that the command's help is quick."""

from dataclasses import dataclass
from typing import Annotated

from typer import Option


@dataclass(frozen=True)
class PretrainSettings:
    """Everything that decides the weights, beside the speech itself: each is an option of the command."""

    pair: Annotated[str, Option(help="ko-en for Korean, es-en for Spanish.")] = "ko-en"
    tokens: Annotated[str, Option(help="What the head writes, see docs/bases.md.")] = "jamo"
    architecture: Annotated[str, Option(help="As in random:NAME.")] = "wav2vec2-small"
    speakers: Annotated[int, Option(help="Synthetic voices.", min=1)] = 12
    sentences: Annotated[int, Option(help="Of each; mixed ones are left out.", min=1)] = 400
    steps: Annotated[int, Option(help="Optimizer steps.", min=1)] = 6_000
    batch_size: Annotated[int, Option(help="Utterances in a step.", min=1)] = 16
    learning_rate: Annotated[float, Option(help="Largest learning rate, after the warmup.", min=0.0)] = 5e-4
    warmup: Annotated[int, Option(help="Steps over which the learning rate rises.", min=0)] = 500
    checkpoint_every: Annotated[int, Option(help="Steps between checkpoints.", min=1)] = 200
    seed: Annotated[int, Option(help="The same seed gives the same weights.", min=0)] = 1
