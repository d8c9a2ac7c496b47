"""``idiolect enrol`` at work: a person's own adapter from a few recordings with their texts, kept where it helps."""

import io
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
from rich.table import Table

from clients.device.labelled import LabelledSpeech, read_labelled
from clients.training.enrol_method import DEFAULT
from clients.training.person import Personal, enrol_person
from clients.training.private_part import Adapter
from fl.adapters.directions import load_directions, save_directions
from fl.adapters.files import AdapterInfo, load_adapter, save_adapter
from fl.adapters.split import covering, make_split, tensor_kind
from fl.adapters.stacked import Slot
from fl.adapters.state import State
from fl.bases.base import SpeechBase
from fl.bases.resolve import load_speech_base
from fl.core.compute import AUTO, choose_device, dtype_of
from fl.core.errors import ConfigError, ManifestError, TextError
from fl.speech.audio import MAX_SECONDS
from fl.speech.features import Window
from fl.speech.languages import language_code
from fl.speech.sound import open_sound
from fl.speech.spelling import SPELLING_NAME, SpellingTable, read_lexicon
from fl.tasks.speech.kind import SPEECH
from fl.tasks.speech.own import OwnSpeech, Spoken
from sim.cli.app import errors, progress_bars
from sim.cli.enrol_options import EnrolOptions
from sim.cli.options import wide_console

console = wide_console(140)


def usable(labelled: LabelledSpeech, base: SpeechBase) -> list[Spoken]:
    """What ``base`` can learn from; the others are left out, by name. :class:`ManifestError` where nothing is left."""
    found = []
    for name, (upload, text) in zip(labelled.names, labelled.utterances, strict=True):
        try:
            if upload.seconds > MAX_SECONDS:
                raise TextError(f"has {upload.seconds:.0f} s, and a sentence may have {MAX_SECONDS:g}")
            base.check_text(text, upload.seconds)
        except TextError as error:
            labelled.left_out[name] = str(error)
            continue
        with open_sound(io.BytesIO(upload.content), name) as sound:
            found.append((name, np.concatenate([*sound.blocks()])[:, 0], text))
    if not found:
        raise ManifestError(f"no sentence can be learned from: {'; '.join(labelled.remarks())}")
    return found


def neutral(folder: Path, tensors: State, info: AdapterInfo) -> Adapter:
    """The adapter in a folder with neutral gates: those that are there are another person's."""
    gates = {name: tensor * 0 if tensor_kind(name) == "gate" else tensor for name, tensor in tensors.items()}
    return Adapter(Slot.of(info.config), gates, load_directions(folder))


def of_one_person(folder: Path, tensors: State, info: AdapterInfo) -> list[str]:
    """What to say of an adapter whose A or B is a person's own, which nothing can take out again."""
    private = [name for name in make_split(info.split, tensors).private if tensor_kind(name) != "gate"]
    told = f"{folder}: A or B of it is somebody's own (split {info.split}); unless it is yours, give RUN/shared"
    return [told] if private else []


def own_speech(labelled: LabelledSpeech, info: AdapterInfo, language: str) -> OwnSpeech:
    """A person's labelled speech on the base of an adapter."""
    device = choose_device(AUTO)
    base = load_speech_base(info.base_name, dtype=dtype_of(AUTO, device)).to(device)
    info.require_base(base.fingerprint)
    code = language_code(language or info.language) if base.languages else ""
    if base.languages and code not in base.languages:
        raise ConfigError(f"language {code!r} is unknown to base {base.name!r}: give --language one that it knows")
    window, targets = cast(Window, info.window), info.config.target_modules or []
    return OwnSpeech(base, usable(labelled, base), window=window, language=code, targets=targets)


def run_enrolment(options: EnrolOptions, as_json: bool) -> None:
    """Enrol a person as the options say, keep what helps, and print what it came to."""
    if options.out.resolve() == options.adapter.resolve():
        raise ConfigError(
            f"--out {options.out} is the shared adapter, which others start from too: give another folder"
        )
    tensors, info = load_adapter(options.adapter)
    known = read_lexicon(options.lexicon) if options.lexicon is not None else []
    labelled = read_labelled(options.source, encoding=options.encoding, language=options.language or info.language)
    with progress_bars(as_json) as show:
        show("loading the base", 0, 1)
        speech = own_speech(labelled, info, options.language)
        show("loading the base", 1, 1)
        for remark in (*of_one_person(options.adapter, tensors, info), *labelled.remarks()):
            errors.print(remark, soft_wrap=True, highlight=False)
        show("enrolment", 0, 1)
        shared = neutral(options.adapter, tensors, info)
        spelling = partial(SpellingTable.of_texts, known=known) if known else None
        personal = enrol_person(
            speech, shared, options.method(), metric=SPEECH.main, seed=options.seed, spelling=spelling
        )
        show("enrolment", 1, 1)
    kept = personal.helps or options.keep
    if kept:
        config = replace(info.config, gate=options.gate) if options.gate != DEFAULT.gate else info.config
        split = covering(info.split, personal.tensors, personal.private)
        save_adapter(options.out, personal.tensors, replace(info, config=config, split=split, language=speech.language))
        save_directions(options.out, {})  # of another adapter that lay there
        if (options.out / SPELLING_NAME).exists():
            errors.print(f"{options.out}: the spellings of an earlier enrolment went with its adapter", soft_wrap=True)
            (options.out / SPELLING_NAME).unlink()
        if (table := _spelling(personal)).pairs:
            table.write(options.out)
    _print(personal, labelled, options.out, kept, as_json)


def _spelling(personal: Personal) -> SpellingTable:
    """The person's table, an empty one where none was learned."""
    found = personal.spelling
    return found if isinstance(found, SpellingTable) else SpellingTable((), frozenset(), frozenset())


def _print(personal: Personal, labelled: LabelledSpeech, out: Path, kept: bool, as_json: bool) -> None:
    spellings = len(_spelling(personal).pairs)
    if as_json:
        found = {"kept": kept, "out": str(out), **personal.report()}
        print(json.dumps({**found, "spellings": spellings, "left_out": labelled.left_out}, ensure_ascii=False))
        return
    before, after = personal.errors
    if personal.left_out:
        table = Table(title="Each sentence, transcribed without having trained on it", title_justify="left")
        for head in ("said", "before", "after", "errors"):
            table.add_column(head, overflow="fold")
        for one in personal.left_out:
            table.add_row(one.said, one.before, one.after, "{} -> {}".format(*one.errors))
        table.add_section()
        table.add_row("all", "", "", f"{before} -> {after} of {sum(one.tokens for one in personal.left_out)}")
        console.print(table)
    else:
        console.print("One sentence leaves nothing to check with: record a second one to see whether it helps.")
    steps, size = personal.enrolment.steps, personal.bytes / 1024
    spelled = f", spellings of {spellings} loanwords" if personal.spelling is not None else ""
    drawn = f", drawn to {personal.directions} directions" if steps and personal.directions else ""
    cost = f"{steps} steps in {personal.seconds:.1f} s{drawn}, {size:,.0f} KiB of private numbers (int8){spelled}."
    verdict = (
        f"Kept: {out}" if kept else "Not kept: it does not help with sentences left out. --keep keeps it all the same."
    )
    console.print(f"{cost}\n{verdict}", soft_wrap=True, highlight=False)
