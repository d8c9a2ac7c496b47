"""The table of voice engines: who can speak the sentences of a synthetic population, and how a person's voice is drawn."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from random import Random
from typing import Any, ClassVar, Protocol

from fl.core.files import make_folder
from fl.core.paths import cache_root
from fl.data.synthetic.acoustics import join_segments
from fl.data.synthetic.espeak import ESPEAK_SAMPLE_RATE, Espeak, Voice
from fl.data.synthetic.kokoro import KOKORO_SAMPLE_RATE, MODEL_SHA256, STYLES, Kokoro, NeuralVoice
from fl.data.synthetic.phonology import Accent, kokoro_phonemes
from fl.speech.audio import SAMPLE_RATE, Waveform, load_audio, save_audio

Runs = Sequence[tuple[str, str]]
"""A sentence as runs of one language: ``(text to read, espeak language)``."""


@dataclass(frozen=True)
class Speech:
    """A sentence about to be said: how many seconds it lasts, and the call that gives its sound at 16 kHz."""

    seconds: float
    render: Callable[[], Waveform]


class Engine(Protocol):
    """A voice engine. ``accents``: whether it can speak with a foreign accent; raise ``version`` with every change of its sound."""

    accents: ClassVar[bool]
    version: ClassVar[int]

    @staticmethod
    def draw_voice(variants: Sequence[str], index: int, random: Random) -> Any:
        """The voice of person ``index``: a frozen dataclass of plain values."""
        ...

    def prepare(self, runs: Runs, voice: Any, accent: Accent | None = None) -> Speech:
        """Get ready to say ``runs``. ``render`` may be called in another thread."""
        ...


class EspeakEngine:
    """espeak-ng, a formant synthesizer: small, fast and foreign to recognizers that were trained on human speech."""

    accents: ClassVar[bool] = False
    version: ClassVar[int] = 1

    def __init__(self) -> None:
        self._espeak = Espeak()

    @staticmethod
    def draw_voice(variants: Sequence[str], index: int, random: Random) -> Voice:
        """See :meth:`Engine.draw_voice`: variants in turn, another rate and pitch for each person."""
        return Voice(
            variant=variants[index % len(variants)],
            rate=random.randint(172, 212),
            pitch=random.randint(38, 62),
            pitch_range=random.randint(30, 70),
        )

    def prepare(self, runs: Runs, voice: Voice, accent: Accent | None = None) -> Speech:
        """See :meth:`Engine.prepare`: each run by the voice of its language, said at once."""
        speech = join_segments(
            [self._espeak.render(text, language, voice) for text, language in runs], ESPEAK_SAMPLE_RATE
        )
        return Speech(len(speech) / SAMPLE_RATE, lambda: speech)


class NeuralEngine:
    """Kokoro-82M: one natural voice for all languages of a sentence. What was said once is kept in the cache folder."""

    accents: ClassVar[bool] = True
    version: ClassVar[int] = 1

    def __init__(self) -> None:
        self._kokoro = Kokoro()
        self._phonemes = cache(Espeak().phonemes)
        self._folder = cache_root() / "speech"
        make_folder(self._folder)

    @staticmethod
    def draw_voice(variants: Sequence[str], index: int, random: Random) -> NeuralVoice:
        """See :meth:`Engine.draw_voice`: a convex mixture of the five styles, a speed and a pitch."""
        shares = [random.gammavariate(0.6, 1.0) for _ in STYLES]  # a Dirichlet draw: mostly two or three styles
        return NeuralVoice(
            styles=tuple(round(share / sum(shares), 4) for share in shares),
            speed=round(random.uniform(0.92, 1.12), 3),
            pitch=round(random.uniform(0.94, 1.06), 3),
        )

    def prepare(self, runs: Runs, voice: NeuralVoice, accent: Accent | None = None) -> Speech:
        """See :meth:`Engine.prepare`: the phonemes now, their sound when it is asked for; the length is an estimate."""
        spoken = [kokoro_phonemes(self._phonemes(text, language), language) for text, language in runs]
        if accent is not None:
            spoken = [accent(phonemes, language) for phonemes, (_, language) in zip(spoken, runs, strict=True)]
        phonemes = " ".join(spoken)
        seconds = _estimate(phonemes) / (voice.speed * voice.pitch)
        return Speech(seconds, partial(self._say, phonemes, voice))

    def _say(self, phonemes: str, voice: NeuralVoice) -> Waveform:
        key = hashlib.sha256(f"{MODEL_SHA256}\0{voice}\0{phonemes}".encode()).hexdigest()
        path = self._folder / f"{key}.wav"
        if not path.is_file():
            # raised pitch: as if the samples came faster
            speech = self._kokoro.render(phonemes, voice)
            save_audio(path, join_segments([speech], round(KOKORO_SAMPLE_RATE * voice.pitch)))
        return load_audio(path)


def _estimate(phonemes: str) -> float:
    """Seconds of a recording at speed 1, within about a tenth: a regression on what Kokoro said."""
    return 0.48 + 0.055 * len(phonemes)


ENGINES: Mapping[str, type[Engine]] = {"espeak": EspeakEngine, "neural": NeuralEngine}
