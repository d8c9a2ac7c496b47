"""``idiolect enrol``: a person's own adapter from a few recordings with their texts, kept where it helps."""

import json
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from rich.table import Table
from typer import Argument, Option

from clients.device.labelled import LabelledSpeech, read_labelled
from clients.training.cohort import activation_bytes
from clients.training.enrol import Adapter, Enrolment, EnrolMethod, Start, enrol, predict
from fl.adapters.files import AdapterInfo, load_adapter, save_adapter
from fl.adapters.split import in_part, make_split
from fl.adapters.stacked import Slot, StackedModel
from fl.adapters.state import State, size_of
from fl.core.files import write_atomically
from fl.data.manifest import Utterance, write_manifest
from fl.metrics import Counts
from fl.settings.config import make_config
from fl.tasks.speech.task import SpeechTask
from fl.tasks.task import Example
from sim.cli.app import errors, progress_bars
from sim.cli.options import Json, wide_console

DEFAULT = EnrolMethod("B@decoder", rate=8e-4, grid=(0, 3, 6, 12, 24))
"""A private part that leaves the encoder the same for everybody, at the rate that was best for it: docs/results/enrol.md."""
PERSON = "you"
METRIC = "mer"
console = wide_console(140)


@dataclass(frozen=True)
class LeftOut:
    """A sentence that its fold did not train on: what was said, and the transcripts before and after."""

    name: str
    said: str
    before: str
    after: str
    errors: tuple[int, int]
    tokens: int


@dataclass(frozen=True)
class Outcome:
    """What an enrolment came to."""

    enrolment: Enrolment
    left_out: list[LeftOut]
    adapter: State
    bytes: int
    seconds: float

    @property
    def errors(self) -> tuple[int, int]:
        """Errors on the left-out sentences, before and after."""
        before, after = (sum(one.errors[i] for one in self.left_out) for i in (0, 1))
        return before, after

    @property
    def helps(self) -> bool:
        """Whether left-out sentences have a lower loss, and no more errors. Unknown, of a single one: it is taken as helping."""
        before, after = self.errors
        return not self.left_out or (self.enrolment.steps > 0 and after <= before)


def own_task(speech: LabelledSpeech, folder: Path, info: AdapterInfo, language: str) -> SpeechTask:
    """The task of one person's labelled speech, whose recordings are written into ``folder``."""
    utterances = []
    for place, (name, (upload, text)) in enumerate(zip(speech.names, speech.utterances, strict=True)):
        path = folder / f"{place:04d}.flac"
        write_atomically(path, upload.content)
        utterances.append(Utterance(name, path, text, PERSON, lang=language or info.language or None))
    write_manifest(folder / "manifest.jsonl", utterances)
    settings = {
        "base": info.base_name,
        "manifest": str(folder / "manifest.jsonl"),
        "new-people": 0,
        "window": info.window,
        "language": language or info.language,
    }
    return SpeechTask(make_config(settings))


def neutral(tensors: State, info: AdapterInfo) -> Adapter:
    """The adapter in a folder with neutral gates: those that are there are another person's."""
    gates = {name: tensor * 0 if ".gated_lora_gate" in name else tensor for name, tensor in tensors.items()}
    return Adapter(Slot.of(info.config), gates)


def enrolled(task: SpeechTask, shared: Adapter, info: AdapterInfo, method: EnrolMethod, seed: int) -> Outcome:
    """Enrol the person of ``task``, and transcribe every sentence by the fold that left it out."""
    began = time.perf_counter()
    person = task.device(task.device_ids()[0])
    examples = sorted((*person.train, *person.validation, *person.test), key=lambda example: example.key)
    host = StackedModel(task.new_model(), info.config.target_modules or task.targets)
    start = Start.of(shared, method, seed=seed)
    budget = activation_bytes(task.compute)
    found = enrol(host, task, start, {PERSON: examples}, seed=seed, budget=budget, with_unseen=True)[PERSON]
    none = {name: start.state[name] for name in start.split.private}
    rows = [(fold + 1, i) for fold, (away, _) in enumerate(found.unseen) for i in sorted(away)]
    states = [none, *(state for _, state in found.unseen)]
    before, after = (
        predict(host, task, start, states, [(place, examples[i]) for place, i in which]) if rows else []
        for which in ([(0, i) for _, i in rows], rows)
    )
    left_out = [_left_out(task, examples[i], *texts) for (_, i), *texts in zip(rows, before, after, strict=True)]
    return Outcome(
        found,
        left_out,
        {**start.state, **found.private},
        size_of(found.private).bytes // 2,
        time.perf_counter() - began,
    )


def _left_out(task: SpeechTask, example: Example, before: str, after: str) -> LeftOut:
    counts: list[Counts] = [task.score(example, text)[METRIC] for text in (before, after)]
    errors_of = counts[0].errors, counts[1].errors
    return LeftOut(example.key, example.target, before, after, errors_of, counts[0].reference)


def enrol_command(
    source: Annotated[Path, Argument(help="A folder with a.wav beside a.txt, or a manifest; 1 to 40 sentences.")],
    adapter: Annotated[
        Path, Option(help="The shared adapter: an adapter folder of a run; others' gates in it are not used.")
    ],
    out: Annotated[Path, Option(help="Where the personal adapter goes, a folder.")],
    part: Annotated[
        str, Option(help="What trains: A, B, gate, gate_bias; in some modules alone: B@decoder.")
    ] = DEFAULT.part,
    rate: Annotated[float, Option(help="Learning rate.", min=0.0, max=10.0)] = DEFAULT.rate,
    gate: Annotated[str, Option(help="Gate that is added to an adapter without one, for part gate.")] = DEFAULT.gate,
    language: Annotated[str, Option(help="Language token; by default the adapter's own.")] = "",
    encoding: Annotated[str, Option(help="Encoding of the texts; by default UTF-8.")] = "",
    keep: Annotated[
        bool, Option("--keep", help="Keep the adapter even where it makes left-out sentences worse.")
    ] = False,
    seed: Annotated[int, Option(help="Of folds and the order of sentences.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Make a personal adapter from a few recordings with their texts, and show what it changes on sentences left out of training."""
    tensors, info = load_adapter(adapter)
    speech = read_labelled(source, encoding=encoding, language=language or info.language)
    for remark in speech.remarks():
        errors.print(remark, soft_wrap=True, highlight=False)
    method = replace(DEFAULT, part=part, rate=rate, gate=gate)
    with tempfile.TemporaryDirectory() as folder, progress_bars(as_json) as show:
        show("loading the base", 0, 1)
        task = own_task(speech, Path(folder), info, language)
        info.require_base(task.fingerprint)
        show("loading the base", 1, 1)
        show("enrolment", 0, 1)
        outcome = enrolled(task, neutral(tensors, info), info, method, seed)
        show("enrolment", 1, 1)
    kept = outcome.helps or keep
    if kept:
        config = replace(info.config, gate=gate) if gate != DEFAULT.gate else info.config
        save_adapter(out, outcome.adapter, replace(info, config=config, split=_split(part, outcome.adapter)))
    _print(outcome, out, kept, as_json)


def _split(part: str, tensors: State) -> str:
    """The narrowest split in which all that trained is private."""
    private = {name for name in tensors if in_part(part)(name)}
    return next(
        preset for preset in ("gates", "fedsa", "all-private") if private <= {*make_split(preset, tensors).private}
    )


def _print(outcome: Outcome, out: Path, kept: bool, as_json: bool) -> None:
    before, after = outcome.errors
    tokens, steps = sum(one.tokens for one in outcome.left_out), outcome.enrolment.steps
    if as_json:
        facts = {"kept": kept, "steps": steps, "losses": outcome.enrolment.curve, "bytes": outcome.bytes}
        texts = [asdict(one) for one in outcome.left_out]
        print(json.dumps({**facts, "seconds": round(outcome.seconds, 2), "left_out": texts}, ensure_ascii=False))
        return
    if outcome.left_out:
        table = Table(title="Each sentence, transcribed without having trained on it", title_justify="left")
        for head in ("said", "before", "after", "errors"):
            table.add_column(head, overflow="fold")
        for one in outcome.left_out:
            table.add_row(one.said, one.before, one.after, "{} -> {}".format(*one.errors))
        table.add_section()
        table.add_row("all", "", "", f"{before} -> {after} of {tokens}")
        console.print(table)
    else:
        console.print("One sentence leaves nothing to check with: record a second one to see whether it helps.")
    cost = f"{steps} steps in {outcome.seconds:.1f} s, {outcome.bytes / 1024:,.0f} KiB of private numbers in 16 bits."
    verdict = (
        f"Kept: {out}" if kept else "Not kept: it does not help with sentences left out. --keep keeps it all the same."
    )
    console.print(f"{cost}\n{verdict}", soft_wrap=True, highlight=False)
