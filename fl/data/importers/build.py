"""From a corpus to a manifest: everything is checked before the first second of audio is written."""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fl.core.errors import CorpusError
from fl.core.files import write_atomically
from fl.core.paths import find
from fl.data.checked import CheckText
from fl.data.importers import gather
from fl.data.importers.archives import is_archive, unpack
from fl.data.importers.audio import Spoken, checked
from fl.data.importers.devices import DevicesBy, Splits, assign_devices, settle_splits
from fl.data.importers.gather import ImportTally, Progress, spoken_languages
from fl.data.importers.names import with_unique_ids
from fl.data.importers.places import check_labels, roots_of
from fl.data.importers.records import Embedded, Options
from fl.data.importers.table import IMPORTERS
from fl.data.manifest import write_manifest
from fl.speech.audio import MAX_SECONDS
from fl.speech.text import fold_text

MANIFEST, SUMMARY = "manifest.jsonl", "import.json"


@dataclass(frozen=True)
class ImportPlan:
    """What becomes of the corpus. Without ``out`` nothing is written: the corpus is only checked.

    ``copy`` writes all audio to ``out`` as 16 kHz mono FLAC; otherwise audio files stay where they are. ``plain`` writes texts
    in the form in which they are scored, without punctuation and in lower case. ``drop_bad`` leaves broken utterances out
    instead of refusing the corpus, ``drop_leaking`` training utterances whose text is held out.
    """

    out: Path | None = None
    copy: bool = False
    plain: bool = False
    devices: DevicesBy = "auto"
    splits: Splits = "auto"
    drop_leaking: bool = False
    drop_bad: bool = False


@dataclass(frozen=True)
class ImportSummary:
    """``devices`` holds utterances and minutes by name, and ``devices_are`` says what one is: a speaker or a stand-in for one.

    ``languages`` counts utterances by the languages in them (``ko+en``), ``shared_texts`` the texts that several devices say,
    ``left_out`` utterances by the reason, of which ``examples`` has the first place. ``tables`` are the SHA-256 of the tables
    that held the audio: which revision of the corpus this is.
    """

    format: str
    source: str
    manifest: str
    utterances: int
    hours: float
    devices_are: str
    devices: Mapping[str, Mapping[str, float]]
    splits_are: str
    splits: Mapping[str, int]
    languages: Mapping[str, int]
    loanwords: int
    shared_texts: int
    left_out: Mapping[str, int]
    examples: Mapping[str, str]
    notes: Sequence[str]
    tables: Mapping[str, str]


def import_corpus(
    name: str,
    source: Path,
    options: Options,
    plan: ImportPlan,
    *,
    check_text: CheckText | None = None,
    progress: Progress | None = None,
) -> ImportSummary:
    """Import ``source``, a folder, file or archive of format ``name``, to ``plan.out``: manifest.jsonl, import.json, audio.

    ``check_text`` is that of a base that is to learn the texts, if one is meant. Raises ConfigError for an
    unknown format and :class:`CorpusError` for a corpus that cannot be used; audio that was written before that stays in
    ``plan.out``, the manifest appears last.
    """
    show = progress or (lambda what, done, total: None)
    importer, source = IMPORTERS.find(name), find(source)
    if not source.exists():
        raise CorpusError(f"{source}: no such file or folder; to get the corpus: {importer.get}")
    if plan.out is not None and (plan.out / MANIFEST).exists():
        raise CorpusError(f"{plan.out / MANIFEST} exists: choose another --out, or remove that import first")
    if is_archive(source):
        if plan.out is None:
            raise CorpusError(f"{source}: an archive is unpacked into --out DIR; give one, or unpack it yourself")
        source = unpack(source, plan.out / "source", options.encoding, lambda d, t: show("unpacking", d, t or d))
    check_labels(source, options)
    tally = ImportTally()
    records = gather.usable_records(importer.read(source, options), plan.plain, tally, show)
    tally.settle(plan.drop_bad)
    if not records:
        raise CorpusError(f"{source}: holds no usable utterances ({tally.reasons()}); is it of format {name}?")
    records, notes = with_unique_ids(records, roots_of(source, options))
    tally.notes += notes
    records, devices_are = assign_devices(records, plan.devices, tally)
    records, splits_are = settle_splits(records, plan.splits)
    records = gather.without_leaks(records, plan.drop_leaking, tally)
    records = gather.with_audio(records, roots_of(source, options), tally)
    tally.settle(plan.drop_bad)
    # Before hours of audio are written; how much speech a text has is known afterwards.
    records = [record for record in records if gather.fits(record, MAX_SECONDS, check_text, tally)]
    tally.settle(plan.drop_bad)
    heard = checked(records, plan.out, plan.copy, tally, show)
    spoken = [found for found in heard if gather.fits(found[1], found[2], check_text, tally)]
    tally.settle(plan.drop_bad)
    if not spoken:
        raise CorpusError(f"{source}: nothing is left to learn from ({tally.reasons()})")
    summary = _summarize(name, source, plan, spoken, tally, devices_are, splits_are)
    if plan.out is not None:
        data = json.dumps(asdict(summary), ensure_ascii=False, indent=1).encode()
        write_atomically(plan.out / SUMMARY, data)
        write_manifest(plan.out / MANIFEST, [utterance for utterance, _, _ in spoken])
    return summary


def _summarize(
    name: str,
    source: Path,
    plan: ImportPlan,
    spoken: Sequence[Spoken],
    tally: ImportTally,
    devices_are: str,
    splits_are: str,
) -> ImportSummary:
    records = [record for _, record, _ in spoken]
    tables = sorted({r.audio.path for r in records if isinstance(r.audio, Embedded)})
    minutes: dict[str, list[float]] = defaultdict(list)
    who_says: dict[str, set[str]] = defaultdict(set)
    for utterance, _, seconds in spoken:
        minutes[utterance.speaker].append(seconds / 60)
        who_says[fold_text(utterance.text, utterance.loanwords)].add(utterance.speaker)
    return ImportSummary(
        format=name,
        source=str(source),
        manifest=str((plan.out / MANIFEST).resolve()) if plan.out is not None else "",
        utterances=len(spoken),
        hours=round(sum(seconds for _, _, seconds in spoken) / 3600, 4),
        devices_are=devices_are,
        devices={n: {"utterances": len(m), "minutes": round(sum(m), 3)} for n, m in sorted(minutes.items())},
        splits_are=splits_are,
        splits=dict(Counter(record.split for record in records if record.split)),
        languages=dict(Counter(spoken_languages(record)[0] for record in records).most_common()),
        loanwords=len({pair for record in records for pair in record.loanwords}),
        shared_texts=sum(len(people) > 1 for people in who_says.values()),
        left_out=dict(tally.left_out.most_common()),
        examples=tally.examples,
        notes=tally.notes,
        tables={os.path.relpath(path, source): _sha256(path) for path in tables},
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
