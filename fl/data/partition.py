"""Who trains on what: train, validation and test of each device, and held-out speakers.

Two rules hold for every population. No text of a validation or test set, of anybody, stands in anybody's train set,
also not in the other spelling of a loanword; train utterances that would break this are dropped and counted. And where
a device has sessions, whole sessions go to one split, so that a test never shares a room and a day with training.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fl.core.errors import ConfigError
from fl.core.rng import derive_random, derive_seed
from fl.data.manifest import Utterance
from fl.runs.schema import LeftOutRow
from fl.speech.text import fold_text

Spoken = Mapping[str, Sequence[Utterance]]  # by device
Sizes = Mapping[str, Mapping[str, int]]  # utterances by device and split

MIN_SESSIONS = 3
"""A device with fewer sessions cannot give one to each split; its utterances are split by text alone."""

MAX_DROPPED_SHARE = 0.1
"""When splitting by session would drop more than this share (speakers who read the same sentences), texts are assigned
to splits for all devices together instead, and sessions are ignored."""


@dataclass(frozen=True)
class DeviceData:
    """The utterances of one device. Held-out speakers have only ``test``."""

    device_id: str
    train: tuple[Utterance, ...]
    validation: tuple[Utterance, ...]
    test: tuple[Utterance, ...]


@dataclass(frozen=True)
class Population:
    """Devices that train and held-out speakers, both ordered by name; ``dropped`` utterances would have leaked text."""

    devices: tuple[DeviceData, ...]
    new_people: tuple[DeviceData, ...]
    dropped: int
    manifest: Path = Path()
    left_out: tuple[LeftOutRow, ...] = ()  # before it was divided
    notes: tuple[str, ...] = ()  # of recordings that are odd but of use


def split_population(
    utterances: Iterable[Utterance],
    *,
    seed: int,
    validation_share: float = 0.15,
    test_share: float = 0.25,
    new_people: int | Sequence[str] = 0,
) -> Population:
    """Split by speaker (= device), then by session or text, the same way for the same arguments in any order.

    ``new_people`` is how many speakers to hold out, chosen by ``seed``, or their names; all they said is test. Shares are
    of each device's utterances. A device with 1 utterance trains on it and is never scored, one with 2 trains on one
    and is tested on the other, one with 3 has one of each. An utterance with its own ``split`` keeps it (that of a held-out
    speaker is test all the same). Raises ConfigError for impossible shares or speakers.
    """
    by_speaker: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        by_speaker[utterance.speaker].append(utterance)
    if not by_speaker:
        raise ConfigError("there are no utterances to split; check the manifest")
    held_out = _choose_new_people(sorted(by_speaker), new_people, seed)
    devices = {name: by_speaker[name] for name in sorted(by_speaker) if name not in held_out}
    keys = {u.id: fold_text(u.text, u.loanwords) for group in by_speaker.values() for u in group}
    foreign = {keys[u.id] for name in held_out for u in by_speaker[name]}
    wanted = {name: split_sizes(len(group), validation_share, test_share) for name, group in devices.items()}

    labels = _label_by_session(devices, wanted, keys, seed)
    if len(_leaking(devices, labels, keys, foreign)) > MAX_DROPPED_SHARE * len(labels):
        labels = _label_by_text(devices, wanted, keys, seed)
    leaking = _leaking(devices, labels, keys, foreign)

    def part(name: str, split: str) -> tuple[Utterance, ...]:
        return tuple(u for u in devices[name] if labels[u.id] == split and u.id not in leaking)

    return Population(
        devices=tuple(DeviceData(n, part(n, "train"), part(n, "validation"), part(n, "test")) for n in devices),
        new_people=tuple(DeviceData(name, (), (), tuple(by_speaker[name])) for name in held_out),
        dropped=len(leaking),
    )


def split_sizes(count: int, validation_share: float, test_share: float) -> dict[str, int]:
    """How many of ``count`` utterances each split should get: nearest to the shares, at least one of each when there are
    3, a train and a test utterance when there are 2, and train before everything when there is 1.

    Raises :class:`ConfigError` for shares that are negative or leave nothing to train on."""
    if min(validation_share, test_share) < 0 or validation_share + test_share >= 1:
        raise ConfigError(
            f"validation-share = {validation_share} and test-share = {test_share} leave nothing to train on, or are negative: "
            "together they must be below 1"
        )
    test = max(1, round(count * test_share)) if count >= 2 and test_share > 0 else 0
    validation = max(1, round(count * validation_share)) if count >= 3 and validation_share > 0 else 0
    return {"train": count - validation - test, "validation": validation, "test": test}


def _choose_new_people(names: Sequence[str], new_people: int | Sequence[str], seed: int) -> list[str]:
    if isinstance(new_people, str):
        raise ConfigError(f"new_people={new_people!r} must be a number or a list of speaker names")
    if not isinstance(new_people, int):
        unknown = sorted(set(new_people) - set(names))
        if unknown:
            raise ConfigError(f"new_people names unknown speakers {unknown}; the manifest has {', '.join(names)}")
        chosen = sorted(set(new_people))
    else:
        if new_people < 0:
            raise ConfigError(f"new_people={new_people} must be 0 or more")
        chosen = sorted(derive_random(seed, "new people").sample(names, min(new_people, len(names))))
    if len(chosen) >= len(names):
        raise ConfigError(f"new_people={new_people!r} leaves none of the {len(names)} speakers to train; give fewer")
    return chosen


def _label_by_session(devices: Spoken, wanted: Sizes, keys: Mapping[str, str], seed: int) -> dict[str, str]:
    """Split of each utterance id: by whole sessions for devices that have MIN_SESSIONS, by text for the others."""
    labels, rest = {}, {}
    for name, group in devices.items():
        sizes = Counter(u.session for u in group if u.session is not None)
        if len(sizes) < MIN_SESSIONS or any(u.session is None or u.split is not None for u in group):
            rest[name] = group
            continue
        chosen = _choose_sessions(sizes, wanted[name], derive_seed(seed, "sessions", name))
        labels.update({u.id: chosen[u.session] for u in group if u.session is not None})
    return labels | _label_by_text(rest, wanted, keys, seed)


def _choose_sessions(sizes: Mapping[str, int], wanted: Mapping[str, int], seed: int) -> dict[str, str]:
    """Session -> split. In random order, a session goes to test, then to validation, when that brings the split nearer
    to the size wanted; each split that wants something gets at least one, and train keeps at least one."""
    order = sorted(sizes, key=lambda session: derive_seed(seed, session))
    labels = dict.fromkeys(order, "train")
    for split, still_needed in (("test", 2 if wanted["validation"] else 1), ("validation", 1)):
        size = 0
        free = [session for session in order if labels[session] == "train"]
        # sessions of about the right size first: with few sessions the first draw decides most of the error
        free.sort(key=lambda session: round(4 * abs(sizes[session] - wanted[split]) / max(1, wanted[split])))
        for session in free if wanted[split] else []:
            if sum(label == "train" for label in labels.values()) <= still_needed:
                break
            if size and abs(size + sizes[session] - wanted[split]) >= abs(size - wanted[split]):
                continue
            labels[session] = split
            size += sizes[session]
    return labels


def _label_by_text(devices: Spoken, wanted: Sizes, keys: Mapping[str, str], seed: int) -> dict[str, str]:
    """Split of each utterance id; utterances with one text share a split over all devices. Texts are taken in random
    order, those of most devices first, and each goes where these devices together still lack most."""
    groups: dict[str, list[Utterance]] = defaultdict(list)
    labels = {}
    lacking = {name: Counter(wanted[name]) for name in devices}
    for name, members in devices.items():
        for utterance in members:
            if utterance.split is not None:
                labels[utterance.id] = utterance.split
                lacking[name][utterance.split] -= 1
            else:
                groups[keys[utterance.id]].append(utterance)
    order = sorted(groups, key=lambda key: (-len(groups[key]), derive_seed(seed, "text", key)))
    for key in order:
        need: Counter[str] = Counter()
        for utterance in groups[key]:
            for split, missing in lacking[utterance.speaker].items():
                need[split] += missing
        chosen = max(("train", "test", "validation"), key=lambda split: need[split])
        for utterance in groups[key]:
            labels[utterance.id] = chosen
            lacking[utterance.speaker][chosen] -= 1
    return labels


def _leaking(devices: Spoken, labels: Mapping[str, str], keys: Mapping[str, str], foreign: set[str]) -> set[str]:
    """Ids to drop: train utterances whose text is in a validation or test set, validation ones whose text is in a test."""
    test = foreign | {keys[u.id] for group in devices.values() for u in group if labels[u.id] == "test"}
    held_out = test | {keys[u.id] for group in devices.values() for u in group if labels[u.id] == "validation"}
    forbidden = {"train": held_out, "validation": test, "test": set[str]()}
    return {u.id for group in devices.values() for u in group if keys[u.id] in forbidden[labels[u.id]]}
