"""Speech recognition as a federated task: utterances of a population, features, a frozen recognizer, error counts.

The recognizer is any :class:`fl.bases.speech.SpeechBase`: Whisper (log-mel features, cross-entropy over tokens) or Wav2Vec2 with a
CTC head (waveforms, CTC over symbols). Which one it is decides the base alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fl.adapters.config import target_pattern
from fl.algorithms.arms import EVERYONE
from fl.bases.speech import load_speech_base, name_with_tokens
from fl.core.compute import choose_device, precision
from fl.core.errors import ConfigError
from fl.core.paths import cache_root
from fl.core.rng import derive_random, derive_seed
from fl.data.manifest import Utterance
from fl.data.partition import DeviceData, Population
from fl.data.partition import load_population as divide
from fl.data.synthetic import new_people_of, population_digest, synthesize
from fl.metrics import Counts, score_utterance
from fl.settings.config import DataConfig, RunConfig
from fl.settings.names import OWN_MANIFEST
from fl.speech.audio import SAMPLE_RATE, check_speech, load_audio
from fl.speech.augment import VARIED, Augmentation, VariedExamples
from fl.speech.features import Audio, FeatureCache, Window, heard_frames
from fl.speech.prefix import PrefixCache, check_frozen, frozen_layers, untouched
from fl.tasks.task import Device, Example

# A batch decodes as long as its longest row needs, so two batches where one would do cost nearly twice; long rows would take
# too much memory.
PREDICTION_ROWS, LONG_ROWS = 32, 16
LONG_FRAMES = 1_000


NOBODY = Population(devices=(), new_people=(), dropped=0, manifest=Path())


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
    """See :class:`fl.tasks.task.Task`. Examples hold an utterance; features are computed once and cached on disk."""

    def __init__(self, config: RunConfig) -> None:
        self.compute = choose_device(config.base.compute)
        self.base_name = name_with_tokens(config.base.base, config.base.tokens)
        self.base = load_speech_base(self.base_name).to(self.compute)
        self.fingerprint = self.base.fingerprint
        self.model: nn.Module = self.base.new_model()
        sites = target_pattern(config.sites)
        self.targets: str | list[str] = f"(?:{sites}|{self.base.targets})" if self.base.targets else sites
        self.window: Window = "full" if config.base.window == "full" else "trimmed"
        self.train_utterances = config.data.train_utterances
        # An aggregator of deployed devices has nobody's speech: only the base and its shapes.
        nobody = config.data.manifest == OWN_MANIFEST
        self.population = (
            NOBODY if nobody else load_population(population_manifest(config), config.data_seed, config.data)
        )
        self._people: dict[str, DeviceData] = {
            d.device_id: d for d in (*self.population.devices, *self.population.new_people)
        }
        if EVERYONE in self._people:
            raise ConfigError(
                f"speaker {EVERYONE!r} has the name of all devices together: give that speaker another name"
            )
        self._new = {d.device_id for d in self.population.new_people}
        self.languages = _languages(self.population)
        matrix = self.languages[0] if self.languages and self.base.languages else ""
        self.language = config.base.language or matrix
        self.base.require_texts(self._texts(), "the transcripts")
        if nobody and self.base.languages and not self.language:
            raise ConfigError(
                f"manifest = {OWN_MANIFEST!r} has no sentence that tells the matrix language to the aggregator: set language, as in 'ko'"
            )
        if self.base.languages and self.language not in self.base.languages:
            raise ConfigError(
                f"language = {self.language!r} is unknown to base {self.base_name!r}: one of {', '.join(self.base.languages[:12])}, ..."
            )
        self.learns = True
        self.adapter_facts: Mapping[str, str] = {"window": self.window, "language": self.language}
        self._augmentation = Augmentation.of(config.train)
        self._features = FeatureCache(cache_root() / "features")
        self._prefix = PrefixCache(cache_root() / "prefix")
        self.frozen_layers = frozen_layers(self.base.model, self.targets)
        self._device = lru_cache(maxsize=64)(self._load_device)

    def _texts(self) -> list[str]:
        people = self._people.values()
        return [u.text for person in people for part in (person.train, person.validation, person.test) for u in part]

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
        trained = person.train[: self.train_utterances or None]
        splits = ([self._example(u) for u in part] for part in (trained, person.validation, person.test))
        train, validation, test = (tuple(s) for s in splits)
        return Device(device_id, train, validation, test, self.is_new(device_id))

    def _example(self, utterance: Utterance) -> Example:
        audio = load_audio(utterance.audio, utterance.start, utterance.end)
        check_speech(audio, str(utterance.audio))
        features = self._heard(audio, self.window)
        is_part = utterance.start is not None or utterance.end is not None
        details = {
            "audio": str(utterance.audio),
            "start": (utterance.start or 0.0) if is_part else None,
            "spans": [list(span) for span in utterance.spans],
            "loanwords": [list(pair) for pair in utterance.loanwords],
            "level": utterance.level,
            "seconds_audio": round(len(audio) / SAMPLE_RATE, 3),
        }
        return Example(utterance.id, (utterance, features), utterance.text, self.base.frames(features), details)

    def _heard(self, audio: Audio, window: Window) -> npt.NDArray[np.float16]:
        """Features of ``audio``, from disk where they are worth it."""
        return (
            self._features.features(self.base, audio, window) if self.base.mels else self.base.features(audio, window)
        )

    def varied(self, examples: Sequence[Example], seed: int) -> Sequence[Example]:
        """Training examples for one local phase: drawn by ``seed`` as the settings of augmentation say, or as they are."""
        if not self._augmentation.active:
            return examples

        def audio_of(example: Example) -> Audio:
            utterance: Utterance = example.inputs[0]
            return load_audio(utterance.audio, utterance.start, utterance.end)

        def features_of(audio: Audio) -> npt.NDArray[Any]:
            return self.base.features(audio, self.window)

        return VariedExamples(examples, self._augmentation, seed, audio_of, features_of, self.base.frames)

    def new_model(self) -> nn.Module:
        """A further recognizer of its own modules on the same frozen tensors."""
        return self.base.new_model()

    def loss(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        """Mean loss in nats over the labelled tokens or symbols of the batch."""
        with precision(self.compute):
            return self.base.loss(model, self._labelled(model, examples))

    def losses(self, model: nn.Module, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Summed loss in nats of each example (N,), and the number of its labelled tokens or symbols (N,)."""
        with precision(self.compute):
            return self.base.row_losses(model, self._labelled(model, examples))

    def _labelled(self, model: nn.Module, examples: Sequence[Example]) -> Any:
        """A batch for training."""
        batch = self.base.collate(
            [e.inputs[1] for e in examples], [e.target for e in examples], self.window, self.language or None
        )
        return self._from_prefix(model, batch, examples)

    def _from_prefix(self, model: nn.Module, batch: Any, examples: Sequence[Example]) -> Any:
        """``batch`` where the base computes, with what the encoder layers below the lowest adapter make of it (computed once)."""
        layers = self.frozen_layers
        if (not layers and not self.base.caches_stem) or any(VARIED in e.details for e in examples):
            return batch.to(self.compute)
        check_frozen(model, layers)
        if not untouched(model, self.base.model, layers):
            return batch.to(self.compute)
        rows = [self._prefix.states(self.base, e.inputs[1], layers) for e in examples]
        return self.base.with_prefix(batch, rows, layers).to(self.compute)

    def training_bytes(self, example: Example) -> int:
        """Bytes of activations in a training step, as the base estimates them."""
        return self.base.training_bytes(example.size, example.target)

    def prediction_rows(self, examples: Sequence[Example], *, adapted: bool) -> int:
        """Fewer where rows are long: those of the frozen base alone are 30 s whatever was said."""
        short = adapted and all(example.size <= LONG_FRAMES for example in examples)
        return PREDICTION_ROWS if short else LONG_ROWS

    def predict(self, model: nn.Module, examples: Sequence[Example], *, adapted: bool, beams: int) -> list[str]:
        """Transcripts. A frozen Whisper alone decodes the full window and detects the language among those of the data."""
        alone = self.base.alone_window
        if adapted or alone is None:
            batch = self.base.collate([e.inputs[1] for e in examples], None, self.window, self.language or None)
            return self._generate(model, self._from_prefix(model, batch, examples), beams)
        rows, heard = [], []
        for example in examples:
            utterance: Utterance = example.inputs[0]
            audio = load_audio(utterance.audio, utterance.start, utterance.end)
            rows.append(self._heard(audio, alone))
            heard.append(heard_frames(len(audio)))
        return self._generate(model, self.base.collate(rows, None, alone, None).to(self.compute), beams, heard)

    def _generate(self, model: nn.Module, batch: Any, beams: int, heard: Sequence[int] | None = None) -> list[str]:
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
