"""Speech recognition as a federated task: utterances of a population, log-mel features, a frozen Whisper, error counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fl.adapters.config import target_pattern
from fl.arms import EVERYONE
from fl.bases.batch import Batch
from fl.bases.memory import training_bytes
from fl.bases.resolve import load_base
from fl.compute import choose_device, precision
from fl.config import DataConfig, RunConfig
from fl.data.manifest import Utterance
from fl.data.partition import DeviceData, Population
from fl.data.partition import load_population as divide
from fl.data.synthetic import new_people_of, population_digest, synthesize
from fl.errors import ConfigError
from fl.metrics import Counts, score_utterance
from fl.paths import cache_root
from fl.rng import derive_random, derive_seed
from fl.speech.audio import SAMPLE_RATE, check_speech, load_audio
from fl.speech.features import FeatureCache, Window, heard_frames
from fl.speech.prefix import PrefixCache, check_frozen, frozen_layers
from fl.task import Device, Example

PROMPT_TOKENS = 5  # start, language, transcribe, no timestamps; end


@lru_cache(maxsize=4)
def load_population(manifest: Path, seed: int, data: DataConfig) -> Population:
    """Read and divide a manifest; one process does it once. Every process gets the same division from the same seed.

    A new person is tested on the setting ``new_people_tests`` sentences at most, drawn by the seed.
    """
    # People whom a synthetic population made as new stay new; otherwise they are drawn by the seed.
    marked = new_people_of(manifest)
    chosen = marked[: data.new_people] if len(marked) >= data.new_people else data.new_people
    population = divide(
        manifest,
        seed=derive_seed(seed, "partition"),
        validation_share=data.validation_share,
        test_share=data.test_share,
        new_people=chosen,
    )
    drawn = []
    for person in population.new_people:
        order = derive_random(seed, "new-people-tests", person.device_id).sample(person.test, len(person.test))
        drawn.append(replace(person, train=(), validation=(), test=tuple(order[: data.new_people_tests])))
    return replace(population, new_people=tuple(drawn))


def population_manifest(config: RunConfig, progress: Callable[[int, int], None] | None = None) -> Path:
    """The manifest of a run: the one that is named, or that of a synthetic population, made at first use."""
    if config.data.manifest:
        return Path(config.data.manifest).expanduser().resolve()
    data = config.data
    wanted: dict[str, Any] = {
        "pair": data.pair,
        "devices": data.devices,
        "new_people": data.new_people,
        "sentences": data.sentences,
        "seed": config.data_seed,
    }
    name = f"{data.pair}-{data.devices}x{data.sentences}-seed{config.data_seed}-{population_digest(**wanted)}"
    return synthesize(cache_root() / "populations" / name, **wanted, progress=progress)


class SpeechTask:
    """See :class:`fl.task.Task`. Examples hold an utterance; features are computed once and cached on disk."""

    def __init__(self, config: RunConfig) -> None:
        self.compute = choose_device(config.base.compute)
        self.base = load_base(config.base.base).to(self.compute)
        self.base_name = config.base.base
        self.fingerprint = self.base.fingerprint
        self.model: nn.Module = self.base.new_model()
        self.targets: str | list[str] = target_pattern(config.sites)
        self.window: Window = "full" if config.base.window == "full" else "trimmed"
        self.population = load_population(population_manifest(config), config.data_seed, config.data)
        self._people: dict[str, DeviceData] = {
            d.device_id: d for d in (*self.population.devices, *self.population.new_people)
        }
        if EVERYONE in self._people:
            raise ConfigError(
                f"speaker {EVERYONE!r} has the name of all devices together: give that speaker another name"
            )
        self._new = {d.device_id for d in self.population.new_people}
        self.languages = _languages(self.population)
        self.language = config.base.language or (self.languages[0] if self.languages else "")
        if self.base.languages and self.language not in self.base.languages:
            raise ConfigError(
                f"language = {self.language!r} is unknown to base {self.base_name!r}: one of {', '.join(self.base.languages[:12])}, ..."
            )
        self._features = FeatureCache(cache_root() / "features")
        self._prefix = PrefixCache(cache_root() / "prefix")
        self.frozen_layers = frozen_layers(self.base.model, self.targets)
        self._device = lru_cache(maxsize=64)(self._load_device)

    def device_ids(self) -> tuple[str, ...]:
        """Devices in the order of the population, new people last."""
        return tuple(self._people)

    def is_new(self, device_id: str) -> bool:
        """Whether this person never trains."""
        return device_id in self._new

    def device(self, device_id: str) -> Device:
        """One device's examples."""
        if device_id not in self._people:
            raise ConfigError(f"unknown device {device_id!r}: known are {', '.join(list(self._people)[:10])}")
        return self._device(device_id)

    def _load_device(self, device_id: str) -> Device:
        person = self._people[device_id]
        splits = ([self._example(u) for u in part] for part in (person.train, person.validation, person.test))
        train, validation, test = (tuple(s) for s in splits)
        return Device(device_id, train, validation, test, self.is_new(device_id))

    def _example(self, utterance: Utterance) -> Example:
        audio = load_audio(utterance.audio, utterance.start, utterance.end)
        check_speech(audio, str(utterance.audio))
        features = self._features.features(self.base, audio, self.window)
        details = {
            "audio": str(utterance.audio),
            "spans": [list(span) for span in utterance.spans],
            "loanwords": [list(pair) for pair in utterance.loanwords],
            "level": utterance.level,
            "seconds_audio": round(len(audio) / SAMPLE_RATE, 3),
        }
        return Example(utterance.id, (utterance, features), utterance.text, int(features.shape[1]), details)

    def new_model(self) -> nn.Module:
        """A further Whisper of its own modules on the same frozen tensors."""
        model: nn.Module = self.base.new_model()
        return model

    def loss(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        """Mean cross-entropy in nats over the labelled tokens of the batch."""
        with precision(self.compute):
            return self.base.loss(model, self._labelled(model, examples))

    def losses(self, model: nn.Module, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy in nats of each example (N,), and the number of its labelled tokens (N,)."""
        with precision(self.compute):
            return self.base.row_losses(model, self._labelled(model, examples))

    def _labelled(self, model: nn.Module, examples: Sequence[Example]) -> Batch:
        """A batch for training."""
        batch = self.base.collate(
            [e.inputs[1] for e in examples], [e.target for e in examples], self.window, self.language or None
        )
        return self._from_prefix(model, batch, examples)

    def _from_prefix(self, model: nn.Module, batch: Batch, examples: Sequence[Example]) -> Batch:
        """``batch`` where the base computes, with what the encoder layers below the lowest adapter make of it (computed once)."""
        layers = self.frozen_layers
        if not layers:
            return batch.to(self.compute)
        check_frozen(model, layers)
        rows = [self._prefix.states(self.base, e.inputs[1], layers) for e in examples]
        return self.base.with_prefix(batch, rows, layers).to(self.compute)

    def training_bytes(self, example: Example) -> int:
        """Bytes of activations in a training step (:func:`fl.bases.memory.training_bytes`); a token is at least a byte of text."""
        tokens = min(len(example.target.encode()) + PROMPT_TOKENS, self.base.model.config.max_target_positions)
        return training_bytes(self.base.model.config, example.size, tokens)

    def predict(self, model: nn.Module, examples: Sequence[Example], *, adapted: bool, beams: int) -> list[str]:
        """Transcripts. The frozen base alone decodes the full window and detects the language among those of the data."""
        if adapted:
            batch = self.base.collate([e.inputs[1] for e in examples], None, self.window, self.language or None)
            return self._generate(model, self._from_prefix(model, batch, examples), beams)
        rows, heard = [], []
        for example in examples:
            utterance: Utterance = example.inputs[0]
            audio = load_audio(utterance.audio, utterance.start, utterance.end)
            rows.append(self._features.features(self.base, audio, "full"))
            heard.append(heard_frames(len(audio)))
        return self._generate(model, self.base.collate(rows, None, "full", None).to(self.compute), beams, heard)

    def _generate(self, model: nn.Module, batch: Batch, beams: int, heard: Sequence[int] | None = None) -> list[str]:
        known = [code for code in self.languages if code in self.base.languages]
        with torch.inference_mode(), precision(self.compute):
            return self.base.generate(model, batch, beams=beams, languages=known or None, heard=heard)

    def score(self, example: Example, prediction: str) -> Mapping[str, Counts]:
        """Error counts of one transcript, by metric."""
        utterance: Utterance = example.inputs[0]
        return score_utterance(example.target, prediction, spans=utterance.spans, loanwords=utterance.loanwords).metrics


def _languages(population: Population) -> list[str]:
    """Languages of the population's words, most frequent first; the first is the matrix language."""
    count: Counter[str] = Counter()
    for person in (*population.devices, *population.new_people):
        for utterance in (*person.train, *person.test):
            count.update(language for _, language in utterance.spans)
            if not utterance.spans and utterance.lang:
                count[utterance.lang] += 1
    return [language for language, _ in count.most_common()]
