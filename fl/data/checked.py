"""Which utterances of a manifest a run can use: one that is bad is left out and named, and is nobody else's business.

Audio must be there, be read to its end, and be speech of a usable length; a text must be one that the base can be taught to write.
Every recording is decoded once: what was heard is kept by the file's size and times, so that a later run and the other processes
of this one look at the files' facts alone.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from fl import __version__
from fl.core.errors import AudioError, ManifestError, TextError
from fl.core.files import write_atomically
from fl.core.machine import available_cores
from fl.core.paths import cache_root
from fl.core.printing import SHOWN, first_of
from fl.data.manifest import Utterance, read_lines
from fl.runs.schema import LeftOutRow
from fl.speech.audio import SAMPLE_RATE, check_speech, load_audio
from fl.speech.text import normalize_text

MOST_LEFT_OUT = 0.5
"""Where a larger share of a manifest cannot be used, what is wrong is the folder, the base or the manifest, not an utterance."""

CheckText = Callable[[str, float], None]
"""Raises :class:`TextError` for a text that a base cannot be taught to write for so many seconds of speech."""


class Heard(NamedTuple):
    """Seconds of speech and what is odd about it, or what is wrong with it."""

    seconds: float = 0.0
    remarks: tuple[str, ...] = ()
    fault: str = ""


def usable_utterances(
    manifest: Path, check_text: CheckText, *, strict: bool = False
) -> tuple[list[Utterance], tuple[LeftOutRow, ...], tuple[str, ...]]:
    """The utterances of a manifest that can be used, in order, those that are left out, and a note for each thing that is odd.

    Raises :class:`ManifestError` that lists them under ``strict``, and where they are more than MOST_LEFT_OUT of all.
    """
    lines = read_lines(manifest)
    kept: list[Utterance] = []
    left_out: list[LeftOutRow] = []
    odd: dict[str, list[str]] = {}
    for (number, utterance), heard in zip(lines.items(), listen(manifest, list(lines.values())), strict=True):
        where = f"{manifest}:{number}"
        for remark in heard.remarks:
            odd.setdefault(remark, []).append(where)
        if reason := heard.fault or _text_fault(utterance.text, heard.seconds, check_text):
            left_out.append(LeftOutRow(device=utterance.speaker, example=utterance.id, where=where, reason=reason))
        else:
            kept.append(utterance)
    if left_out and (strict or len(left_out) > MOST_LEFT_OUT * len(lines)):
        half = "that is more than half, so check whether folder and base are the ones that are meant"
        remedy = "mend them, or run without --strict" if strict else half
        what = f"{manifest}: {len(left_out)} of {len(lines)} utterances cannot be used; {remedy}:"
        shown = first_of(left_out, len(left_out) if strict else SHOWN)
        raise ManifestError("\n  ".join([what, *shown]))
    return kept, tuple(left_out), tuple(odd_notes(odd, len(lines)))


def odd_notes(odd: Mapping[str, Sequence[str]], of: int) -> list[str]:
    """A note for each remark on recordings, from where they stand: how many of all, and the first."""
    return [f"{len(where):,} of {of:,} recordings: {remark}; first in {where[0]}" for remark, where in odd.items()]


def listen(
    manifest: Path,
    utterances: Sequence[Utterance],
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    again: bool = False,
) -> list[Heard]:
    """What is heard of each utterance. A recording that was listened to before, and is the same file, is not opened; ``again``
    opens those with which something was wrong, which may have been the disk."""
    name = hashlib.sha256(f"{__version__}\n{manifest.resolve()}".encode()).hexdigest()[:32]
    path = cache_root() / "heard" / f"{name}.json"
    known: dict[str, Heard] = {}
    with suppress(OSError, ValueError, AttributeError, TypeError):
        kept = json.loads(path.read_bytes()).items()
        known = {key: Heard(found, tuple(odd), fault) for key, (found, odd, fault) in kept if not (again and fault)}
    keys = [_facts(utterance) for utterance in utterances]
    new = [place for place, key in enumerate(keys) if key not in known]
    found = {key: known[key] for key in keys if key in known}
    try:
        with ThreadPoolExecutor(available_cores()) as pool:
            for place, heard in zip(new, pool.map(_hear, [utterances[place] for place in new]), strict=True):
                found[keys[place]] = heard
                progress(len(found), len(keys))
    finally:  # who stops it does not lose the hours so far
        if new:
            with suppress(OSError):  # a full disk costs the next run its time
                write_atomically(path, json.dumps(found).encode())
    return [found[key] for key in keys]


def _facts(utterance: Utterance) -> str:
    """What decides what is heard: the file as it is now, and which part of it."""
    facts: tuple[int, ...] = ()
    with suppress(OSError):
        status = utterance.audio.stat()
        facts = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    text = f"{utterance.audio}\n{facts} {utterance.start} {utterance.end}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


def _hear(utterance: Utterance) -> Heard:
    remarks: list[str] = []
    try:
        audio = load_audio(utterance.audio, utterance.start, utterance.end, remarks.append)
        check_speech(audio, str(utterance.audio))
    except (AudioError, OSError) as error:
        return Heard(fault=str(error))
    return Heard(len(audio) / SAMPLE_RATE, tuple(remarks))


def _text_fault(text: str, seconds: float, check_text: CheckText) -> str:
    try:
        check_text(normalize_text(text), seconds)
    except TextError as error:
        return str(error)
    return ""
