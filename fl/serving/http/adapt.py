"""``POST /v1/adapt``: a device that cannot hold the base sends labelled speech and its adapter, and is enrolled: it gets the adapter
with a private part trained on that speech.

Form: ``adapter`` (packed, one file), ``audio`` (one file for each utterance, in order), ``texts`` (a JSON array of as many
strings). Answer: what each utterance is transcribed as before and after by what did not train on it, and, where that is no worse or
``keep`` is given, ``adapter`` (the new one, packed, base64). Nothing is kept, and nothing is sent on.

Who enrols is a parameter, since training belongs to the devices' side: one job at a time, a few wait.
"""

import asyncio
import base64
import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import Field, Json

from fl.adapters.split import covering
from fl.adapters.state import State
from fl.core.errors import AdapterError, ConfigError, SplitError, TextError
from fl.packed.blob import digest, pack, read_info
from fl.serving.engine.parts import look_at
from fl.serving.engine.requests import ClosedError, DeadlineError, ServedAdapter
from fl.serving.http.forms import FormModel
from fl.serving.http.limits import ADAPT_PATH, Places, ServerLimits
from fl.serving.http.problems import ProblemError
from fl.serving.http.service import NO_STORE, PrincipalOf, ServiceOf, unless_gone
from fl.settings.names import LAYERS_PREFIX
from fl.speech.audio import MAX_SECONDS, SAMPLE_RATE, Waveform
from fl.speech.text import normalize_text

MAX_TEXT = 1_000  # characters of one utterance
RETRY_SECONDS = 30.0
_PLAIN = re.compile(r"[\w.\\|^$-]{1,200}")  # a pattern without repetition or groups, which cannot run for long


class AdaptFields(FormModel):
    """An adapter and labelled speech. What trains, and how fast, is the default of ``idiolect enrol``."""

    adapter: Annotated[bytes, Field(description="The packed adapter to go on from.")]
    audio: Annotated[
        list[Annotated[bytes, Field(description="One file for each utterance, at most 29 s, in the order of texts.")]],
        Field(min_length=1),
    ]
    texts: Annotated[
        Json[list[Annotated[str, Field(max_length=MAX_TEXT)]]],
        Field(description="A JSON array with the transcript of each audio file, in order."),
    ]
    keep: Annotated[bool, Field(description="Send the adapter even where it makes left-out utterances worse.")] = False
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    language: Annotated[str, Field(max_length=40, description="By default the adapter's own.")] = ""
    dtype: Annotated[Literal["", "float32", "float16", "int8"], Field(description="Of the answer; else as sent.")] = ""

    def check(self, limits: ServerLimits) -> None:
        """Raise :class:`ProblemError` for more utterances than the limit, or files without texts."""
        files, texts = len(self.audio), len(self.texts)
        if files != texts or not 1 <= files <= limits.max_utterances:
            raise ProblemError(
                "invalid-field",
                f"audio: {files} files for {texts} texts; send one for each, 1 to {limits.max_utterances}",
            )


@dataclass(eq=False)
class AdaptJob:
    """Who is to be enrolled within ``seconds``, on utterances: samples (samples,) at 16 kHz, and text in NFC."""

    adapter: ServedAdapter
    utterances: Sequence[tuple[Waveform, str]]
    language: str
    fields: AdaptFields
    seconds: float
    started: float = math.inf  # on time.monotonic's clock
    stop: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """To be called before each step: raises when the client has hung up, the server stops, or the time is over."""
        if self.stop.is_set():
            raise ClosedError("the request for this adapter was given up")
        if time.monotonic() > self.started + self.seconds:
            raise DeadlineError(f"not trained within {self.seconds:g} s: send fewer utterances")


@dataclass(frozen=True)
class AdaptResult:
    """The tensors after an enrolment and the ``private`` ones, by name; whether they help; what the person is told beside that."""

    tensors: State
    private: Sequence[str]
    helps: bool
    report: Mapping[str, Any]


Adapt = Callable[[AdaptJob], AdaptResult]


class AdaptQueue:
    """Runs one job at a time in a thread of its own; at most ``waiting`` wait, and ``share`` of all are one token's."""

    def __init__(self, adapt: Adapt, waiting: int, share: float) -> None:
        self.jobs: list[AdaptJob] = []
        self._adapt = adapt
        self._places = Places("adapters in training", 1 + waiting, share, RETRY_SECONDS)
        self._pool = ThreadPoolExecutor(1, "idiolect-adapt")

    async def run(self, job: AdaptJob, principal: str) -> AdaptResult:
        """The result of ``job``. A caller that is cancelled stops the job at its next step."""
        self._places.take(principal)
        self.jobs.append(job)
        future = asyncio.get_running_loop().run_in_executor(self._pool, self._work, job)
        future.add_done_callback(partial(self._done, job, principal))
        try:
            return await asyncio.shield(future)
        finally:
            job.stop.set()

    def _work(self, job: AdaptJob) -> AdaptResult:
        job.started = time.monotonic()
        job.check()
        return self._adapt(job)

    def _done(self, job: AdaptJob, principal: str, future: asyncio.Future[AdaptResult]) -> None:
        self.jobs.remove(job)
        self._places.give_back(principal)
        look_at(future)

    def close(self) -> None:
        """Stop what runs at its next step, and wait for it."""
        for job in list(self.jobs):
            job.stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


router = APIRouter(tags=["personalization"])


@router.post(ADAPT_PATH, openapi_extra=AdaptFields.document())
async def adapt(request: Request, service: ServiceOf, principal: PrincipalOf) -> JSONResponse:
    """Enrol a device on labelled speech, and keep nothing of either."""
    fields = await AdaptFields.read(request, max_files=service.limits.max_utterances + 1)
    fields.check(service.limits)
    texts = _targets(fields.texts)
    adapter = await service.admit(fields.adapter, principal)
    _split_after(adapter, ())
    language = service.check_language(fields.language) or adapter.info.language
    if service.base.languages and not language:
        raise ProblemError("invalid-field", "language: is empty, and the adapter has none; give the one of its prompt")
    utterances, left = [], service.limits.max_train_seconds
    for number, data in enumerate(fields.audio):
        audio = await service.decode(data, principal, MAX_SECONDS, f"audio[{number}]")
        left -= len(audio) / SAMPLE_RATE
        if left < 0:  # the fault of all, not of this one
            most = f"at most {service.limits.max_train_seconds:g} s of audio in all are taken"
            raise ProblemError("audio-too-long", f"audio: {most}; send fewer utterances at once")
        try:
            await service.off_loop(service.base.check_text, texts[number], len(audio) / SAMPLE_RATE)
        except TextError as error:
            raise TextError(f"texts[{number}]: {error}") from None
        utterances.append((audio, texts[number]))
    job = AdaptJob(adapter, utterances, language, fields, service.limits.adapt_seconds)
    queue: AdaptQueue = request.app.state.adapts
    result = await unless_gone(request, queue.run(job, principal))
    return JSONResponse(await service.off_loop(_answer, result, job), headers=NO_STORE)


def _targets(texts: list[str]) -> list[str]:
    """``texts`` in NFC; :class:`TextError` that names the number of one that cannot be a target."""
    for number, text in enumerate(texts):
        try:
            texts[number] = normalize_text(text)
        except TextError as error:
            raise TextError(f"texts[{number}]: {error}") from None
    return texts


def _split_after(adapter: ServedAdapter, private: Sequence[str]) -> str:
    """What the adapter says of itself once ``private`` is a person's own."""
    preset = adapter.info.split
    if preset.startswith(LAYERS_PREFIX) and not _PLAIN.fullmatch(preset.removeprefix(LAYERS_PREFIX)):
        raise AdapterError(f"the adapter's split {preset[:80]!r} is a pattern with repetition or groups: simplify it")
    try:
        return covering(preset, adapter.tensors, private)
    except (ConfigError, SplitError) as error:
        raise AdapterError(f"the adapter does not say what of it is private: {error}") from None


def _answer(result: AdaptResult, job: AdaptJob) -> dict[str, Any]:
    fields, kept = job.fields, result.helps or job.fields.keep
    if not kept:
        return {"kept": kept, **result.report}
    info = read_info(fields.adapter)
    split = _split_after(job.adapter, result.private)
    info = replace(info, dtype=fields.dtype or info.dtype, language=job.language, split=split)
    packed = pack({name: tensor.numpy() for name, tensor in result.tensors.items()}, info, like=fields.adapter)
    return {
        "kept": kept,
        "adapter": base64.b64encode(packed).decode(),
        "bytes": len(packed),
        "digest": digest(packed),
        "dtype": info.dtype,
        "split": split,
        "private": list(result.private),
        **result.report,
    }
