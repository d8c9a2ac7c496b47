"""Word-level language identification as a federated task: a frozen text encoder, a trained head, errors over words."""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import BertModel

from fl.metrics import Counts
from fl.settings.config import RunConfig
from fl.tasks.classifier import ENCODER_SELF, FFN, ClassifierTask, make_head
from fl.tasks.kind import Progress
from fl.tasks.task import Example
from fl.tasks.text.encoder import load_encoder
from fl.tasks.text.kind import LANGUAGE_ID, read_tags, score_tags, write_tags
from fl.tasks.text.sentences import Tagged, make_population


def load_base(config: RunConfig, progress: Progress) -> None:
    """Fetch the base of a run, once, before its processes start."""
    load_encoder(LANGUAGE_ID.base_of(config))


class Tagger(nn.Module):
    """An encoder and a head that says the language of each word, whose state is the mean over those of its pieces."""

    def __init__(self, encoder: BertModel, head: nn.Linear, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.classes = classes

    def forward(self, pieces: Tensor, present: Tensor, words: Tensor) -> Tensor:
        """Logits (N, W, classes) of ids (N, T), their mask (N, T) and each word's weights over the pieces (N, W, T)."""
        states = self.encoder(input_ids=pieces, attention_mask=present).last_hidden_state
        logits: Tensor = self.head(torch.bmm(words.to(states.dtype), states))
        return logits[..., : self.classes]


class LanguageIdTask(ClassifierTask):
    """See :class:`fl.tasks.task.Task`. Sentences come from the grammar of a language pair, labels from each person's habit."""

    sites: ClassVar = {
        ENCODER_SELF: r"encoder\.layer\.\d+\.attention\.(?:self\.(?:query|key|value)|output\.dense)",
        FFN: r"encoder\.layer\.\d+\.(?:intermediate|output)\.dense",
    }
    rows = 64

    def __init__(self, config: RunConfig) -> None:
        self.population = make_population(config.data, config.data_seed)
        self.languages = self.population.languages
        self.base_name = LANGUAGE_ID.base_of(config)
        self._text = load_encoder(self.base_name)
        self.fingerprint = f"{self._text.fingerprint}:{'+'.join(self.languages)}"
        shape = self._text.model.config
        head = make_head(shape.hidden_size, len(self.languages), config.adapter.rank, "language-id")
        people = self.population.people.values()
        tagger = Tagger(self._text.model, head, len(self.languages))
        super().__init__(config, tagger, shape, {person.name: person.new_person for person in people})
        self.adapter_facts = {"window": "", "language": "+".join(self.languages)}

    def _examples_of(self, device_id: str) -> Mapping[str, Iterable[Example]]:
        return {split: map(self._example, said) for split, said in self.population.of(device_id).items()}

    def _example(self, said: Tagged) -> Example:
        pieces, owners = self._text.pieces(said.words)
        details = {"spans": [list(pair) for pair in zip(said.words, said.languages, strict=True)], "level": said.level}
        target = write_tags(said.words, said.languages)
        return Example(said.key, (said.words, pieces, owners), target, len(pieces), details)

    def _batch(self, examples: Sequence[Example]) -> tuple[Tensor, ...]:
        """Ids, mask and words' weights over pieces, as :meth:`Tagger.forward` takes them."""
        longest = max(len(e.inputs[1]) for e in examples)
        ids = torch.zeros(len(examples), longest, dtype=torch.long)
        present = torch.zeros(len(examples), longest, dtype=torch.long)
        words = torch.zeros(len(examples), max(len(e.inputs[0]) for e in examples), longest)
        for row, example in enumerate(examples):
            _, pieces, owners = example.inputs
            ids[row, : len(pieces)] = torch.tensor(pieces)
            present[row, : len(pieces)] = 1
            for place, owner in enumerate(owners):
                if owner is not None:
                    words[row, owner, place] = 1
        words /= words.sum(2, keepdim=True).clamp(min=1)
        return ids.to(self.compute), present.to(self.compute), words.to(self.compute)

    def _labels(self, examples: Sequence[Example]) -> Tensor:
        """The class of each word (N, W) by the example's target, -1 where there is no word, or no target for it."""
        labels = torch.full((len(examples), max(len(e.inputs[0]) for e in examples)), -1)
        for row, example in enumerate(examples):
            languages = [language for _, language in read_tags(example.target)][: len(example.inputs[0])]
            labels[row, : len(languages)] = torch.tensor([self.languages.index(language) for language in languages])
        return labels

    def predict(self, model: nn.Module, examples: Sequence[Example], *, adapted: bool, beams: int) -> list[str]:
        """The words with their languages. The base alone has no trained head: every word is in the matrix language then."""
        texts = [e.inputs[0] for e in examples]
        found = self.classes(model, examples) if adapted else [[0] * len(words) for words in texts]
        rows = zip(texts, found, strict=True)
        return [write_tags(words, [self.languages[place] for place in row[: len(words)]]) for words, row in rows]

    def score(self, example: Example, prediction: str) -> Mapping[str, Counts]:
        """Words with the wrong language."""
        return score_tags(example.target, prediction).metrics
