"""Continuous batching: requests of many people, each with an adapter of their own, in one batch on one frozen base.

One thread repeats a turn, which takes new requests from a fair queue into free rows (their encoder states are computed
in batches of similar length), then makes one decoder step for all rows. Rows that are done leave the batch, and others move
into their places. Nothing of a request remains in a row after it left: adapter, keys and values are zeroed.
"""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from fl.adapters.config import SITES, target_pattern
from fl.adapters.correction import require_fingerprint
from fl.adapters.stacked import StackedModel
from fl.adapters.table import ServingTable
from fl.bases.whisper.alignment import TimedWord, timed_words, token_times
from fl.bases.whisper.base import WhisperBase
from fl.bases.whisper.decoder import Prompted, RowDecoder
from fl.bases.whisper.decoding import BeamSearch, detect_languages, expand, token_limit
from fl.core.errors import AdapterError, AudioError, ConfigError, IdiolectError, RunError
from fl.data.batching import buckets
from fl.serving.engine.fair import FairQueue
from fl.serving.engine.requests import (
    BusyError,
    ClosedError,
    DeadlineError,
    EngineJob,
    Request,
    ServedAdapter,
    Transcript,
)
from fl.serving.engine.settings import EngineSettings as EngineSettings
from fl.speech.audio import MAX_SECONDS, SAMPLE_RATE
from fl.speech.features import FRAMES_PER_STATE, HOP_SAMPLES, Window, heard_frames

logger = logging.getLogger(__name__)
MIN_TABLE_BYTES = 256 * 2**20
# A state costs 12 d^2 multiplications a layer, a token 14 d^2 and the vocabulary, which is as much again in a Whisper-base.
STATES_PER_TOKEN = 2


class BatchEngine:
    """Transcribes requests of many people at once on a Whisper; adapters may sit at any of its linear maps."""

    def __init__(self, base: WhisperBase, settings: EngineSettings | None = None, *, start: bool = True) -> None:
        """With ``start`` False there is no thread: call :meth:`turn` until nothing is left."""
        self.base = base
        self.settings = settings or EngineSettings()
        host = StackedModel(base.new_model(), target_pattern(tuple(SITES)))
        self._table = ServingTable(host, self.settings.rows)
        weights = sum(weight.numel() * weight.element_size() for weight in host.model.parameters())
        self._table_bytes = self.settings.table_bytes or max(weights, MIN_TABLE_BYTES)
        self._decoder = RowDecoder(host.model, base.rules, self.settings.rows)
        self._cache = self._decoder.cache
        self._jobs: list[tuple[EngineJob, int]] = []  # of each row: whose it is, and which beam
        self._next: list[int] = []  # of each row: the token to feed
        self._starting: list[EngineJob] = []  # taken from the queue in this turn
        self._queue: FairQueue[EngineJob] = FairQueue()
        self._wake = threading.Condition()
        self._closing = False
        self._pace = 0.1  # seconds between two finished requests, smoothed
        self._counts = dict.fromkeys(("submitted", "finished", "failed", "cancelled", "refused", "turns", "steps"), 0)
        self._thread = threading.Thread(target=self._run, name="idiolect-engine", daemon=True)
        if start:
            self._thread.start()

    def submit(self, request: Request) -> Future[Transcript]:
        """Queue a request; from any thread. The future's exception is a typed error: :class:`DeadlineError` when it is late,
        :class:`AdapterError` when the adapter makes numbers that are not finite, :class:`ClosedError` at shutdown.
        ``future.cancel()`` works at any time, also in the middle of decoding: the row is then freed at the next step.

        Raises :class:`BusyError` when the queue is full, :class:`IdiolectError` for a request that cannot be served.
        """
        self._check(request)
        job = EngineJob(request, Future(), time.monotonic())
        with self._wake:
            if self._closing:
                raise ClosedError("the server is shutting down: ask again when it is back")
            settings = self.settings
            if len(self._queue) >= settings.waiting or self._queue.waiting(request.person) >= settings.waiting_each:
                self._counts["refused"] += 1
                after = max(1.0, self._pace * len(self._queue))
                raise BusyError(f"{len(self._queue)} requests are waiting: ask again in {after:.0f} s", after)
            self._counts["submitted"] += 1
            self._queue.push(job, request.person, self._work(request))
            self._wake.notify()
        return job.future

    def _check(self, request: Request) -> None:
        """Refuse what could only fail later. Of an adapter, :func:`fl.serving.engine.adapters.admit` has checked all else."""
        if request.audio.ndim != 1 or not 0 < len(request.audio) <= MAX_SECONDS * SAMPLE_RATE:
            raise AudioError(
                f"audio of shape {request.audio.shape}: one utterance is at most {MAX_SECONDS:.0f} s at {SAMPLE_RATE} Hz; "
                "split longer audio (fl.speech.audio.split_at_silence)"
            )
        if not 1 <= request.beams <= self.settings.rows:
            raise ConfigError(f"beams = {request.beams}: from 1 to {self.settings.rows}, the rows of this engine")
        if request.adapter is not None:
            self.check_adapter(request.adapter)
        if request.language:
            self.base.prefix_ids(request.language)

    def check_adapter(self, adapter: ServedAdapter) -> None:
        """Raise :class:`AdapterError` for one that no row can ever hold."""
        require_fingerprint(adapter.info.base_fingerprint, self.base.fingerprint)
        adapter.info.require_base(self.base.fingerprint)
        kind = adapter.kind
        if (needed := self._table.bytes_for({kind})) > self._table_bytes:
            raise AdapterError(
                f"the adapter (rank {kind.rank}, {len(kind.modules)} maps) needs {needed:,} bytes in all rows of this server, "
                f"which gives {self._table_bytes:,}: train a smaller rank or fewer sites, or let it run with more --table-mib"
            )

    def stats(self) -> dict[str, float]:
        """Counters since the start, and gauges: ``queued``, ``running`` requests, ``rows`` in use, bytes of rows."""
        with self._wake:
            queued = len(self._queue)
        running = len({job for job, _ in list(self._jobs)})
        memory = self._table.bytes + self._cache.bytes
        return {**self._counts, "queued": queued, "running": running, "rows": len(self._jobs), "row_bytes": memory}

    def close(self) -> None:
        """Fail what is waiting with :class:`ClosedError`, finish what runs, and stop the thread."""
        with self._wake:
            self._closing = True
            waiting = self._queue.drain()
            self._wake.notify()
        for job in waiting:
            job.settle(ClosedError("the server is shutting down: ask again when it is back"))
        if self._thread.ident is not None:
            self._thread.join()

    @torch.inference_mode()
    def turn(self) -> bool:
        """Take in what there is room for and make one step; whether there was anything to do. Not beside the thread."""
        with self._wake:
            idle = not self._jobs and not self._queue
        if idle:
            return False
        self._counts["turns"] += 1
        try:
            self._let_go([job for job in _each(self._jobs) if job.gone or job.request.late])
            self._starting = self._admitted()
            if self._starting:
                self._start(self._starting)
            if self._jobs:
                self._step()
        except Exception as error:  # ours: the rows are lost, the server is not
            logger.exception("a turn of the engine failed")
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

    def _admitted(self) -> list[EngineJob]:
        """Requests whose turn it is and for which there are rows."""
        jobs: list[EngineJob] = []
        free, frames, kinds = self.settings.rows - len(self._jobs), self.settings.frames, self._table.kinds
        while True:
            with self._wake:
                if not self._queue:
                    return jobs
                job = self._queue.peek()
                waits = not job.gone and not job.request.late
                expected = self._frames(job.request)
                adapter = job.request.adapter
                beside = kinds if adapter is None else kinds | {adapter.kind}
                crowded = len(beside) > 1 and self._table.bytes_for(beside) > self._table_bytes
                if waits and (job.request.beams > free or crowded or (jobs and expected > frames)):
                    return jobs  # rows are kept for it: whoever needs many would otherwise wait for ever
                self._queue.pop()
            if not waits:
                self._settle(job)
                continue
            free, frames, kinds = free - job.request.beams, frames - expected, beside
            job.started = time.monotonic()
            jobs.append(job)

    def _window(self, request: Request) -> Window:
        """An unadapted Whisper does not stop on a trimmed window."""
        return "trimmed" if request.adapter is not None and request.adapter.info.window != "full" else "full"

    def _frames(self, request: Request) -> int:
        full = 2 * self._cache.most_states
        return full if self._window(request) == "full" else heard_frames(len(request.audio))

    def _work(self, request: Request) -> float:
        """In encoder states: those of its window, its prompt, and for each beam the tokens that its speech can hold."""
        heard = heard_frames(len(request.audio))
        tokens = token_limit(heard, 0, self._cache.most_tokens, request.max_new_tokens)
        read = len(request.prompt) + request.beams * tokens
        return self._frames(request) / FRAMES_PER_STATE + STATES_PER_TOKEN * read

    def _start(self, jobs: Sequence[EngineJob]) -> None:
        """Features, encoder states, prompts: from waiting to the first token."""
        ready: list[EngineJob] = []
        for job in jobs:
            started = time.monotonic()
            try:
                job.features = self.base.features(job.request.audio, self._window(job.request))
            except IdiolectError as error:
                self._settle(job, error)
                continue
            job.seconds_features = time.monotonic() - started
            ready.append(job)
        for chosen in buckets([int(job.features.shape[1]) for job in ready], rows=self.settings.rows):
            self._start_together([ready[i] for i in chosen])

    def _start_together(self, jobs: list[EngineJob]) -> None:
        """Jobs of similar length; where one of them cannot be computed, the others are all the same."""
        first = len(self._jobs)
        further = [index for index, job in enumerate(jobs) for _ in range(job.request.beams - 1)]
        try:
            for row, index in enumerate([*range(len(jobs)), *further], first):
                if (adapter := jobs[index].request.adapter) is not None:
                    self._table.put(row, adapter.slot, adapter.tensors)
            prompted, states, limits = self._encode(jobs, first)
        except Exception as error:
            for row in range(first, first + len(jobs) + len(further)):
                self._table.drop(row)
            if len(jobs) > 1:
                for job in jobs:
                    self._start_together([job])
            elif isinstance(error, IdiolectError):
                self._settle(jobs[0], error)
            else:
                logger.exception("a request could not be encoded")
                self._settle(jobs[0], RunError(f"the request could not be computed ({type(error).__name__})"))
        else:
            self._begin(jobs, further, prompted, states, limits)

    def _encode(self, jobs: Sequence[EngineJob], first: int) -> tuple[Prompted, list[int], list[int]]:
        """What the decoder knows behind the jobs' prompts, and each job's encoder states and most tokens."""
        features = [job.features for job in jobs]
        batch = self.base.collate(features, None, self._window(jobs[0].request)).to(self._decoder.device)
        with self._table.rows(first, len(jobs)) as model:
            states, mask = self.base.encode(model, batch)
            for job in jobs:
                adapter = job.request.adapter
                job.language = job.request.language or (adapter.info.language if adapter is not None else "")
            heard = DynamicCache()
            self._detect(model, jobs, states, mask, heard)
            prompts = [[*job.request.prompt, *self.base.prefix_ids(job.language or None)] for job in jobs]
            prompted = self._decoder.read(prompts, states, mask, heard)
        limits, most = [], self._cache.most_tokens
        for index, job in enumerate(jobs):
            asked, job.prefix = job.request, prompts[index]
            limits.append(token_limit(heard_frames(len(asked.audio)), len(job.prefix), most, asked.max_new_tokens))
            if asked.words:
                job.states = states[index : index + 1, : (batch.lengths[index] + 1) // 2].clone()
        return prompted, [(count + 1) // 2 for count in batch.lengths], limits

    def _detect(
        self, model: nn.Module, jobs: Sequence[EngineJob], states: Tensor, mask: Tensor | None, heard: DynamicCache
    ) -> None:
        """A language for each job that has none, if the base knows any; ``heard`` then has the speech's keys and values.

        Call it with the jobs' adapters in place.
        """
        special = self.base.tokenizer.special
        if not special.languages or all(job.language for job in jobs):
            return
        candidates = {special.prefix(code)[1]: code for code in self.settings.languages or self.base.languages}
        found = detect_languages(model, states, mask, special.start, list(candidates), heard)
        for job, token in zip(jobs, found, strict=True):
            job.language = job.language or candidates[token]

    def _begin(
        self, jobs: Sequence[EngineJob], further: list[int], prompted: Prompted, states: list[int], limits: list[int]
    ) -> None:
        """Give the jobs their rows: each the one where it was encoded, and one more for each index in ``further``."""
        first, end = len(self._jobs), self.base.tokenizer.special.end
        for index, job in enumerate(jobs):
            del job.features
            job.encoded = time.monotonic()
            job.search = BeamSearch(job.request.beams, limits[index], end)
        rows = [*range(len(jobs)), *further]
        for coming, index in zip(range(len(rows), 0, -1), rows, strict=True):
            job, row = jobs[index], len(self._jobs)
            self._jobs.append((job, len(job.search.rows)))
            job.search.rows.append(row)
            self._next.append(0)
            self._cache.join(*prompted.row(index), states[index], coming)
        values = prompted.log_probs
        self._choose(torch.cat((values, values[further])) if further else values, first)

    def _step(self) -> None:
        self._counts["steps"] += 1
        with self._table.rows(0, len(self._jobs)):
            values = self._decoder.next(self._next)
        self._choose(values, 0)

    def _choose(self, values: Tensor, first: int) -> None:
        """From log-probabilities (rows, vocabulary) of the rows from ``first`` on to their next tokens; who is done leaves."""
        jobs = _each(self._jobs[first:])
        sources, self._next[first:] = expand([job.search for job in jobs], values, first)
        self._cache.reorder(range(first, len(self._jobs)), sources)
        for job in jobs:
            if not job.search.broken:
                job.show(self.base.tokenizer)
        self._let_go([job for job in jobs if job.search.broken or job.search.done])

    def _let_go(self, jobs: Sequence[EngineJob]) -> None:
        """Free the rows of jobs that are done, late, cancelled or broken, and say so to who waits.

        From the last row on, so that no row that is to leave is moved into another's place before.
        """
        words_of = [self._words(job) for job in jobs]
        for row in sorted((row for job in jobs for row in job.search.rows), reverse=True):
            self._leave(row)
        for job, words in zip(jobs, words_of, strict=True):
            if job.gone or job.request.late:
                self._settle(job)
            elif job.search.broken:
                self._settle(job, _not_finite(job.request))
            else:
                self._pace = 0.9 * self._pace + 0.1 * min(10.0, (time.monotonic() - job.submitted) / self.settings.rows)
                self._counts["finished" if job.finish(self.base.tokenizer, words) else "cancelled"] += 1

    def _words(self, job: EngineJob) -> Sequence[TimedWord]:
        """The words of a job that is done, if they were asked for; its adapter is still in its rows."""
        if job.states is None or job.gone or job.search.broken or not job.search.done:
            return ()
        tokens, heard = job.search.best().tokens, max(1, len(job.request.audio) // (HOP_SAMPLES * FRAMES_PER_STATE))
        with self._table.rows(job.search.rows[0], 1) as model:
            times = token_times(model, self.base.alignment_heads, job.prefix, tokens, job.states, heard)
        return timed_words(self.base.tokenizer, tokens, times)

    def _leave(self, row: int) -> None:
        last = self._cache.leave(row)
        self._table.drop(row)
        if last != row:
            self._table.move(last, row)
            job, beam = self._jobs[last]
            job.search.rows[beam] = row
            self._jobs[row], self._next[row] = (job, beam), self._next[last]
        self._jobs.pop()
        self._next.pop()

    def _settle(self, job: EngineJob, error: Exception | None = None) -> None:
        """Say to who waits that a request ends without a transcript: with ``error``, or by default since it is late."""
        self._counts["cancelled" if job.gone else "failed"] += 1
        job.settle(error or DeadlineError("not done by its deadline: ask again later, or allow more time"))

    def _fail_all(self, error: Exception) -> None:
        jobs = [job for job in [*_each(self._jobs), *self._starting] if not job.future.done()]
        self._jobs, self._next, self._starting = [], [], []
        self._table.clear()
        self._cache.clear()
        for job in jobs:
            self._settle(job, error)


def _each(rows: Sequence[tuple[EngineJob, int]]) -> list[EngineJob]:
    """The jobs of rows, each once."""
    return list(dict.fromkeys(job for job, _ in rows))


def _not_finite(request: Request) -> IdiolectError:
    if request.adapter is None:
        return RunError("the base makes numbers that are not finite on this audio: check the recording")
    return AdapterError(
        "the adapter makes numbers that are not finite on this audio: it was damaged or its training diverged; use an earlier one"
    )
