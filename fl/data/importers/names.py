"""What utterances and devices are called: read as people read it, and an id for one utterance alone."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fl.core.paths import readable
from fl.data.importers.records import Embedded, Record, file_of


def with_readable_names(record: Record) -> Record:
    """``record`` with its id, speaker, session and topic as people read them (:func:`fl.core.paths.readable`)."""
    speaker, session, topic = (readable(name or "") or None for name in (record.speaker, record.session, record.topic))
    return replace(record, id=readable(record.id) or record.id, speaker=speaker, session=session, topic=topic)


def with_unique_ids(records: Sequence[Record], roots: Sequence[Path]) -> tuple[list[Record], list[str]]:
    """``records``, each with an id that no other has in whatever case (an id names files), and a note where that is not the corpus's.

    If two are called the same, all are called by the place of their audio below ``roots``: its path without the ending, then its row
    in a table, or its times in milliseconds; where that is not enough, by the number of the utterance too.
    """

    def candidates() -> Iterator[list[str]]:
        yield [record.id for record in records]
        yield (places := [_place(record, roots) for record in records])
        yield [f"{place}-{number}" for number, place in enumerate(places, 1)]

    ids = next(ids for ids in candidates() if len(set(map(str.casefold, ids))) == len(records))
    counts = Counter(record.id.casefold() for record in records)
    repeated = [record.id for record in records if counts[record.id.casefold()] > 1]
    if not repeated:
        return list(records), []
    note = f"{len(repeated):,} utterances share an id, like {repeated[0]!r}: all are called by their audio, like {ids[0]!r}"
    return [replace(record, id=name) for record, name in zip(records, ids, strict=True)], [note]


def _place(record: Record, roots: Sequence[Path]) -> str:
    path = Path(os.path.abspath(file_of(record.audio))).with_suffix("")
    below = [path.relative_to(root) for root in map(os.path.abspath, roots) if path.is_relative_to(root)]
    row = [record.audio.row + 1] if isinstance(record.audio, Embedded) else []
    times = [round(time * 1000) for time in (record.start, record.end) if time is not None]
    return readable("-".join(map(str, [(below or [path])[0].as_posix(), *row, *times])))


def alike(names: Iterable[str]) -> list[str]:
    """A remark on names of devices that differ in case or width alone (``Ann``, ``ann``, ``Ａｎｎ``): they stay apart."""
    seen: dict[str, set[str]] = defaultdict(set)
    for name in names:
        seen[unicodedata.normalize("NFKC", name).casefold()].add(name)
    shown = [" and ".join(map(repr, sorted(found))) for found in seen.values() if len(found) > 1]
    what = "different devices, though their names differ in case or width alone"
    return [f"{what}: {'; '.join(shown[:5])}"] if shown else []
