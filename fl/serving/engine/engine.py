"""Continuous batching: requests of many people, each with an adapter of their own, in one batch on one frozen base.

One thread turns a wheel. Each turn takes new requests from a fair queue into free rows (their encoder states are computed
in batches of similar length), then makes one decoder step for all rows; rows that are done leave, and others move up.
Nothing of a request remains in a row after it left: adapter, keys and values are overwritten with zeros.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from fl.adapters.config import SITES, target_pattern
from fl.adapters.stacked import StackedModel
from fl.adapters.table import AdapterTable
from fl.bases.whisper.base import WhisperBase
from fl.bases.whisper.decoding import detect_languages, token_limits
from fl.core.errors import AdapterError, AudioError, ConfigError, IdiolectError, RunError
from fl.data.batching import buckets
from fl.serving.engine.cache import RowCache
from fl.serving.engine.decoder import log_probs, next_states, read_prompts, shape_of
from fl.serving.engine.fair import FairQueue
from fl.serving.engine.jobs import Job
from fl.serving.engine.requests import BusyError, ClosedError, DeadlineError, Request, Transcript
from fl.speech.audio import MAX_SECONDS, SAMPLE_RATE
from fl.speech.features import Window, heard_frames

log = logging.getLogger("idiolect.serving")


@dataclass(frozen=True)
class EngineSettings:
    """``rows``: decoded at once. ``waiting``: requests in the queue at most, ``waiting_each`` of one person. ``frames``: mel
    frames (100 a second) that one turn encodes at most, so that rows which are being decoded never wait long; one request
    is always taken. ``languages``: what a request without a language may be in; empty for all that the base knows."""

    rows: int = 16
    waiting: int = 256
    waiting_each: int = 64
    frames: int = 6_000
    languages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("rows", "waiting", "waiting_each", "frames"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} of the engine: at least 1")


class BatchEngine:
    """The engine (:class:`fl.serving.engine.requests.Engine`) on a Whisper; adapters may sit at any of its linear maps."""

    def __init__(self, base: WhisperBase, settings: EngineSettings | None = None, *, start: bool = True) -> None:
        """With ``start`` False no thread turns the wheel: call :meth:`turn` until nothing is left."""
        self.base = base
        self.settings = settings or EngineSettings()
        host = StackedModel(base.new_model(), target_pattern(tuple(SITES)))
        self._model = host.model
        weight = next(self._model.parameters())
        self._device = weight.device
        self._table = AdapterTable(host, self.settings.rows)
        self._cache = RowCache(shape_of(self._model), self.settings.rows, weight)
        self._suppress = torch.tensor(base.rules.suppress, dtype=torch.long, device=self._device)
        self._begin = torch.tensor(base.rules.begin_suppress, dtype=torch.long, device=self._device)
        self._jobs: list[tuple[Job, int]] = []  # of each row: whose it is, and which beam
        self._next: list[int] = []  # of each row: the token to feed
        self._starting: list[Job] = []  # taken from the queue in this turn
        self._queue: FairQueue[Job] = FairQueue()
        self._wake = threading.Condition()
        self._closing = False
        self._pace = 0.1  # seconds between two finished requests, smoothed
        self._counts = dict.fromkeys(("submitted", "finished", "failed", "cancelled", "refused", "turns", "steps"), 0)
        self._thread = threading.Thread(target=self._run, name="idiolect-engine", daemon=True)
        if start:
            self._thread.start()

    def submit(self, request: Request) -> Future[Transcript]:
        """See :meth:`fl.serving.engine.requests.Engine.submit`."""
        self._check(request)
        job = Job(request, Future(), time.monotonic())
        with self._wake:
            if self._closing:
                raise ClosedError("the server is shutting down: ask again when it is back")
            settings = self.settings
            if len(self._queue) >= settings.waiting or self._queue.waiting(request.person) >= settings.waiting_each:
                self._counts["refused"] += 1
                after = max(1.0, self._pace * len(self._queue))
                raise BusyError(f"{len(self._queue)} requests are waiting: ask again in {after:.0f} s", after)
            self._counts["submitted"] += 1
            self._queue.push(job, request.person, len(request.audio) / SAMPLE_RATE)
            self._wake.notify()
        return job.future

    def _check(self, request: Request) -> None:
        """Refuse what could only fail later. Of an adapter, :func:`fl.serving.engine.adapters.admit` has seen to the rest."""
        if request.audio.ndim != 1 or not 0 < len(request.audio) <= MAX_SECONDS * SAMPLE_RATE:
            raise AudioError(
                f"audio of shape {request.audio.shape}: one utterance is at most {MAX_SECONDS:.0f} s at {SAMPLE_RATE} Hz; "
                "split longer audio (fl.speech.audio.split_at_silence)"
            )
        if not 1 <= request.beams <= self.settings.rows:
            raise ConfigError(f"beams = {request.beams}: from 1 to {self.settings.rows}, the rows of this engine")
        if request.adapter is not None:
            request.adapter.info.require_base(self.base.fingerprint)
        if request.language:
            self.base.prefix_ids(request.language)

    def stats(self) -> dict[str, float]:
        """Counters since the start, and gauges: ``queued``, ``running`` requests, ``rows`` in use, bytes of rows."""
        with self._wake:
            queued = len(self._queue)
        running = len({id(job) for job, _ in list(self._jobs)})
        memory = self._table.bytes + self._cache.bytes
        return {**self._counts, "queued": queued, "running": running, "rows": len(self._jobs), "row_bytes": memory}

    def close(self) -> None:
        """See :meth:`fl.serving.engine.requests.Engine.close`."""
        with self._wake:
            self._closing = True
            waiting = self._queue.drain()
            self._wake.notify()
        for job in waiting:
            job.fail(ClosedError("the server is shutting down: ask again when it is back"))
        if self._thread.ident is not None:
            self._thread.join()

    @torch.inference_mode()
    def turn(self) -> bool:
        """Take in what there is room for and make one step; whether there was anything to do. Not beside the thread."""
        with self._wake:
            idle = not self._jobs and not self._queue
        if idle:
            return False
        try:
            self._turn()
        except Exception as error:  # ours: the rows are lost, the server is not
            log.exception("a turn of the engine failed")
            self._fail_all(RunError(f"the engine failed ({type(error).__name__}): ask again"))
        return True

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._jobs and not self._queue:
                    if self._closing:
                        return
                    self._wake.wait()
            self.turn()

    def _turn(self) -> None:
        self._counts["turns"] += 1
        self._let_go([job for job in self._active() if job.gone or job.request.late])
        self._starting = self._admitted()
        if self._starting:
            self._start(self._starting)
        if self._jobs:
            self._step()

    def _active(self) -> list[Job]:
        return list({id(job): job for job, _ in self._jobs}.values())

    def _admitted(self) -> list[Job]:
        """Requests whose turn it is and for which there are rows."""
        jobs: list[Job] = []
        free, frames = self.settings.rows - len(self._jobs), self.settings.frames
        while True:
            with self._wake:
                if not self._queue:
                    return jobs
                job = self._queue.peek()
                waits = not job.gone and not job.request.late
                expected = self._frames(job.request)
                if waits and (job.request.beams > free or (jobs and expected > frames)):
                    return jobs  # rows are kept for it: whoever needs many would otherwise wait for ever
                self._queue.pop()
            if not waits:
                self._settle(job, late=job.request.late)
                continue
            free, frames = free - job.request.beams, frames - expected
            job.started = time.monotonic()
            jobs.append(job)

    def _window(self, request: Request) -> Window:
        """An unadapted Whisper does not stop on a trimmed window."""
        return "trimmed" if request.adapter is not None and request.adapter.info.window != "full" else "full"

    def _frames(self, request: Request) -> int:
        full = 2 * self._cache.shape.states
        return full if self._window(request) == "full" else heard_frames(len(request.audio))

    def _start(self, jobs: Sequence[Job]) -> None:
        """Features, encoder states, prompts: from waiting to the first token."""
        ready: list[Job] = []
        for job in jobs:
            started = time.monotonic()
            try:
                job.features = self.base.features(job.request.audio, self._window(job.request))
            except IdiolectError as error:
                self._settle(job, error)
                continue
            job.seconds_features = time.monotonic() - started
            ready.append(job)
        for chosen in buckets(
            [int(job.features.shape[1]) for job in ready if job.features is not None], rows=self.settings.rows
        ):
            self._start_together([ready[i] for i in chosen])

    def _start_together(self, jobs: list[Job]) -> None:
        """Jobs of similar length; where one of them cannot be computed, the others are all the same."""
        first, landed = len(self._jobs), False
        try:
            for row, job in enumerate(jobs, first):
                adapter = job.request.adapter
                if adapter is not None:
                    self._table.put(row, adapter.slot, adapter.tensors)
            prepared = self._encode(jobs, first)
            landed = True
        except Exception as error:
            for row in range(first, first + len(jobs)):
                self._table.drop(row)
            if len(jobs) > 1:
                for job in jobs:
                    self._start_together([job])
            elif isinstance(error, IdiolectError):
                self._settle(jobs[0], error)
            else:
                log.exception("a request could not be encoded")
                self._settle(jobs[0], RunError(f"the request could not be computed ({type(error).__name__})"))
        if landed:
            self._land(jobs, first, *prepared)

    def _encode(
        self, jobs: Sequence[Job], first: int
    ) -> tuple[Tensor, list[list[tuple[Tensor, Tensor]]], list[list[tuple[Tensor, Tensor]]], list[int], list[int]]:
        """The jobs' first log-probabilities, keys and values of their prompts and speech, encoder states and token limits."""
        features = [job.features for job in jobs if job.features is not None]
        batch = self.base.collate(features, None, self._window(jobs[0].request)).to(self._device)
        with self._table.rows(first, len(jobs)) as model:
            states, mask = self.base.encode(model, batch)
            for job in jobs:
                adapter = job.request.adapter
                job.language = job.request.language or (adapter.info.language if adapter is not None else "")
            self._detect(jobs, states, mask)
            prefixes = [self.base.prefix_ids(job.language or None) for job in jobs]
            prompts = torch.tensor(prefixes, dtype=torch.long, device=self._device)
            hidden, own, speech = read_prompts(model, prompts, states, mask)
        values = log_probs(model, hidden, self._suppress).index_fill(1, self._begin, -torch.inf)
        positions = self._cache.shape.tokens
        limits = [
            token_limits(
                [heard_frames(len(job.request.audio))], prompts.shape[1], positions, job.request.max_new_tokens
            )[0]
            for job in jobs
        ]
        return values, own, speech, [(count + 1) // 2 for count in batch.frames], limits

    def _detect(self, jobs: Sequence[Job], states: Tensor, mask: Tensor | None) -> None:
        """A language for each job that has none, if the base knows any. Call it with the jobs' adapters in place."""
        special = self.base.tokenizer.special
        if not special.languages or all(job.language for job in jobs):
            return
        candidates = {special.prefix(code)[1]: code for code in self.settings.languages or self.base.languages}
        found = detect_languages(self._model, states, mask, special.start, list(candidates))
        for job, token in zip(jobs, found, strict=True):
            job.language = job.language or candidates[token]

    def _land(
        self,
        jobs: Sequence[Job],
        first: int,
        values: Tensor,
        own: list[list[tuple[Tensor, Tensor]]],
        speech: list[list[tuple[Tensor, Tensor]]],
        states: Sequence[int],
        limits: Sequence[int],
    ) -> None:
        """Give the jobs their rows: each the one where it was encoded, and one more for each further beam."""
        end = self.base.tokenizer.special.end
        for index, job in enumerate(jobs):
            job.features = None
            job.begin(limits[index], end)
            self._seat(job, 0, own[index], speech[index], states[index])
        for index, job in enumerate(jobs):
            for beam in range(1, job.request.beams):
                adapter = job.request.adapter
                if adapter is not None:
                    self._table.put(len(self._jobs), adapter.slot, adapter.tensors)
                self._seat(job, beam, own[index], speech[index], states[index])
        beams = [index for index, job in enumerate(jobs) for _ in range(job.request.beams - 1)]
        self._choose(torch.cat((values, values[beams])) if beams else values, first)

    def _seat(
        self, job: Job, beam: int, own: list[tuple[Tensor, Tensor]], speech: list[tuple[Tensor, Tensor]], states: int
    ) -> None:
        job.rows.append(len(self._jobs))
        self._jobs.append((job, beam))
        self._next.append(0)
        self._cache.join(own, speech, states)

    def _step(self) -> None:
        self._counts["steps"] += 1
        tokens = torch.tensor(self._next, dtype=torch.long, device=self._device)
        with self._table.rows(0, len(self._jobs)) as model:
            hidden = next_states(model, tokens, self._cache)
        self._choose(log_probs(self._model, hidden, self._suppress), 0)

    def _choose(self, values: Tensor, first: int) -> None:
        """From log-probabilities (rows, vocabulary) of the rows from ``first`` on to their next tokens; who is done leaves."""
        best, choice = (tensor.tolist() for tensor in values.max(dim=-1))
        broken: list[Job] = []
        jobs = list({id(job): job for job, _ in self._jobs[first:]}.values())
        for job in jobs:
            rows = [row - first for row in job.rows]
            if any(best[row] != best[row] for row in rows):  # not a number
                broken.append(job)
            elif job.search is None:
                self._next[job.rows[0]] = job.take_best(best[rows[0]], choice[rows[0]])
            else:
                sources, tokens = job.take_beams(values[rows])
                self._cache.reorder(job.rows, [job.rows[beam] for beam in sources])
                for row, token in zip(job.rows, tokens, strict=True):
                    self._next[row] = token
            if job not in broken:
                job.show(self.base.tokenizer)
        self._let_go([job for job in jobs if job in broken or job.found is not None])

    def _let_go(self, jobs: Sequence[Job]) -> None:
        """Free the rows of jobs that are done, late, cancelled or broken, and say so to who waits."""
        for job in jobs:
            for row in sorted(job.rows, reverse=True):
                self._leave(row)
            if job.found is not None and not job.request.late:
                self._pace = 0.9 * self._pace + 0.1 * min(10.0, (time.monotonic() - job.submitted) / self.settings.rows)
                self._counts["finished" if job.finish(self.base.tokenizer) else "cancelled"] += 1
            elif job.gone or job.request.late:
                self._settle(job, late=job.request.late)
            else:
                self._settle(job, _not_finite(job.request))

    def _leave(self, row: int) -> None:
        last = self._cache.leave(row)
        self._table.drop(row)
        if last != row:
            self._table.move(last, row)
            job, beam = self._jobs[last]
            job.rows[beam] = row
            self._jobs[row], self._next[row] = (job, beam), self._next[last]
        self._jobs.pop()
        self._next.pop()

    def _settle(self, job: Job, error: Exception | None = None, *, late: bool = False) -> None:
        if job.gone:
            self._counts["cancelled"] += 1
        elif late:
            self._counts["failed"] += 1
            job.fail(DeadlineError("not done by its deadline: ask again later, or allow more time"))
        elif error is not None:
            self._counts["failed"] += 1
            job.fail(error)

    def _fail_all(self, error: Exception) -> None:
        jobs = [job for job in [*self._active(), *self._starting] if not job.future.done()]
        self._jobs, self._next, self._starting = [], [], []
        self._table.clear()
        self._cache.clear()
        for job in jobs:
            self._settle(job, error)


def _not_finite(request: Request) -> IdiolectError:
    if request.adapter is None:
        return RunError("the base makes numbers that are not finite on this audio: check the recording")
    return AdapterError(
        "the adapter makes numbers that are not finite on this audio: it was damaged or its training diverged; use an earlier one"
    )
