"""Who is a device, and which split of the corpus is kept."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from fl.core.errors import CorpusError
from fl.data.importers.gather import ImportTally
from fl.data.importers.names import alike
from fl.data.importers.records import Record, UnusableError

DevicesBy = Literal["auto", "speaker", "topic", "session"]
Splits = Literal["auto", "official", "own"]
_KINDS = ("speaker", "topic", "session")
SPEAKERS = "speakers"


def assign_devices(records: Sequence[Record], how: DevicesBy, tally: ImportTally) -> tuple[list[Record], str]:
    """Records with the device as their speaker, and in words what a device is: a speaker, or where the corpus names none a
    pseudo-device by topic, else by session.

    The name of a pseudo-device says so (``topic:travel``). A record that lacks what the others have is a problem. Raises
    :class:`CorpusError` when no record has any.
    """
    there = [kind for kind in _KINDS if any(getattr(record, kind) for record in records)]
    kind = there[0] if how == "auto" and there else how
    if kind not in there:
        what = "speaker, a topic or a session" if how == "auto" else how
        remedy = f"there is a {there[0]}: --devices-by {there[0]}" if there else "name it with --field speaker=NAME"
        raise CorpusError(f"{records[0].where}: no utterance names a {what}, so there are no devices; {remedy}")
    kept = []
    for record in records:
        name = getattr(record, kind)
        if name:
            kept.append(replace(record, speaker=name if kind == "speaker" else f"{kind}:{name}"))
        else:
            fault = f"utterance {record.id!r} has no {kind}, others have; name it, or --devices-by another"
            tally.add(UnusableError(record.where, f"unknown {kind}", fault))
    tally.notes += alike(record.speaker or "" for record in kept)
    return kept, SPEAKERS if kind == "speaker" else f"pseudo-devices by {kind}"


def settle_splits(records: Sequence[Record], how: Splits) -> tuple[list[Record], str]:
    """Records with the split they keep, and in words which that is.

    Left to itself the official split stays if it leaves every device something to train on and to be tested on; else every
    device is split on its own when the manifest is read, by session and text, which personalization needs.
    """
    official = [record.split for record in records if record.split]
    if not official:
        return list(records), "each device's own, by session and text (the corpus has none)"
    seen: dict[str | None, set[str | None]] = defaultdict(set)
    for record in records:
        seen[record.speaker].add(record.split)
    whole = [name for name, splits in seen.items() if {"train", "test"} <= splits]
    lacking = len(seen) - len(whole)
    if how == "official" or (how == "auto" and not lacking):
        more = f"; {lacking} of {len(seen)} devices have nothing to train on or no test" if lacking else ""
        return list(records), f"the official one{more}"
    lost = f": the official one leaves {lacking} of {len(seen)} devices without training or test"
    why = "" if how == "own" else lost
    return [replace(record, split=None) for record in records], f"each device's own, by session and text{why}"
