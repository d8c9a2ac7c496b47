"""Word-level language identification as a federated task: a frozen text encoder, a trained head, errors over words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers import BertModel

from fl.core.compute import choose_device, precision
from fl.core.errors import ConfigError
from fl.metrics import Counts
from fl.settings.config import RunConfig
from fl.settings.names import LANGUAGE_ID
from fl.tasks import classifier
from fl.tasks.classifier import ENCODER_SELF, FFN
from fl.tasks.task import Device, Example
from fl.tasks.text.encoder import DEFAULT, load_encoder
from fl.tasks.text.sentences import Tagged, make_population
from fl.tasks.text.tags import read_tags, score_tags, write_tags

SITE_PATTERNS = {
    ENCODER_SELF: r"encoder\.layer\.\d+\.attention\.(?:self\.(?:query|key|value)|output\.dense)",
    FFN: r"encoder\.layer\.\d+\.(?:intermediate|output)\.dense",
}
PREDICTION_ROWS = 64


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


class LanguageIdTask:
    """See :class:`fl.tasks.task.Task`. Sentences come from the grammar of a language pair, labels from each person's habit."""

    def __init__(self, config: RunConfig) -> None:
        if config.data.manifest:
            raise ConfigError(
                f"manifest = {config.data.manifest!r} holds speech, and task {LANGUAGE_ID} makes its own sentences: "
                "leave it out, or choose another task"
            )
        self.compute = choose_device(config.base.compute)
        self.base_name = classifier.own_base(config, DEFAULT)
        self._encoder = load_encoder(self.base_name)
        data = config.data
        self.population = make_population(
            data.pair,
            devices=data.devices,
            new_people=data.new_people,
            sentences=data.sentences,
            validation_share=data.validation_share,
            test_share=data.test_share,
            new_tests=data.new_people_tests,
            seed=config.data_seed,
        )
        self.languages = self.population.languages
        self.fingerprint = f"{self._encoder.fingerprint}:{'+'.join(self.languages)}"
        width = self._encoder.model.config.hidden_size
        head = classifier.make_head(width, len(self.languages), config.adapter.rank, LANGUAGE_ID)
        self._template = Tagger(self._encoder.model, head, len(self.languages)).to(self.compute).eval()
        self.model: nn.Module = self.new_model()
        self.targets: str | list[str] = classifier.site_targets(config.sites, SITE_PATTERNS)
        self.learns = True
        self.adapter_facts: Mapping[str, str] = {"window": "", "language": "+".join(self.languages)}
        self._device = lru_cache(maxsize=64)(self._load_device)

    def device_ids(self) -> tuple[str, ...]:
        """Devices in the order of the population, new people last."""
        return tuple(self.population.people)

    def is_new(self, device_id: str) -> bool:
        """Whether this person never trains."""
        return device_id in self.population.people and self.population.people[device_id].new_person

    def device(self, device_id: str) -> Device:
        """One device's sentences."""
        if device_id not in self.population.people:
            known = ", ".join(list(self.population.people)[:10])
            raise ConfigError(f"unknown device {device_id!r}: known are {known}")
        return self._device(device_id)

    def _load_device(self, device_id: str) -> Device:
        said = self.population.of(device_id)
        train, validation, test = (tuple(map(self._example, said[split])) for split in ("train", "validation", "test"))
        return Device(device_id, train, validation, test, self.is_new(device_id))

    def _example(self, said: Tagged) -> Example:
        pieces, owners = self._encoder.pieces(said.words)
        details = {"spans": [list(pair) for pair in zip(said.words, said.languages, strict=True)], "level": said.level}
        target = write_tags(said.words, said.languages)
        return Example(said.key, (said.words, pieces, owners), target, len(pieces), details)

    def new_model(self) -> nn.Module:
        """A further tagger of its own modules on the same frozen tensors."""
        return classifier.twin(self._template)

    def _batch(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
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

    def loss(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        """Mean cross-entropy in nats over the words of the batch."""
        sums, words = self.losses(model, examples)
        return sums.sum() / words.sum()

    def losses(self, model: nn.Module, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Each sentence's cross-entropy in nats, summed over its words (N,), and their number (N,)."""
        labels = self._labels(examples)
        with precision(self.compute):
            logits = model(*self._batch(examples))
        return classifier.summed_cross_entropy(logits, labels.clamp(min=0), labels >= 0)

    def _labels(self, examples: Sequence[Example]) -> Tensor:
        """The class of each word (N, W) by the example's target, -1 where there is no word, or no target for it."""
        labels = torch.full((len(examples), max(len(e.inputs[0]) for e in examples)), -1)
        for row, example in enumerate(examples):
            languages = [language for _, language in read_tags(example.target)][: len(example.inputs[0])]
            labels[row, : len(languages)] = torch.tensor([self.languages.index(language) for language in languages])
        return labels.to(self.compute)

    def training_bytes(self, example: Example) -> int:
        """Bytes of activations in a training step."""
        config = self._encoder.model.config
        return classifier.encoder_bytes(
            example.size,
            width=config.hidden_size,
            inner=config.intermediate_size,
            heads=config.num_attention_heads,
            layers=config.num_hidden_layers,
        )

    def prediction_rows(self, examples: Sequence[Example], *, adapted: bool) -> int:
        """A good number, whatever the sentences."""
        return PREDICTION_ROWS

    def predict(self, model: nn.Module, examples: Sequence[Example], *, adapted: bool, beams: int) -> list[str]:
        """The words with their languages. The base alone has no trained head: every word is in the matrix language then."""
        if not adapted:
            return [write_tags(e.inputs[0], [self.languages[0]] * len(e.inputs[0])) for e in examples]
        with torch.inference_mode(), precision(self.compute):
            found = model(*self._batch(examples)).argmax(2).tolist()
        return [
            write_tags(e.inputs[0], [self.languages[place] for place in row[: len(e.inputs[0])]])
            for e, row in zip(examples, found, strict=True)
        ]

    def score(self, example: Example, prediction: str) -> Mapping[str, Counts]:
        """Words with the wrong language."""
        return score_tags(example.target, prediction).metrics
