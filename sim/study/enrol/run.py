"""Enrol every held-out speaker by every method with 1 to 40 sentences, and keep a row of each."""

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from clients.training.cohort import activation_bytes
from clients.training.enrol import enrol, predict
from clients.training.enrol_method import EnrolMethod
from clients.training.prior import Prior, eigenvoices, learned_prior
from clients.training.private_part import Enrolment, Start
from fl.adapters.stacked import StackedModel
from fl.adapters.state import State
from fl.core.errors import ConfigError
from fl.core.machine import machine
from fl.core.rng import derive_random, derive_seed
from fl.data.manifest import Utterance
from fl.data.partition import split_population
from fl.data.synthetic.population import POPULATION_NAME
from fl.metrics import Counts
from fl.metrics.tokens import fold_loanwords
from fl.runs.files import RunFiles, is_finished, read_run
from fl.runs.progress import as_one
from fl.settings.config import RunConfig, flat
from fl.settings.names import PERSONALIZED
from fl.speech.spelling import SpellingTable, Written
from fl.tasks.speech.task import SpeechTask
from fl.tasks.task import Example
from sim.study.enrol.contenders import CENTRALIZED, NEUTRAL, ONE_SPELLING, PROMPTS, Contender, Settings
from sim.study.enrol.prompts import behind_others, behind_some, prompt_of
from sim.study.enrol.rows import METRICS, PROCEDURE, EnrolRow, append_rows, read_rows
from sim.study.enrol.shared import Progress, SharedTraining

HELD_OUT_TESTS = 1 / 3  # of a held-out speaker's sentences; a participant's are those of data.test-share
PRIOR_SENTENCES = 20  # of each participant, from which a prior is learned
NOT_NUMBERS = ("output", "base.compute", "train.cohort")  # settings that decide where and how fast, not what


@dataclass(frozen=True)
class Speaker:
    """A person: sentences to enrol with, of which a smaller number is a beginning, and sentences to be tested on."""

    name: str
    enrolment: tuple[Example, ...]
    test: tuple[Example, ...]
    traits: Mapping[str, Any] = field(default_factory=dict)
    couple: str = ""


@dataclass(frozen=True)
class Trial:
    """A person with the first ``size`` sentences."""

    person: Speaker
    size: int

    def __str__(self) -> str:
        return f"{self.person.name} with {self.size}"

    @property
    def own(self) -> tuple[Example, ...]:
        """The sentences to enrol with."""
        return self.person.enrolment[: self.size]


def held_out_speakers(task: SpeechTask, config: RunConfig) -> list[Speaker]:
    """The held-out speakers of a task. No test sentence of anybody is anybody's to enrol with, and no session is both."""
    names = [name for name in task.device_ids() if task.is_new(name)]
    examples = {name: {e.inputs[0].id: e for e in task.device(name).test} for name in names}
    utterances: list[Utterance] = [e.inputs[0] for of_one in examples.values() for e in of_one.values()]
    if not names:
        raise ConfigError("nobody is held out: give --new-people a number above 0")
    seed = derive_seed(config.data_seed, "enrol")
    divided = split_population(utterances, seed=seed, validation_share=0.0, test_share=HELD_OUT_TESTS)
    told = _told(task.population.manifest.parent / POPULATION_NAME)
    people = []
    for person in divided.devices:
        order = derive_random(seed, person.device_id).sample(person.train, len(person.train))
        own = examples[person.device_id]
        enrolment, test = (tuple(own[u.id] for u in part) for part in (order, person.test))
        people.append(Speaker(person.device_id, enrolment, test, *told.get(person.device_id, ({}, ""))))
    return people


def participants(task: SpeechTask) -> list[Speaker]:
    """Those who took part in the shared training, with the sentences that they trained on and those that test them."""
    told = _told(task.population.manifest.parent / POPULATION_NAME)
    names = [name for name in task.device_ids() if not task.is_new(name)]
    each = {name: task.device(name) for name in names}
    return [Speaker(n, tuple(own.train), tuple(own.test), *told.get(n, ({}, ""))) for n, own in each.items()]


def _told(path: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """By person what a synthetic population says of a habit and, in numbers, of traits, and of the couple; nothing of others."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        people = json.loads(path.read_text(encoding="utf-8"))["people"]
        matched = [(one["name"], one["matched_to"]) for one in people if one.get("matched_to")]
        couples = {name: pair[1] for pair in matched for name in pair}
        return {
            one["name"]: ({"habit": one["habit"], **one.get("traits", {})}, couples.get(one["name"], ""))
            for one in people
        }
    return {}


@dataclass(frozen=True)
class TrialResult:
    """What a trial came to: its enrolment, without tensors, and the transcripts of its test sentences."""

    enrolment: Enrolment
    texts: Sequence[str]
    seconds: float


@dataclass
class EnrolStudy:
    """The study of one seed, of held-out speakers or of ``participants``. Shared parts lie in folders of ``root``; rows are appended
    to ``rows``."""

    config: RunConfig
    root: Path
    rows: Path
    progress: Progress = lambda what, done, total: None
    participants: bool = False
    _others: dict[EnrolMethod, list[Enrolment]] = field(default_factory=dict)
    _known: dict[tuple[Contender, str], TrialResult] = field(default_factory=dict)
    _runs: dict[Settings, RunFiles] = field(default_factory=dict)

    @cached_property
    def task(self) -> SpeechTask:
        """The task, loaded when something has to be computed."""
        return SpeechTask(self.config)

    @cached_property
    def host(self) -> StackedModel:
        """The base for the adapters of many people."""
        return StackedModel(self.task.new_model(), self.task.targets)

    @cached_property
    def training(self) -> SharedTraining:
        """What trains the shared part."""
        return SharedTraining(self.config, self.task, self.host)

    @cached_property
    def people(self) -> list[Speaker]:
        """Who enrols."""
        return participants(self.task) if self.participants else held_out_speakers(self.task, self.config)

    @cached_property
    def shared(self) -> State:
        """The shared part after the ordinary federation."""
        folder = self.root / f"shared-seed{self.config.seed}-{self._settings_digest}"
        return self.training.kept(folder, lambda: self.training.trained(self.progress))

    @property
    def budget(self) -> int:
        """Bytes of activations of one computation."""
        return activation_bytes(self.training.device)

    @cached_property
    def _settings_digest(self) -> str:
        return _digest({k: v for k, v in flat(self.config).items() if k not in NOT_NUMBERS})

    def digest(self, contender: Contender) -> str:
        """What tells the rows of a contender under these settings from all others."""
        return _digest([self._settings_digest, asdict(contender), PROCEDURE])

    def run(self, contenders: Mapping[str, Contender], sizes: Sequence[int]) -> None:
        """Every contender with every number of sentences that has no rows yet; 0 sentences are neutral's. Private parts that train in
        every round do so with all that a person has: their rows are beside those of the largest number."""
        there = {
            (row.method, row.sentences, row.digest) for row in read_rows(self.rows) if row.seed == self.config.seed
        }

        def sizes_of(name: str, one: Contender) -> Sequence[int]:
            if one.federated:
                return [max(sizes)] if any(sizes) else []
            return [size for size in sizes if (size == 0) == (name == NEUTRAL)]

        wanted = [(name, size) for name, one in contenders.items() for size in sizes_of(name, one)]
        pending = [(n, size) for n, size in wanted if (n, size, self.digest(contenders[n])) not in there]
        methods = list(dict.fromkeys(name for name, _ in pending))
        for done, name in enumerate(methods):
            self.progress(f"seed {self.config.seed}: {name}", done, len(methods))
            append_rows(self.rows, self.rows_of(name, contenders[name], [n for m, n in pending if m == name]))
        self.progress(f"seed {self.config.seed}: enrolment", len(methods), len(methods))

    def rows_of(self, name: str, contender: Contender, sizes: Sequence[int]) -> list[EnrolRow]:
        """Enrol everybody by one contender with each of ``sizes`` sentences that they have, all in cohorts, and score the test
        sentences."""
        trials = [Trial(one, size) for size in sizes for one in self.people if len(one.enrolment) >= size and one.test]
        start = None if contender.federated else self._start(contender)
        heard = self._heard(contender, start, trials)
        texts: Sequence[Sequence[str]] = [one.texts for one in heard]
        if contender.respelled:
            texts = self._respelled(texts, trials)
        return [
            EnrolRow(
                seed=self.config.seed,
                person=trial.person.name,
                method=name,
                sentences=trial.size,
                digest=self.digest(contender),
                counts=self._counts(trial.person, of_one),
                steps=one.enrolment.steps,
                losses=one.enrolment.curve,
                numbers=self._numbers(contender, start) if trial.own else 0,
                bytes=self._bytes(contender, start, trial.own) if trial.own else 0,
                seconds=round(one.enrolment.seconds or one.seconds, 3),
                traits=trial.person.traits,
                machine=_machine(),
                couple=trial.person.couple,
            )
            for trial, of_one, one in zip(trials, texts, heard, strict=True)
        ]

    def _heard(self, contender: Contender, start: Start | None, trials: Sequence[Trial]) -> list[TrialResult]:
        """Each trial's enrolment and transcripts, computed once: a spelling table is laid on those of the method without it, and
        those without an enrolment are the same for any number of sentences."""
        spoken = replace(contender, respelled=False)
        own = bool(contender.method or contender.prompted)
        same = [trial if own else replace(trial, size=0) for trial in trials]
        missing = {str(trial): trial for trial in same if (spoken, str(trial)) not in self._known}
        if missing:
            for trial, heard in zip(missing, self._hear(contender, start, [*missing.values()]), strict=True):
                self._known[spoken, trial] = heard
        return [self._known[spoken, str(trial)] for trial in same]

    def _hear(self, contender: Contender, start: Start | None, trials: Sequence[Trial]) -> list[TrialResult]:
        if start is None:
            return self._federated(contender.federated, trials)
        began = time.perf_counter()
        enrolled = {str(trial): _lessons(contender, trial.own) for trial in trials if trial.own}
        found = self._enrolled(contender, start, enrolled) if contender.method and enrolled else {}
        nothing = Enrolment({n: start.state[n] for n in start.split.private}, 0, {}, 0.0)
        each = [found.get(str(trial), nothing) for trial in trials]
        private = [_rounded(one.private) if one.steps else one.private for one in each]
        texts = self._transcripts(contender, start, private, trials)
        seconds = (time.perf_counter() - began) / len(trials)
        return [TrialResult(replace(one, private={}), t, seconds) for one, t in zip(each, texts, strict=True)]

    def _federated(self, settings: Settings, trials: Sequence[Trial]) -> list[TrialResult]:
        """What participants have of a run that trains private parts in every round, in seconds of all its training."""
        run = self._run(settings)
        texts = {(row.device, row.utterance): row.hypothesis for row in run.transcripts}
        seconds: defaultdict[str, float] = defaultdict(float)
        for row in run.results:
            seconds[row.device] += row.seconds_train
        return [
            TrialResult(
                Enrolment({}, 0, {}, seconds[person.name]),
                [texts[person.name, example.inputs[0].id] for example in person.test],
                seconds[person.name],
            )
            for person in (trial.person for trial in trials)
        ]

    def _run(self, settings: Settings) -> RunFiles:
        """The run with these settings, which is there or is carried out."""
        from sim.backends.run import run_simulation  # Flower

        if settings not in self._runs:
            changed = {**dict(settings), "arms": PERSONALIZED, "evaluate-every": 0, "final-split": "test"}
            folder = self.root / f"federated-seed{self.config.seed}-{_digest([self._settings_digest, changed])}"
            config = self.config.changed({**changed, "output": str(folder)})
            if not is_finished(folder):
                told = as_one(f"seed {config.seed}: {config.algorithm.name}", self.progress)
                run_simulation(config, workers=1, serial=True, progress=told)
            self._runs[settings] = read_run(folder)
        return self._runs[settings]

    def _start(self, contender: Contender) -> Start:
        method = contender.method or EnrolMethod("B", rate=0.0)  # which is not trained
        state = self.shared
        if contender.taught:
            folder = self.root / f"{contender.taught.replace(' ', '-')}-seed{self.config.seed}-{self._settings_digest}"
            state = self.training.kept(
                folder, partial(self.training.trained, self.progress, **TAUGHT[contender.taught])
            )
        if contender.episodes:
            folder = self.root / f"episodes-seed{self.config.seed}-{self.digest(contender)}"
            shared = state
            state = self.training.kept(folder, lambda: self.training.adapted(shared, method, self.progress))
        adapter = self.training.adapter(state)
        if contender.directions and not contender.prior:
            part = Start.of(adapter, method, seed=self.config.seed).split.private
            adapter = replace(adapter, directions=self.training.directions(state, part, contender.directions))
        return Start.of(adapter, method, seed=self.config.seed)

    def _enrolled(
        self, contender: Contender, start: Start, people: Mapping[str, Sequence[Example]]
    ) -> dict[str, Enrolment]:
        if contender.prior:
            start = replace(start, prior=self._prior(start, contender))
        return enrol(self.host, self.task, start, people, seed=self.config.seed, budget=self.budget)

    def _prior(self, start: Start, contender: Contender) -> Prior:
        """What the participants' own enrolments without a prior tell."""
        free = replace(start, method=replace(start.method, rate=contender.prior, shrinkage=0.0))
        if free.method not in self._others:
            known = {name: examples[:PRIOR_SENTENCES] for name, examples in self.training.people.items()}
            found = enrol(self.host, self.task, free, known, seed=self.config.seed, budget=self.budget)
            self._others[free.method] = list(found.values())
        others = [one.private for one in self._others[free.method]]
        if not contender.directions:
            return learned_prior(start.state, others)
        return eigenvoices(start.state, others, start.split.private, contender.directions)

    def _transcripts(
        self, contender: Contender, start: Start, private: Sequence[State], trials: Sequence[Trial]
    ) -> list[list[str]]:
        """What each trial's test sentences are transcribed as: those of all together, or with a prompt each trial's."""
        if contender.prompted:
            return [
                predict(
                    self.host,
                    self.task.prompted(prompt_of(trial.own)),
                    start,
                    [tensors],
                    [(0, e) for e in trial.person.test],
                )
                for trial, tensors in zip(trials, private, strict=True)
            ]
        rows = [(place, example) for place, trial in enumerate(trials) for example in trial.person.test]
        texts = iter(predict(self.host, self.task, start, private, rows))
        return [[next(texts) for _ in trial.person.test] for trial in trials]

    def _respelled(self, texts: Sequence[Sequence[str]], trials: Sequence[Trial]) -> list[list[str]]:
        known = [_written(example) for examples in self.training.people.values() for example in examples]
        tables = [SpellingTable.of([_written(example) for example in trial.own], known) for trial in trials]
        return [[table.respell(text) for text in of_one] for table, of_one in zip(tables, texts, strict=True)]

    def _counts(self, person: Speaker, texts: Sequence[str]) -> dict[str, tuple[int, int]]:
        scores = [self.task.score(example, text) for example, text in zip(person.test, texts, strict=True)]
        totals = {metric: sum((one[metric] for one in scores), Counts()) for metric in METRICS}
        return {metric: (total.errors, total.reference) for metric, total in totals.items()}

    def _bytes(self, contender: Contender, start: Start | None, own: Sequence[Example]) -> int:
        """Of what is kept of a person: private numbers at two bytes each, and transcripts where they are a prompt or a table."""
        text = prompt_of(own) if contender.prompted or contender.respelled else ""
        return 2 * self._numbers(contender, start) + len(text.encode())

    def _numbers(self, contender: Contender, start: Start | None) -> int:
        """Private numbers of a person: one for each direction where nothing beside them is left, and participants differ in as many
        as they are at most."""
        if start is None:
            return self._run(contender.federated).costs.private_bytes // 4  # float32
        if contender.method is None:
            return 0
        only = contender.directions and start.method.rate * start.method.shrinkage >= 1
        return min(contender.directions, len(self.training.people)) if only else start.numbers


def in_one_spelling(examples: Sequence[Example]) -> list[Example]:
    """The examples with their loanwords in the other script, as the folded error rate reads them: what cannot be heard is not learned."""
    return [replace(e, target=fold_loanwords(e.target, e.details["loanwords"])) for e in examples]


TAUGHT: Mapping[str, Mapping[str, Any]] = {
    PROMPTS: {"taught": behind_some},
    ONE_SPELLING: {"taught": lambda examples, seed: in_one_spelling(examples)},
    CENTRALIZED: {"arm_name": CENTRALIZED},
}
"""How a shared part is trained that is not that of the arm ``global``: arguments of
:meth:`sim.study.enrol.shared.SharedTraining.trained`."""


def _lessons(contender: Contender, own: Sequence[Example]) -> Sequence[Example]:
    """A person's sentences as they are trained on."""
    if contender.prompted:
        return behind_others(own)
    return in_one_spelling(own) if contender.taught == ONE_SPELLING else own


def _written(example: Example) -> Written:
    return example.target, [(matrix, other) for matrix, other in example.details["loanwords"]]


def _rounded(state: State) -> State:
    """Private tensors as they are stored, in 16 bits."""
    return {name: tensor.to(torch.float16).to(tensor.dtype) for name, tensor in state.items()}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _machine() -> str:
    """The GPU, or the processor where there is none."""
    found = machine()
    return str(found.get("gpu", found["processor"]))
