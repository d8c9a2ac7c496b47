"""``POST /v1/audio/transcriptions``: OpenAI's request and answers, and an adapter beside the audio."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel, Field

from fl.serving.engine.parts import Heard, listen
from fl.serving.engine.requests import Request as EngineRequest
from fl.serving.engine.requests import ServedAdapter
from fl.serving.http import formats, streaming
from fl.serving.http.audio import speech_parts
from fl.serving.http.formats import Segment
from fl.serving.http.forms import Form, form_document, parse_fields, read_form
from fl.serving.http.gate import ANYBODY
from fl.serving.http.problems import ProblemError
from fl.serving.http.service import Service, principal_of, service_of, unless_gone
from fl.speech.audio import SAMPLE_RATE

Granularity = Literal["word", "segment"]
_FILES = {
    "file": "Speech: WAV, FLAC, OGG (Vorbis, Opus), MP3; any rate.",
    "adapter": "A packed adapter, used for this request and then dropped. Not together with adapter_handle.",
}


class TranscriptionFields(BaseModel):
    """The text fields. Others that OpenAI's clients send are ignored."""

    model: Annotated[str, Field(max_length=200, description="The served base, or whisper-1, or nothing.")] = ""
    language: Annotated[str, Field(max_length=20, description="Code; else the adapter's own, else detected.")] = ""
    prompt: Annotated[str, Field(description="Accepted and ignored.")] = ""
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = "json"
    temperature: Annotated[float, Field(ge=0, le=1, description="Accepted and ignored: decoding draws nothing.")] = 0.0
    timestamp_granularities: Annotated[
        list[Granularity],
        Field(alias="timestamp_granularities[]", max_length=2, description="Of verbose_json; by default both."),
    ] = ["word", "segment"]
    stream: Annotated[bool, Field(description="Server-sent events with partial results.")] = False
    beams: Annotated[int, Field(ge=1, le=16, description="Beam width; 1 is greedy.")] = 1
    adapter_handle: Annotated[str, Field(max_length=100, description="Of an adapter that was put before.")] = ""


@dataclass(frozen=True)
class Task:
    """A recording that is ready for the engine. ``ranges`` are the samples of its parts; ``stages`` seconds before the engine."""

    fields: TranscriptionFields
    requests: Sequence[EngineRequest]
    ranges: Sequence[tuple[int, int]]
    seconds: float
    started: float
    stages: dict[str, float]


def router() -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["transcription"])
    document = form_document(TranscriptionFields, _FILES, required=["file"])
    answers: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "The transcript in the format that was asked for.",
            "content": {
                "application/json": {"schema": {"type": "object", "required": ["text"]}},
                **{media.partition(";")[0]: {"schema": {"type": "string"}} for media in formats.MEDIA_TYPES.values()},
                streaming.MEDIA_TYPE: {"schema": {"type": "object", "required": ["event", "data"]}},  # of each event
            },
        }
    }

    @routes.post(
        "/v1/audio/transcriptions", openapi_extra={"requestBody": document}, responses=answers, response_class=Response
    )
    async def transcribe(request: Request) -> Response:
        """Transcribe a recording with a person's adapter, or with the frozen base alone."""
        service = service_of(request)
        task = await _prepare(request, service)
        news = listen(service.engine, task.requests, ahead=service.settings.parts_ahead, partial=task.fields.stream)
        if task.fields.stream:
            first = await unless_gone(request, streaming.next_of(news))

            def finish(heard: list[Heard]) -> dict[str, Any]:
                return {**_verbose(task, _segments(service, task, heard)), "type": "transcript.text.done"}

            return StreamingResponse(
                streaming.events(first, news, finish), media_type=streaming.MEDIA_TYPE, headers=streaming.HEADERS
            )
        heard = await unless_gone(request, _collect(news))
        return _response(task, _segments(service, task, heard))

    return routes


async def _prepare(request: Request, service: Service) -> Task:
    started, principal = time.monotonic(), principal_of(request)
    form = await read_form(request, max_files=2)
    fields = parse_fields(TranscriptionFields, form)
    service.check_model(fields.model)
    language = service.check_language(fields.language)
    if fields.beams > service.settings.max_beams:
        raise ProblemError(
            "invalid-field", f"beams: {fields.beams} is more than the {service.settings.max_beams} of this server"
        )
    data = form.required_file("file")
    received = time.monotonic()
    adapter = await _adapter(form, fields, service, principal)
    admitted = time.monotonic()
    audio = await service.decode(data, principal, service.settings.max_audio_seconds)
    ranges = await service.off_loop(speech_parts, audio)
    decoded = time.monotonic()
    deadline = decoded + service.settings.request_seconds
    requests = [
        EngineRequest(
            audio=audio[start:end],
            adapter=adapter,
            person=_person(principal, adapter),
            language=language,
            beams=fields.beams,
            deadline=deadline,
        )
        for start, end in ranges
    ]
    stages = {"receive": received - started, "adapter": admitted - received, "audio": decoded - admitted}
    return Task(fields, requests, ranges, len(audio) / SAMPLE_RATE, started, stages)


def _person(principal: str, adapter: ServedAdapter | None) -> str:
    """Whose turn it is in the engine's fair queue: the token's, or, where there are no tokens, the adapter's."""
    return adapter.digest if principal == ANYBODY and adapter is not None else principal


async def _adapter(form: Form, fields: TranscriptionFields, service: Service, principal: str) -> ServedAdapter | None:
    packed = form.file("adapter")
    if packed is not None and fields.adapter_handle:
        raise ProblemError("invalid-field", "adapter: is given together with adapter_handle; send one of them")
    if fields.adapter_handle:
        return service.handles.get(principal, fields.adapter_handle)
    if packed is None and form.texts.get("adapter"):
        raise ProblemError("invalid-field", "adapter: is a text; send it as a part with a file name")
    return await service.admit(packed) if packed is not None else None


async def _collect(news: AsyncIterator[Heard]) -> list[Heard]:
    return [heard async for heard in news if heard.transcript is not None]


def _segments(service: Service, task: Task, heard: Sequence[Heard]) -> list[Segment]:
    segments = []
    for news in heard:
        assert news.transcript is not None
        service.metrics.observe(news.transcript)
        start, end = task.ranges[news.index]
        segments.append(Segment(start / SAMPLE_RATE, end / SAMPLE_RATE, news.transcript))
    return segments


def _verbose(task: Task, segments: Sequence[Segment]) -> dict[str, Any]:
    stages = {**task.stages, "total": time.monotonic() - task.started}
    rounded = {name: round(seconds, 6) for name, seconds in stages.items()}
    return formats.verbose(segments, task.seconds, frozenset(task.fields.timestamp_granularities), rounded)


def _response(task: Task, segments: Sequence[Segment]) -> Response:
    kind, headers = task.fields.response_format, {"cache-control": "no-store"}
    if kind == "verbose_json":
        return JSONResponse(_verbose(task, segments), headers=headers)
    if kind == "json":
        return JSONResponse(formats.plain(segments), headers=headers)
    text = formats.plain(segments)["text"] + "\n" if kind == "text" else formats.subtitles(segments, kind)
    return PlainTextResponse(text, headers=headers, media_type=formats.MEDIA_TYPES[kind])
