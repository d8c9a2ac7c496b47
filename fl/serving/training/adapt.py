"""``POST /v1/adapt``: a device that cannot hold the base sends labelled speech and its adapter, and gets the adapter trained.

Form: ``adapter`` (packed, one file), ``audio`` (one file for each utterance, in order), ``texts`` (a JSON array of as many
strings) and numbers. Answer: ``adapter`` (the new one, packed, base64), what of it is ``shared``, ``private`` and ``fixed``,
and how it went. Nothing is kept. What is shared goes on to an aggregator only through :func:`fl.serving.onward.shared_reply`.

Who runs the steps is a parameter, since training belongs to the devices' side: one job at a time, a few wait.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from fl.adapters.split import Split, make_split
from fl.adapters.state import State
from fl.core.errors import AdapterError, ConfigError, SplitError, TextError
from fl.packed.blob import digest, pack, read_info
from fl.serving.engine.requests import ClosedError, DeadlineError, ServedAdapter
from fl.serving.http.forms import Form, form_document, parse_fields, read_form
from fl.serving.http.limits import ADAPT_PATH, Settings
from fl.serving.http.problems import ProblemError
from fl.serving.http.service import Service, principal_of, service_of, unless_gone
from fl.settings.config import TrainConfig
from fl.settings.names import LAYERS_PREFIX
from fl.speech.audio import MAX_SECONDS, SAMPLE_RATE, Waveform
from fl.speech.text import normalize_text

MAX_TEXT = 1_000  # characters of one utterance
RETRY_SECONDS = 30.0
_PLAIN = re.compile(r"[\w.\\|^$-]{1,200}")  # a pattern without repetition or groups, which cannot run for long
_TRAIN = TrainConfig()
_FILES = {
    "adapter": "The packed adapter to go on from.",
    "audio": "One file for each utterance, at most 29 s, in the order of texts.",
}


class AdaptFields(BaseModel):
    """The text fields; the defaults are those of ``idiolect run``."""

    texts: Annotated[str, Field(description="A JSON array with the transcript of each audio file, in order.")]
    steps: Annotated[int, Field(ge=0, le=10_000, description="Steps on shared and private part.")] = _TRAIN.local_steps
    private_steps: Annotated[int, Field(ge=0, le=10_000, description="Further steps on the private part.")] = 0
    batch_size: Annotated[int, Field(ge=1, le=16)] = _TRAIN.batch_size
    learning_rate: Annotated[float, Field(gt=0, le=1)] = _TRAIN.learning_rate
    private_learning_rate: Annotated[float, Field(gt=0, le=1)] = _TRAIN.private_learning_rate
    gate_dropout: Annotated[float, Field(ge=0, le=1, description="Share of steps with neutral gates.")] = (
        _TRAIN.gate_dropout
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    language: Annotated[str, Field(max_length=20, description="By default the adapter's own.")] = ""
    dtype: Annotated[
        Literal["", "float32", "float16", "int8"], Field(description="Of the answer; as sent if empty.")
    ] = ""


@dataclass(frozen=True)
class Labelled:
    """One utterance: samples (samples,) at 16 kHz and its text in NFC."""

    audio: Waveform
    text: str


@dataclass(frozen=True)
class AdaptJob:
    """What is to be trained. ``check`` is to be called before each step; it raises when nobody waits any more."""

    adapter: ServedAdapter
    split: Split
    utterances: tuple[Labelled, ...]
    language: str
    fields: AdaptFields
    check: Callable[[], None]


@dataclass(frozen=True)
class AdaptResult:
    """The tensors after training, by name, with mean loss in nats, examples seen and seconds."""

    tensors: State
    loss: float
    examples: int
    steps: int
    seconds: float


Adapt = Callable[[AdaptJob], AdaptResult]


class Trainer:
    """Runs one job at a time in a thread of its own; at most ``adapts_waiting`` wait."""

    def __init__(self, adapt: Adapt, settings: Settings) -> None:
        self._adapt = adapt
        self._settings = settings
        self._pool = ThreadPoolExecutor(1, "idiolect-adapt")
        self.open = 0
        self._closing = threading.Event()

    async def run(self, make: Callable[[Callable[[], None]], AdaptJob]) -> AdaptResult:
        """The result of the job that ``make`` makes around its ``check``. Whoever stops waiting stops the job at its next step."""
        if self.open > self._settings.adapts_waiting:
            raise ProblemError("busy", f"{self.open} adapters are being trained or wait", retry_after=RETRY_SECONDS)
        stop = threading.Event()
        self.open += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, self._work, make, stop)
        future.add_done_callback(self._done)
        try:
            return await asyncio.shield(future)
        finally:
            stop.set()

    def _work(self, make: Callable[[Callable[[], None]], AdaptJob], stop: threading.Event) -> AdaptResult:
        deadline = time.monotonic() + self._settings.adapt_seconds

        def check() -> None:
            if self._closing.is_set() or stop.is_set():
                raise ClosedError("nobody waits for this adapter any more")
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"not trained within {self._settings.adapt_seconds:g} s: send fewer steps or utterances"
                )

        check()
        return self._adapt(make(check))

    def _done(self, future: asyncio.Future[AdaptResult]) -> None:
        self.open -= 1
        if not future.cancelled():
            future.exception()  # looked at: asyncio would log it with its message where nobody waits any more

    def close(self) -> None:
        """Stop what runs at its next step, and wait for it."""
        self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


def adapt_router(trainer: Trainer) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["personalization"])
    document = form_document(AdaptFields, _FILES, required=["adapter", "audio"], many=["audio"])

    @routes.post(ADAPT_PATH, openapi_extra={"requestBody": document})
    async def adapt(request: Request) -> JSONResponse:
        """Train an adapter on labelled speech for a device, and keep nothing of either."""
        service, principal = service_of(request), principal_of(request)
        form = await read_form(request, max_files=service.settings.max_utterances + 1)
        fields = parse_fields(AdaptFields, form)
        if not 1 <= fields.steps + fields.private_steps <= service.settings.max_steps:
            raise ProblemError("invalid-field", f"steps: 1 to {service.settings.max_steps} together with private_steps")
        texts = _texts(fields.texts, form, service.settings)
        data = form.required_file("adapter")
        adapter = await service.admit(data)
        split = _split(adapter)
        language = service.check_language(fields.language) or adapter.info.language
        if service.base.languages and not language:
            raise ProblemError(
                "invalid-field", "language: is empty, and the adapter has none; give the one of its prompt"
            )
        utterances = await _utterances(form.files["audio"], texts, service, principal)

        def make(check: Callable[[], None]) -> AdaptJob:
            return AdaptJob(adapter, split, utterances, language, fields, check)

        result = await unless_gone(request, trainer.run(make))
        document = await service.off_loop(_answer, data, result, fields, split)
        return JSONResponse(document, headers={"cache-control": "no-store"})

    return routes


def _texts(written: str, form: Form, settings: Settings) -> list[str]:
    try:
        texts = json.loads(written)
    except (ValueError, RecursionError):
        texts = None
    if not isinstance(texts, list) or not all(isinstance(text, str) and len(text) <= MAX_TEXT for text in texts):
        raise ProblemError("invalid-field", f"texts: is no JSON array of strings of at most {MAX_TEXT} characters")
    files = len(form.files.get("audio", []))
    if files != len(texts) or not 1 <= files <= settings.max_utterances:
        raise ProblemError(
            "invalid-field",
            f"audio: {files} files for {len(texts)} texts; send one for each, 1 to {settings.max_utterances}",
        )
    return [_normalized(text, number) for number, text in enumerate(texts)]


def _normalized(text: str, number: int) -> str:
    try:
        return normalize_text(text)
    except TextError as error:
        raise TextError(f"texts[{number}]: {error}") from None


def _split(adapter: ServedAdapter) -> Split:
    preset = adapter.info.split
    if preset.startswith(LAYERS_PREFIX) and not _PLAIN.fullmatch(preset.removeprefix(LAYERS_PREFIX)):
        raise AdapterError(
            f"the adapter's split {preset[:80]!r} is a pattern with repetition or groups: use a plainer one"
        )
    try:
        return make_split(preset, adapter.tensors)
    except (ConfigError, SplitError) as error:
        raise AdapterError(f"the adapter does not say what of it is private: {error}") from None


async def _utterances(files: list[bytes], texts: list[str], service: Service, principal: str) -> tuple[Labelled, ...]:
    utterances, left = [], service.settings.max_train_seconds
    for number, (data, text) in enumerate(zip(files, texts, strict=True)):
        audio = await service.decode(data, principal, min(left, MAX_SECONDS), f"audio[{number}]")
        left -= len(audio) / SAMPLE_RATE
        utterances.append(Labelled(audio, text))
    return tuple(utterances)


def _answer(data: bytes, result: AdaptResult, fields: AdaptFields, split: Split) -> dict[str, Any]:
    info = read_info(data)
    if fields.dtype:
        info = replace(info, dtype=fields.dtype)
    if fields.language:
        info = replace(info, language=fields.language)
    packed = pack({name: tensor.numpy() for name, tensor in result.tensors.items()}, info)
    return {
        "adapter": base64.b64encode(packed).decode(),
        "bytes": len(packed),
        "digest": digest(packed),
        "dtype": info.dtype,
        "shared": list(split.shared),
        "private": list(split.private),
        "fixed": list(split.fixed),
        "loss": result.loss,
        "examples": result.examples,
        "steps": result.steps,
        "seconds": round(result.seconds, 3),
    }
