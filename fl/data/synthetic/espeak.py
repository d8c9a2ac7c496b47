"""espeak-ng as a library: text in, samples out. This module knows nothing of devices, grammars or microphones.

espeak-ng keeps its state in process-wide variables that survive from one utterance to the next: the phase of the
glottal wave, the flutter table, the echo buffer, the random generator of breath noise. The same call therefore gives
other samples after another sentence, even after ``espeak_Terminate`` and a fixed random seed. We unload the shared
library after each utterance and load it again (about 2 ms), which resets all of it: a rendering is then a function of
its arguments alone.
"""

import _ctypes
import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fl.core.errors import AudioError, ConfigError

ESPEAK_SAMPLE_RATE = 22_050
"""Samples per second of every espeak-ng voice."""

_AUDIO_OUTPUT_SYNCHRONOUS = 2
_CHARS_UTF8 = 1
_DONT_EXIT = 1 << 15
_POSITION_CHARACTER = 1
_IPA = 2
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_SEED = 1

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """How one person sounds. ``variant`` is a file of ``espeak-ng-data/voices/!v``; rate is in words per minute,
    pitch and pitch range are espeak's 0..99 scales."""

    variant: str
    rate: int = 175
    pitch: int = 50
    pitch_range: int = 50


class Espeak:
    """The one door to espeak-ng. Renderings are serialized by a lock, because its state is global to the process.
    Nothing stays loaded between two renderings.
    """

    _lock = threading.Lock()

    def __init__(self) -> None:
        """Raises ConfigError, with the extra to install, when the ``espeakng-loader`` wheel is missing."""
        try:
            import espeakng_loader
        except ImportError as error:
            raise ConfigError(
                "espeak-ng is not installed: synthetic speech needs the extra, pip install 'idiolect-fl[synth]'"
            ) from error
        self._library_path = espeakng_loader.get_library_path()
        # espeak-ng wants the folder that holds espeak-ng-data, not that folder itself
        self._data_folder = Path(espeakng_loader.get_data_path()).parent
        voices = self._data_folder / "espeak-ng-data" / "voices" / "!v"
        self.variants = frozenset(entry.name for entry in voices.iterdir() if entry.is_file())
        """Names of the voice variants that ship with the library."""

    def render(self, text: str, language: str, voice: Voice) -> npt.NDArray[np.float32]:
        """Speak ``text`` in an espeak ``language`` ("ko", "en-us", "es-419"): float32 ``(samples,)`` in [-1, 1] at
        22,050 Hz, the same samples for the same arguments whatever was rendered before.

        Raises ConfigError for an unknown language or variant, AudioError when no sound came out.
        """
        if voice.variant not in self.variants:
            raise ConfigError(
                f"espeak variant {voice.variant!r} is not shipped; known: {', '.join(sorted(self.variants))}"
            )
        chunks: list[npt.NDArray[np.int16]] = []

        def receive(wave: Any, count: int, events: Any) -> int:
            if wave and count > 0:
                chunks.append(np.ctypeslib.as_array(wave, shape=(count,)).copy())
            return 0

        callback = _Callback(receive)
        with self._lock, self._loaded() as library:
            library.espeak_SetSynthCallback(callback)
            library.espeak_ng_SetRandSeed(_SEED)
            self._speak(library, text, f"{language}+{voice.variant}", voice)
        if not chunks:
            raise AudioError(f"espeak-ng gave no sound for {text!r} in {language!r}")
        return np.concatenate(chunks).astype(np.float32) / np.float32(32768.0)

    def phonemes(self, text: str, language: str) -> str:
        """The phonemes of ``text`` in IPA with stress marks, clauses and most words apart by spaces.

        Raises ConfigError for an unknown language, AudioError when the text has no phonemes.
        """
        with self._lock, self._loaded() as library:
            if library.espeak_SetVoiceByName(language.encode()) != 0:
                raise ConfigError(f"espeak-ng has no voice {language!r}")
            left = ctypes.pointer(ctypes.c_char_p(text.encode()))
            clauses = []
            while left.contents.value:  # each call takes a clause and moves the pointer behind it
                clauses.append((library.espeak_TextToPhonemes(left, _CHARS_UTF8, _IPA) or b"").decode())
        found = " ".join(" ".join(clauses).split())
        if not found:
            raise AudioError(f"espeak-ng gave no phonemes for {text!r} in {language!r}")
        return found

    @contextmanager
    def _loaded(self) -> Iterator[Any]:
        library = ctypes.CDLL(self._library_path)
        _declare(library)
        rate = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, str(self._data_folder).encode(), _DONT_EXIT)
        if rate != ESPEAK_SAMPLE_RATE:
            _unload(library)
            raise ConfigError(
                f"espeak-ng did not start from {self._data_folder} (code {rate}); reinstall the extra synth"
            )
        try:
            yield library
        finally:
            library.espeak_Terminate()
            _unload(library)

    def _speak(self, library: Any, text: str, name: str, voice: Voice) -> None:
        if library.espeak_SetVoiceByName(name.encode()) != 0:
            raise ConfigError(f"espeak-ng has no voice {name!r}")
        for key, value in ((_RATE, voice.rate), (_VOLUME, 80), (_PITCH, voice.pitch), (_RANGE, voice.pitch_range)):
            library.espeak_SetParameter(key, value, 0)
        data = text.encode() + b"\0"
        code = library.espeak_Synth(data, len(data), 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None)
        if code != 0:
            raise AudioError(f"espeak-ng failed with code {code} on {text!r}")


def _declare(library: Any) -> None:
    """Argument types of the functions used, after ``speak_lib.h`` of espeak-ng 1.52."""
    integer, text, address = ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p
    library.espeak_Initialize.argtypes = [integer, integer, text, integer]
    library.espeak_SetVoiceByName.argtypes = [text]
    library.espeak_SetParameter.argtypes = [integer, integer, integer]
    library.espeak_Synth.argtypes = [
        text, ctypes.c_size_t, ctypes.c_uint, integer, ctypes.c_uint, ctypes.c_uint, address, address,
    ]  # fmt: skip
    library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(text), integer, integer]
    library.espeak_TextToPhonemes.restype = text
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]


def _unload(library: Any) -> None:
    # Windows calls it FreeLibrary
    release = getattr(_ctypes, "dlclose", None) or getattr(_ctypes, "FreeLibrary")  # noqa: B009
    release(library._handle)
