"""Speech recognition as a federated task: utterances of a population, features, a frozen recognizer, error counts.

The recognizer is any :class:`fl.bases.base.SpeechBase`: Whisper (log-mel features, cross-entropy over tokens) or Wav2Vec2 with a
CTC head (waveforms, CTC over symbols). Which one it is decides the base alone.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fl.adapters.config import target_pattern
from fl.algorithms.arms import EVERYONE
from fl.bases.resolve import load_speech_base, name_with_tokens
from fl.core.compute import DTYPES, FLOAT32, autocast, choose_device, choose_precision
from fl.core.errors import ConfigError
from fl.core.paths import cache_root
from fl.core.rng import derive_generator
from fl.data.manifest import Utterance
from fl.data.partition import DeviceData
from fl.methods.table import METHODS
from fl.metrics import Counts, corpus_matrix_language, score_utterance
from fl.settings.config import RunConfig
from fl.settings.names import OWN_MANIFEST
from fl.settings.tables import AugmentationTable
from fl.speech.audio import SAMPLE_RATE, Waveform, check_speech, load_audio
from fl.speech.augment import DrawnLater, vary_audio, vary_features
from fl.speech.features import FULL_SECONDS, FeatureCache, Window, heard_frames
from fl.speech.languages import language_code
from fl.speech.prefix import PrefixCache, check_frozen, frozen_layers, untouched
from fl.tasks.speech.population import languages_of, population_of
from fl.tasks.task import Example, NamedDevices

# A batch decodes as long as its longest row needs, so two batches where one would do cost nearly twice; long rows would take
# too much memory.
PREDICTION_ROWS, LONG_ROWS = 32, 16
LONG_FRAMES = 1_000
VARIED = "varied"  # in the details of an augmented example: no cache holds its features
PROMPT = "prompt"  # in the details of an example that is trained behind a previous text


class SpeechTask(NamedDevices):
    """See :class:`fl.tasks.task.Task`. Examples hold an utterance; features are computed once and cached on disk.

    ``inputs`` are the utterance, its features and, once they are computed for a phase in which the encoder is as it is, its states.
    """

    prompt = ""  # see prompted

    def __init__(self, config: RunConfig) -> None:
        self.base_name = name_with_tokens(config.base.name, config.base.tokens)
        self.compute = choose_device(config.base.compute)
        self.precision = choose_precision(config.base.precision, self.compute)
        # Weights that are trained themselves are float32, and only their products are not; frozen ones are stored as they are used.
        self._trained = not METHODS[config.adapter.method].sized
        base = load_speech_base(self.base_name, dtype=DTYPES[FLOAT32 if self._trained else self.precision])
        self.window: Window = "full" if config.base.window == "full" else "trimmed"
        full = self.window == "full"
        self.population = population_of(
            config, lambda text, seconds: base.check_text(text, FULL_SECONDS if full else seconds)
        )
        self.left_out, self.notes = self.population.left_out, list(self.population.notes)
        everybody = (*self.population.devices, *self.population.new_people)
        self._people: dict[str, DeviceData] = {person.device_id: person for person in everybody}
        if EVERYONE in self._people:
            raise ConfigError(
                f"speaker {EVERYONE!r} has the name of all devices together: give that speaker another name"
            )
        held_out = {person.device_id for person in self.population.new_people}
        super().__init__({name: name in held_out for name in self._people})
        self.base = base.to(self.compute)
        self.fingerprint = self.base.fingerprint
        self.model = self.base.new_model()
        sites = target_pattern(config.sites)
        self.targets = f"(?:{sites}|{self.base.targets})" if self.base.targets else sites
        self.train_utterances = config.data.train_utterances
        named = languages_of(self.population)
        if not named and self.base.languages and not config.base.language:
            named = languages_of(self.population, by_script=True)
            shares = ", ".join(f"{code} {count / named.total():.0%}" for code, count in named.most_common())
            told = "the base is told the first of them, --language CODE tells it another"
            if named:
                self.notes.append(f"no utterance names its language; by script the words are {shares}: {told}")
        self.languages = [language for language, _ in named.most_common()]
        self.language = self._language(config)
        # Over the test sentences, as the report takes it: PIER is then the same in both.
        self._matrix = corpus_matrix_language(u.spans for person in self._people.values() for u in person.test)
        tokenizer = getattr(self.base, "tokenizer", None)  # a CTC head's fingerprint is over its vocabulary
        self.adapter_facts = {"window": self.window, "language": self.language}
        self.adapter_facts["tokenizer"] = tokenizer.digest if tokenizer else ""
        self._augmentation = config.train.augmentation
        self._features = FeatureCache(cache_root() / "features")
        self._prefix = PrefixCache(cache_root() / "prefix")
        self.frozen_layers = frozen_layers(self.base, self.targets)

    def prompted(self, text: str) -> Self:
        """This task with ``text`` before every recording that it transcribes, as Whisper's previous text."""
        other = copy(self)
        other.prompt = text
        return other

    def _language(self, config: RunConfig) -> str:
        """The language that the base is told: that of the setting, else of most words; "" for a base that is told none."""
        known = self.base.languages
        language = config.base.language or (self.languages[0] if self.languages and known else "")
        language = language_code(language) if known else language
        if known and not language and config.data.manifest == OWN_MANIFEST:
            raise ConfigError(
                f"manifest = {OWN_MANIFEST!r} has no sentence that tells the matrix language to the aggregator: set language, as in 'ko'"
            )
        if known and not language:
            raise ConfigError(
                "no utterance names its language, and none has a letter that does: name it with --language"
            )
        if known and language not in known:
            raise ConfigError(
                f"language = {language!r} is unknown to base {self.base_name!r}: give --language one of {', '.join(known[:12])}, ..."
            )
        return language

    def _examples_of(self, device_id: str) -> Mapping[str, Iterable[Example]]:
        person = self._people[device_id]
        trained = person.train[: self.train_utterances or None]
        parts = {"train": trained, "validation": person.validation, "test": person.test}
        return {split: map(self._example, part) for split, part in parts.items()}

    def _example(self, utterance: Utterance) -> Example:
        audio = _audio_of(utterance)
        check_speech(audio, str(utterance.audio))
        features = self._features_of(audio, self.window)
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

    def _features_of(self, audio: Waveform, window: Window) -> npt.NDArray[np.float16]:
        """Features of ``audio``, from disk where they are worth it."""
        return (
            self._features.features(audio, self.base.mels, window)
            if self.base.mels
            else self.base.features(audio, window)
        )

    def varied(self, examples: Sequence[Example], seed: int) -> Sequence[Example]:
        """Training examples for one local phase: drawn by ``seed`` as the settings of augmentation say, or as they are."""
        if self._augmentation == AugmentationTable():  # its defaults vary nothing
            return examples
        return DrawnLater(examples, lambda e: self._varied(e, derive_generator(seed, "augment", e.key)))

    def _varied(self, example: Example, generator: np.random.Generator) -> Example:
        utterance: Utterance = example.inputs[0]
        features = self.base.features(vary_audio(self._augmentation, _audio_of(utterance), generator), self.window)
        frames = self.base.frames(features)
        features = vary_features(self._augmentation, features, frames, generator)
        return replace(example, inputs=(utterance, features), size=frames, details={**example.details, VARIED: True})

    def new_model(self) -> nn.Module:
        """A further recognizer of its own modules on the same frozen tensors."""
        return self.base.new_model()

    def _computing(self) -> AbstractContextManager[object]:
        return autocast(self.compute, self.precision if self._trained else FLOAT32)

    def loss(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        """Mean loss in nats over the labelled tokens or symbols of the batch."""
        with self._computing():
            return self.base.loss(model, self._labelled(model, examples))

    def losses(self, model: nn.Module, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Summed loss in nats of each example (N,), and the number of its labelled tokens or symbols (N,)."""
        with self._computing():
            return self.base.row_losses(model, self._labelled(model, examples))

    def precomputed(self, model: nn.Module, examples: Sequence[Example], trained: Collection[str]) -> Sequence[Example]:
        """With encoder states, where all that is trained lies behind the encoder."""
        if any(name.startswith(f"{self.base.encoder}.") for name in trained):
            return examples
        with torch.no_grad(), self._computing():
            states, _ = self.base.encode(model, self._labelled(model, examples))
        lengths = [self.base.states_of(e.inputs[1].shape[1]) for e in examples]
        rows = [row[:length].float().cpu().numpy() for row, length in zip(states, lengths, strict=True)]
        return [replace(e, inputs=(*e.inputs[:2], row)) for e, row in zip(examples, rows, strict=True)]

    def _labelled(self, model: nn.Module, examples: Sequence[Example]) -> Any:
        """A batch for training."""
        rows, texts = [e.inputs[1] for e in examples], [e.target for e in examples]
        prompts = [e.details.get(PROMPT, "") for e in examples]
        batch = self.base.collate(rows, texts, self.window, self.language or None, prompts)
        return self._from_prefix(model, batch, examples)

    def _from_prefix(self, model: nn.Module, batch: Any, examples: Sequence[Example]) -> Any:
        """``batch`` where the base computes, with what the encoder layers below the lowest adapter make of it (computed once)."""
        if all(len(e.inputs) > 2 for e in examples):
            every = frozen_layers(self.base, ())
            return self.base.with_prefix(batch, [e.inputs[2] for e in examples], every).to(self.compute)
        layers = self.frozen_layers
        if (not layers and not self.base.caches_stem) or any(VARIED in e.details for e in examples):
            return batch.to(self.compute)
        check_frozen(self.base, model, layers)
        if not untouched(self.base, model, layers):
            return batch.to(self.compute)
        rows = [self._prefix.states(self.base, e.inputs[1], layers) for e in examples]
        return self.base.with_prefix(batch, rows, layers).to(self.compute)

    def training_bytes(self, example: Example) -> int:
        """Bytes of activations in a training step, as the base estimates them."""
        return self.base.training_bytes(example.size, example.details.get(PROMPT, "") + example.target)

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
            audio = _audio_of(example.inputs[0])
            rows.append(self._features_of(audio, alone))
            heard.append(heard_frames(len(audio)))
        return self._generate(model, self.base.collate(rows, None, alone, None).to(self.compute), beams, heard)

    def _generate(self, model: nn.Module, batch: Any, beams: int, heard: Sequence[int] | None = None) -> list[str]:
        known = [code for code in self.languages if code in self.base.languages]
        with torch.inference_mode(), self._computing():
            return self.base.generate(
                model, batch, beams=beams, languages=known or None, heard=heard, prompt=self.prompt
            )

    def score(self, example: Example, prediction: str) -> Mapping[str, Counts]:
        """Error counts of one transcript, by metric."""
        utterance: Utterance = example.inputs[0]
        return score_utterance(
            example.target, prediction, spans=utterance.spans, loanwords=utterance.loanwords, matrix=self._matrix
        ).metrics


def _audio_of(utterance: Utterance) -> Waveform:
    return load_audio(utterance.audio, utterance.start, utterance.end)
