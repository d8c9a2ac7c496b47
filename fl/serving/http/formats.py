"""Transcripts as they are sent: the response formats and the event stream of OpenAI's API, and which word is which language.

The times of words are found by alignment (:mod:`fl.bases.whisper.alignment`). Times of segments are exact, since audio is cut there.

Deltas of a stream (server-sent events ``transcript.text.delta``) only ever add. While the model reconsiders (a beam search, half a
Hangul syllable) nothing is sent. The event ``transcript.text.done`` has the whole text: where it differs from the deltas, it is right.
"""

import asyncio
import json
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from fl.metrics.languages import SCRIPT_LANGUAGES, script_language, switch_words
from fl.serving.engine.parts import PartUpdate
from fl.serving.engine.requests import Stages, Transcript
from fl.serving.http.problems import problem_of

EVENTS_TYPE = "text/event-stream"
EVENTS_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}  # a proxy that collects would spoil it
KEEP_ALIVE_SECONDS = 10.0
MEDIA_TYPES = {
    "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
}


@dataclass(frozen=True)
class TimedTranscript:
    """A part of the recording with its transcript. Times are in seconds."""

    start: float
    end: float
    transcript: Transcript

    @property
    def text(self) -> str:
        """What was said in it."""
        return self.transcript.text


def plain_text(segments: Sequence[TimedTranscript]) -> str:
    """The parts of a recording as one text."""
    return " ".join(segment.text for segment in segments if segment.text)


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


def timed_words(segment: TimedTranscript, alphabetic: str) -> list[dict[str, Any]]:
    """The words of a segment with their times in the recording and the language of their first letter."""
    return [
        {
            "word": word.text,
            "start": round(segment.start + word.start, 3),
            "end": round(segment.start + word.end, 3),
            "language": script_language(word.text, alphabetic),
        }
        for word in segment.transcript.words
    ]


def verbose(
    segments: Sequence[TimedTranscript], seconds: float, granularities: Sequence[str], stages: dict[str, float]
) -> dict[str, Any]:
    """``response_format=verbose_json`` of a recording of so many ``seconds``, with ``spans`` by language and ``stages``, which
    OpenAI's has not: those of the engine, and ``stages`` outside it."""
    language = segments[0].transcript.language if segments else ""
    text = plain_text(segments)
    # Words in Latin letters are of the transcript's own language, or English beside Korean, Chinese, Japanese.
    alphabetic = "en" if not language or language in SCRIPT_LANGUAGES.values() else language
    # Parts that ran side by side add up to more than the clock showed.
    spent = [asdict(segment.transcript.stages) for segment in segments]
    inside = {field.name: round(sum(of[field.name] for of in spent), 6) for field in fields(Stages)}
    document: dict[str, Any] = {
        "task": "transcribe",
        "language": language,
        "duration": round(seconds, 3),
        "text": text,
        "spans": language_spans(text, alphabetic),
        "stages": {**inside, **{name: round(seconds, 6) for name, seconds in stages.items()}},
    }
    if "segment" in granularities:
        document["segments"] = [_segment(number, segment) for number, segment in enumerate(segments)]
    if "word" in granularities:
        document["words"] = [word for segment in segments for word in timed_words(segment, alphabetic)]
    return document


def _segment(number: int, segment: TimedTranscript) -> dict[str, Any]:
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


def subtitles(segments: Sequence[TimedTranscript], kind: str) -> str:
    """``srt`` or ``vtt``, a cue for each segment with text."""
    comma = "," if kind == "srt" else "."
    blocks = []
    for number, cue in enumerate((segment for segment in segments if segment.text), 1):
        text = cue.text.replace("-->", "->")  # cannot be taken for the arrow between times
        times = f"{_clock(cue.start, comma)} --> {_clock(cue.end, comma)}"
        blocks.append((f"{number}\n" if kind == "srt" else "") + f"{times}\n{text}\n")
    return ("WEBVTT\n\n" if kind == "vtt" else "") + "\n".join(blocks)


def _clock(seconds: float, comma: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{comma}{rest % 1000:03d}"


def event(document: dict[str, Any]) -> bytes:
    """One event whose name is the document's ``type``."""
    return f"event: {document['type']}\ndata: {json.dumps(document, ensure_ascii=False)}\n\n".encode()


async def events(
    first: PartUpdate | None, rest: AsyncIterator[PartUpdate], finish: Callable[[list[PartUpdate]], dict[str, Any]]
) -> AsyncIterator[bytes]:
    """The events of a recording from its updates ``first`` and ``rest``; ``finish`` makes the last document of its transcripts."""
    done: list[PartUpdate] = []
    update, part, sent, space = first, 0, "", ""  # ``sent`` is of the part at hand
    upcoming: asyncio.Task[PartUpdate | None] | None = None
    try:
        while update is not None:
            if update.index != part:
                part, sent = update.index, ""
            if update.text != sent and update.text.startswith(sent):  # nothing is taken back
                new = update.text[len(sent) :]
                yield event({"type": "transcript.text.delta", "delta": new if sent else space + new})
                sent = update.text
            if update.transcript is not None:
                done.append(update)
                space = " " if update.text else space
            upcoming = asyncio.create_task(next_of(rest))
            while not (await asyncio.wait({upcoming}, timeout=KEEP_ALIVE_SECONDS))[0]:
                yield b": still working\n\n"
            update = upcoming.result()
        yield event(finish(done))
    except Exception as error:
        problem = problem_of(error).document()
        yield event({"type": "error", "error": problem["error"], "problem": problem})  # OpenAI's clients read "error"
    finally:
        if upcoming is not None and not upcoming.done():
            upcoming.cancel()
            await asyncio.wait({upcoming})
        if isinstance(rest, AsyncGenerator):
            await rest.aclose()


async def next_of(source: AsyncIterator[PartUpdate]) -> PartUpdate | None:
    """The next of ``source``, None at its end (a task may not raise StopAsyncIteration)."""
    return await anext(source, None)
