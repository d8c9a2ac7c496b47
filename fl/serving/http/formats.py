"""Transcripts as they are sent: the response formats of OpenAI's API, and which word is which language.

The model gives text and no times, so the times of words are estimated: each part's seconds are divided by the letters of its
words. Times of segments are exact, since audio is cut there.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fl.metrics.languages import SCRIPT_LANGUAGES, script_language, switch_words
from fl.serving.engine.requests import Stages, Transcript

FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
MEDIA_TYPES = {
    "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
}


@dataclass(frozen=True)
class Segment:
    """A part of the recording with its transcript. Times are in seconds."""

    start: float
    end: float
    transcript: Transcript

    @property
    def text(self) -> str:
        """What was said in it."""
        return self.transcript.text


def join(texts: Sequence[str]) -> str:
    """The parts of a recording as one text."""
    return " ".join(text for text in texts if text)


def alphabetic_of(language: str) -> str:
    """The language that words in Latin letters are taken for: the transcript's own, or English beside Korean, Chinese, Japanese."""
    return "en" if not language or language in SCRIPT_LANGUAGES.values() else language


def language_spans(text: str, alphabetic: str) -> list[dict[str, Any]]:
    """``text`` in stretches of one language: ``text``, ``language`` (None for digits and signs alone), ``start`` and ``end``
    as positions in ``text``. A particle behind an English word is a stretch of its own."""
    spans: list[dict[str, Any]] = []
    position = 0
    for word in text.split():
        position = text.index(word, position)
        for piece in switch_words(word):
            language = script_language(piece, alphabetic)
            end = position + len(piece)
            if spans and spans[-1]["language"] == language:
                spans[-1].update(text=text[spans[-1]["start"] : end], end=end)
            else:
                spans.append({"text": piece, "language": language, "start": position, "end": end})
            position = end
    return spans


def timed_words(segment: Segment, alphabetic: str) -> list[dict[str, Any]]:
    """The words of a segment with estimated times and the language of their first letter."""
    words = segment.text.split()
    letters = sum(len(word) for word in words)
    seconds, before, timed = segment.end - segment.start, 0, []
    for word in words:
        start = segment.start + seconds * before / letters
        before += len(word)
        end = segment.start + seconds * before / letters
        language = script_language(word, alphabetic)
        timed.append({"word": word, "start": round(start, 3), "end": round(end, 3), "language": language})
    return timed


def add_stages(stages: Sequence[Stages]) -> dict[str, float]:
    """Seconds by stage of all parts together; parts that ran side by side add up to more than the clock showed."""
    names = ("queue", "features", "encode", "decode")
    return {name: round(sum(getattr(stage, name) for stage in stages), 6) for name in names}


def plain(segments: Sequence[Segment]) -> dict[str, Any]:
    """``response_format=json``."""
    return {"text": join([segment.text for segment in segments])}


def verbose(
    segments: Sequence[Segment], seconds: float, granularities: frozenset[str], stages: dict[str, float]
) -> dict[str, Any]:
    """``response_format=verbose_json``: with ``spans`` by language and ``stages``, which OpenAI's has not."""
    language = segments[0].transcript.language if segments else ""
    text, alphabetic = join([segment.text for segment in segments]), alphabetic_of(language)
    document: dict[str, Any] = {
        "task": "transcribe",
        "language": language,
        "duration": round(seconds, 3),
        "text": text,
        "spans": language_spans(text, alphabetic),
        "stages": {**add_stages([segment.transcript.stages for segment in segments]), **stages},
    }
    if "segment" in granularities:
        document["segments"] = [_segment(number, segment) for number, segment in enumerate(segments)]
    if "word" in granularities:
        document["words"] = [word for segment in segments for word in timed_words(segment, alphabetic)]
    return document


def _segment(number: int, segment: Segment) -> dict[str, Any]:
    found, text = segment.transcript, segment.text.encode()
    return {
        "id": number,
        "seek": round(segment.start * 100),  # in mel frames of 10 ms
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": list(found.tokens),
        "temperature": 0.0,
        "avg_logprob": found.log_prob / (len(found.tokens) + 1),  # the end token included
        "compression_ratio": round(len(text) / len(zlib.compress(text)), 3) if text else 0.0,
        "no_speech_prob": 0.0,  # not computed: silence is left out before
        "language": found.language,
        "reason": found.reason,
    }


def subtitles(segments: Sequence[Segment], kind: str) -> str:
    """``srt`` or ``vtt``, a cue for each segment with text."""
    comma = "," if kind == "srt" else "."
    cues = [s for s in segments if s.text]
    blocks = [
        (f"{number}\n" if kind == "srt" else "")
        + f"{_clock(s.start, comma)} --> {_clock(s.end, comma)}\n{_cue(s.text)}\n"
        for number, s in enumerate(cues, 1)
    ]
    return ("WEBVTT\n\n" if kind == "vtt" else "") + "\n".join(blocks)


def _cue(text: str) -> str:
    """Text that cannot be taken for the arrow between times."""
    return text.replace("-->", "->")


def _clock(seconds: float, comma: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{comma}{rest % 1000:03d}"
