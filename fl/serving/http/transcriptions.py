"""``POST /v1/audio/transcriptions``: OpenAI's request and answers, and an adapter beside the audio."""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from fl.core.errors import SilenceError
from fl.serving.engine.parts import PartUpdate, listen
from fl.serving.engine.requests import Request as EngineRequest
from fl.serving.engine.requests import ServedAdapter
from fl.serving.http import formats
from fl.serving.http.admission import ANYBODY
from fl.serving.http.forms import FormModel
from fl.serving.http.problems import ProblemError
from fl.serving.http.service import NO_STORE, PrincipalOf, Service, ServiceOf, unless_gone
from fl.speech.audio import SAMPLE_RATE, speech_parts

Granularity = Literal["word", "segment"]


class TranscriptionFields(FormModel):
    """A recording, and how to transcribe it. Empty fields are as not given; others that OpenAI's clients send are ignored."""

    file: Annotated[bytes, Field(description="Speech: mp3, mp4, m4a, mpeg, wav, webm, ogg, opus, flac, aac or amr.")]
    adapter: Annotated[
        bytes | SkipJsonSchema[None],
        Field(
            default_factory=lambda: None,
            description="A packed adapter, used for this request and then dropped. Not together with adapter_handle.",
        ),
    ]
    model: Annotated[str, Field(max_length=400, description="The served base, or whisper-1, or nothing.")] = ""
    language: Annotated[str, Field(max_length=20, description="Code; else the adapter's own, else detected.")] = ""
    prompt: Annotated[str, Field(description="Text before the recording; its last 223 tokens count.")] = ""
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = "json"
    temperature: Annotated[float, Field(ge=0, le=1, description="Accepted and ignored: decoding draws nothing.")] = 0.0
    timestamp_granularities: Annotated[
        tuple[Granularity, ...],
        Field(alias="timestamp_granularities[]", max_length=2, description="Of verbose_json; by default both."),
    ] = ("word", "segment")
    stream: Annotated[bool, Field(description="Server-sent events with partial results.")] = False
    beams: Annotated[int, Field(ge=1, le=16, description="Beam width; 1 is greedy.")] = 1
    adapter_handle: Annotated[str, Field(max_length=100, description="Of an adapter that was put before.")] = ""

    @property
    def wants_words(self) -> bool:
        """Whether the answer has words with times."""
        return "word" in self.timestamp_granularities and (self.stream or self.response_format == "verbose_json")


@dataclass(frozen=True)
class PreparedRecording:
    """A recording that is ready for the engine. ``ranges`` are the samples of its parts; ``stages`` seconds before the engine."""

    fields: TranscriptionFields
    requests: Sequence[EngineRequest]
    ranges: Sequence[tuple[int, int]]
    seconds: float
    started: float
    stages: dict[str, float]

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer: why a text is empty, and which fields were not used."""
        empty = {} if self.requests else {"x-idiolect-empty": "silence"}
        ignored = {"x-idiolect-ignored": ", ".join(self.fields.ignored)} if self.fields.ignored else {}
        return {**NO_STORE, **empty, **ignored}

    def segments(self, service: Service, updates: Sequence[PartUpdate]) -> list[formats.TimedTranscript]:
        """The transcripts of all parts with their times; their stages are counted."""
        segments = []
        for update in updates:
            assert update.transcript is not None
            for stage, seconds in asdict(update.transcript.stages).items():
                service.metrics.stage_seconds.labels(stage).observe(seconds)
            start, end = self.ranges[update.index]
            segments.append(formats.TimedTranscript(start / SAMPLE_RATE, end / SAMPLE_RATE, update.transcript))
        return segments

    def verbose(self, segments: Sequence[formats.TimedTranscript]) -> dict[str, Any]:
        """The document of ``verbose_json``."""
        stages = {**self.stages, "total": time.monotonic() - self.started}
        return formats.verbose(segments, self.seconds, self.fields.timestamp_granularities, stages)

    def response(self, segments: Sequence[formats.TimedTranscript]) -> Response:
        """The answer in the format that was asked for."""
        kind, text = self.fields.response_format, formats.plain_text(segments)
        if kind in formats.MEDIA_TYPES:
            text = text + "\n" if kind == "text" else formats.subtitles(segments, kind)
            return PlainTextResponse(text, headers=self.headers, media_type=formats.MEDIA_TYPES[kind])
        return JSONResponse(self.verbose(segments) if kind == "verbose_json" else {"text": text}, headers=self.headers)


router = APIRouter(tags=["transcription"])
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The transcript in the format that was asked for.",
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["text"]}},
            **{media.partition(";")[0]: {"schema": {"type": "string"}} for media in formats.MEDIA_TYPES.values()},
            formats.EVENTS_TYPE: {"schema": {"type": "object", "required": ["event", "data"]}},  # of each event
        },
    }
}


@router.post(
    "/v1/audio/transcriptions",
    openapi_extra=TranscriptionFields.document(),
    responses=_ANSWERS,
    response_class=Response,
)
async def transcribe(request: Request, service: ServiceOf, principal: PrincipalOf) -> Response:
    """Transcribe a recording with a person's adapter, or with the frozen base alone."""
    recording = await _prepare(request, service, principal)
    stream = recording.fields.stream
    updates = listen(service.engine, recording.requests, ahead=service.limits.parts_ahead, partial=stream)
    if not stream:
        return recording.response(recording.segments(service, await unless_gone(request, _transcripts(updates))))
    first = await unless_gone(request, formats.next_of(updates))

    def finish(done: list[PartUpdate]) -> dict[str, Any]:
        return {**recording.verbose(recording.segments(service, done)), "type": "transcript.text.done"}

    events = formats.events(first, updates, finish)
    return StreamingResponse(
        events, media_type=formats.EVENTS_TYPE, headers={**recording.headers, **formats.EVENTS_HEADERS}
    )


async def _prepare(request: Request, service: Service, principal: str) -> PreparedRecording:
    started = time.monotonic()
    fields = await TranscriptionFields.read(request, max_files=2)
    service.check_model(fields.model)
    language = service.check_language(fields.language)
    if fields.beams > service.limits.max_beams:
        raise ProblemError("invalid-field", f"beams: {fields.beams} is above the limit of {service.limits.max_beams}")
    received = time.monotonic()
    adapter = await _adapter(fields, service, principal)
    admitted = time.monotonic()
    try:
        audio = await service.decode(fields.file, principal, service.limits.max_audio_seconds)
    except SilenceError as silence:  # dictation programs send it whenever nobody speaks
        audio = np.zeros(round(silence.seconds * SAMPLE_RATE), np.float32)
    ranges = await service.off_loop(speech_parts, audio)
    decoded = time.monotonic()
    prompt = await service.off_loop(service.base.prompt_ids, fields.prompt)
    requests = [
        EngineRequest(
            audio=audio[start:end],
            adapter=adapter,
            # Whose turn it is in the engine's fair queue: the token's, or, where there are no tokens, the adapter's.
            person=adapter.digest if principal == ANYBODY and adapter is not None else principal,
            language=language,
            prompt=prompt,
            words=fields.wants_words,
            beams=fields.beams,
            deadline=decoded + service.limits.request_seconds,
        )
        for start, end in ranges
    ]
    stages = {"receive": received - started, "adapter": admitted - received, "audio": decoded - admitted}
    return PreparedRecording(fields, requests, ranges, len(audio) / SAMPLE_RATE, started, stages)


async def _adapter(fields: TranscriptionFields, service: Service, principal: str) -> ServedAdapter | None:
    if fields.adapter is not None and fields.adapter_handle:
        raise ProblemError("invalid-field", "adapter: is given together with adapter_handle; send one of them")
    if fields.adapter_handle:
        return service.handles.get(principal, fields.adapter_handle)
    return await service.admit(fields.adapter, principal) if fields.adapter is not None else None


async def _transcripts(updates: AsyncIterator[PartUpdate]) -> list[PartUpdate]:
    return [update async for update in updates if update.transcript is not None]
