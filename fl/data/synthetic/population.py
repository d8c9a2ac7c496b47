"""A population of people who mix two languages: sentences, voices, rooms and habits brought together on disk."""

import hashlib
import json
import os
from bisect import bisect
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

from fl.core.errors import ConfigError
from fl.core.files import new_folder
from fl.core.rng import derive_generator, derive_random
from fl.data.manifest import Utterance, write_manifest
from fl.data.synthetic.acoustics import Acoustics, record
from fl.data.synthetic.engines import ENGINES, Engine, Speech
from fl.data.synthetic.grammar import Pair, Sentence, generate
from fl.data.synthetic.kokoro import MODEL_SHA256
from fl.data.synthetic.pairs import load_pair
from fl.data.synthetic.phonology import Accent
from fl.data.synthetic.traits import as_said, check_traits, degree_of, with_own_words
from fl.data.synthetic.voices import DeviceProfile, draw_profiles
from fl.speech.audio import save_audio

GENERATOR_VERSION = 2
"""Raise it with every change that alters text or sound, so that no folder of an older generator is taken for a new one."""

MANIFEST_NAME = "manifest.jsonl"
POPULATION_NAME = "population.json"
SECONDS = (1.6, 3.6)
"""Sentences that come out shorter or longer are drawn again: training costs as much as speech is long."""

_TRIES = 60
_MAX_PEOPLE = 10_000
_AHEAD = 16  # recordings begun and not finished

Said = tuple[Utterance, Future[None]]  # and when its recording is on the disk


def synthesize(
    out_dir: str | Path,
    *,
    pair: str = "ko-en",
    devices: int = 8,
    new_people: int = 2,
    sentences: int = 60,
    seed: int = 0,
    voices: str = "espeak",
    matched: bool = False,
    traits: str = "",
    new_people_sentences: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Make a synthetic population in ``out_dir`` and return the path of its manifest.

    ``devices`` people take part and ``new_people`` more never do; each says ``sentences`` sentences in 7 to 9 sessions, those
    who never take part ``new_people_sentences`` if that is above 0.
    Beside the manifest lie 16-bit WAV files (16 kHz) and ``population.json`` with the settings and every person's
    profile. ``voices`` is an engine of :data:`fl.data.synthetic.engines.ENGINES`; ``matched`` makes pairs of people who sound
    alike and write the opposite way; ``traits`` is a list such as ``"accent,numbers"`` of
    :data:`fl.data.synthetic.traits.TRAITS`. The same arguments give the same bytes, with neural voices on the same processor.
    The folder appears complete or not at all; if it is there already from the same settings it is reused.
    ``progress(done, total)`` is called after each utterance.

    Raises ConfigError for settings that are not allowed, a folder that holds something else, or a missing engine.
    """
    out_dir = Path(out_dir)
    limits = {
        "devices": (1, _MAX_PEOPLE),
        "new_people": (0, _MAX_PEOPLE),
        "sentences": (1, 100_000),
        "new_people_sentences": (0, 100_000),
    }
    settings = _sizes(devices, new_people, sentences, seed, new_people_sentences)
    for key, (low, high) in limits.items():
        if not low <= settings.get(key, low) <= high:
            raise ConfigError(f"{key}={settings[key]} is not allowed: from {low} to {high}")
    grammar = load_pair(pair)
    chosen = check_traits(traits, grammar)
    stamp = _stamp(grammar, settings, voices, matched, chosen)
    if _is_finished(out_dir, stamp):
        return out_dir / MANIFEST_NAME
    profiles = draw_profiles(
        grammar, devices=devices, new_people=new_people, seed=seed, voices=voices, matched=matched, traits=chosen
    )
    counts = [new_people_sentences * person.new_person or sentences for person in profiles]
    with new_folder(out_dir) as work:
        utterances = []
        with ThreadPoolExecutor(os.cpu_count()) as recorders:
            said = _speak_all(work, grammar, zip(profiles, counts, strict=True), seed, ENGINES[voices](), recorders)
            for utterance, recorded in _a_few_ahead(said):
                recorded.result()
                utterances.append(utterance)
                if progress is not None:
                    progress(len(utterances), sum(counts))
        write_manifest(work / MANIFEST_NAME, utterances)
        content = {"schema": 1, "settings": stamp, "people": [_described(profile) for profile in profiles]}
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        (work / POPULATION_NAME).write_text(text, encoding="utf-8")
        with suppress(OSError):
            out_dir.rmdir()  # Windows replaces no folder, not even an empty one
    _is_finished(out_dir, stamp)  # another process may have been quicker: with other settings that is an error
    return out_dir / MANIFEST_NAME


def new_people_of(manifest: str | Path) -> tuple[str, ...]:
    """Names of the people who never take part in the synthetic population of ``manifest``, for ``split_population``; ()
    if the manifest is not that of a synthetic population."""
    path = Path(manifest).parent / POPULATION_NAME
    if not path.is_file():
        return ()
    try:
        people = json.loads(path.read_text(encoding="utf-8"))["people"]
        return tuple(person["name"] for person in people if person["new_person"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a population file ({error}); make the population again") from error


def traits_of(manifest: str | Path) -> dict[str, dict[str, float]]:
    """The degree of each trait of each person of the synthetic population of ``manifest``, by name, to split results by."""
    people = json.loads((Path(manifest).parent / POPULATION_NAME).read_text(encoding="utf-8"))["people"]
    return {person["name"]: person.get("traits", {}) for person in people}


def _sizes(devices: int, new_people: int, sentences: int, seed: int, new_people_sentences: int) -> dict[str, int]:
    sizes = {"devices": devices, "new_people": new_people, "sentences": sentences, "seed": seed}
    return sizes | ({"new_people_sentences": new_people_sentences} if new_people_sentences else {})


def _described(profile: DeviceProfile) -> dict[str, Any]:
    """The profile as plain values, without what only matched people and those with traits have."""
    left_out = {"matched_to": "", "traits": {}}
    return {key: value for key, value in asdict(profile).items() if key not in left_out or value != left_out[key]}


def _stamp(
    pair: Pair, settings: Mapping[str, int], voices: str, matched: bool, traits: tuple[str, ...]
) -> dict[str, Any]:
    """What decides the bytes of a population. What is as it always was is not named, so that folders keep their names."""
    if voices not in ENGINES:
        raise ConfigError(f"unknown voices {voices!r}; known: {', '.join(ENGINES)}")
    if "accent" in traits and not ENGINES[voices].accents:
        raise ConfigError(f"{voices} cannot speak with an accent: leave out the trait accent, or take voices=neural")
    decides = repr(pair) + (repr(sorted(pair.readings.items())) if pair.readings else "")
    grammar = hashlib.sha256(decides.encode()).hexdigest()
    stamp: dict[str, Any] = {"generator": GENERATOR_VERSION, "pair": pair.id, "pair_sha256": grammar, **settings}
    if voices != "espeak":
        stamp |= {"voices": voices, "voice_model": MODEL_SHA256[:16], "voice_version": ENGINES[voices].version}
    if matched:
        stamp["matched"] = True
    if traits:
        words = replace(pair.traits, joined=frozenset())
        told = repr((words, sorted(pair.traits.joined)))
        stamp |= {"traits": list(traits), "trait_words_sha256": hashlib.sha256(told.encode()).hexdigest()}
    return stamp


def population_digest(
    *,
    pair: str,
    devices: int,
    new_people: int,
    sentences: int,
    seed: int,
    voices: str = "espeak",
    matched: bool = False,
    traits: str = "",
    new_people_sentences: int = 0,
) -> str:
    """Eight hexadecimal digits of everything that decides a population's bytes: for the name of its folder in a cache."""
    settings = _sizes(devices, new_people, sentences, seed, new_people_sentences)
    grammar = load_pair(pair)
    stamp = _stamp(grammar, settings, voices, matched, check_traits(traits, grammar))
    return hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:8]


def _is_finished(folder: Path, stamp: dict[str, Any]) -> bool:
    """Whether ``folder`` holds this very population; False if nothing is there; ConfigError if something else is."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / POPULATION_NAME).read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder} exists and holds no synthetic population; choose another folder") from error
    differing = [key for key, value in stamp.items() if found.get(key) != value]
    if differing:
        raise ConfigError(
            f"{folder} holds a population made with other settings ({', '.join(differing)}); choose another folder or delete it"
        )
    return True


def _a_few_ahead(items: Iterator[Said]) -> Iterator[Said]:
    """The same items, each when a few more have been begun: speaking goes on while others are recorded."""
    waiting: deque[Said] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > _AHEAD:
            yield waiting.popleft()
    yield from waiting


def _speak_all(
    folder: Path,
    pair: Pair,
    people: Iterable[tuple[DeviceProfile, int]],
    seed: int,
    engine: Engine,
    recorders: ThreadPoolExecutor,
) -> Iterator[Said]:
    """Each sentence, drawn in this thread (what is said depends on all that was), and its recording, in another one."""
    said: set[str] = set()
    places: dict[str, int] = {}
    for profile, sentences in people:
        place = places.setdefault(profile.likeness, len(places))
        own = with_own_words(pair, profile.traits, place, seed)
        (folder / "audio" / profile.name).mkdir(parents=True)
        random = derive_random(seed, "sentences", profile.name)
        sessions = session_numbers(sentences, derive_random(seed, "sessions", profile.name))
        for index, session in enumerate(sessions):
            sentence, speech = _draw_sentence(own, profile, said, engine, random, seed)
            said.add(sentence.key())
            path = folder / "audio" / profile.name / f"{index:03d}.wav"
            recorded = recorders.submit(_record, path, speech, profile, session, index, seed)
            written = sentence.write(pair, profile.writes_latin, joining=profile.joins_words)
            utterance = Utterance(
                id=f"{profile.name}-{index:03d}",
                audio=path,
                speaker=profile.name,
                lang=pair.matrix,
                level=None if sentence.level == "none" else sentence.level,
                session=f"session-{session + 1}",
                **vars(written),
            )
            yield utterance, recorded


def session_numbers(sentences: int, random: Random) -> list[int]:
    """The session (from 0) of each sentence in order: 7 to 9 sessions of unlike length, fewer for very few sentences."""
    count = min(sentences, random.randint(7, 9))
    weights = [random.uniform(0.6, 1.4) for _ in range(count)]
    spare = sentences - count
    ends = [number + round(spare * total / sum(weights)) for number, total in enumerate(accumulate(weights), 1)]
    return [bisect(ends, index) for index in range(sentences)]


def _draw_sentence(
    pair: Pair, profile: DeviceProfile, said: set[str], engine: Engine, random: Random, seed: int
) -> tuple[Sentence, Speech]:
    """A sentence that nobody has said yet and that lasts SECONDS, with its sound; the best found after 60 tries."""
    level = profile.draw_level(random)
    spare: tuple[tuple[bool, float], Sentence, Speech] | None = None
    degree = degree_of(profile.traits, "accent")
    accent = Accent(pair.matrix, degree, profile.likeness) if degree else None
    for _ in range(_TRIES):
        topics = profile.draw_topics(pair, random)
        register = profile.register if random.random() < 0.9 else 1 - profile.register
        sentence = generate(pair, level=level, topic=random.choice(topics), register=register, random=random)
        sentence = as_said(sentence, pair, profile.traits, profile.likeness, seed, random)
        if sentence.key() in said and spare is not None:
            continue
        speech = engine.prepare(sentence.segments(pair), profile.voice, accent)
        fault = (sentence.key() in said, max(SECONDS[0] - speech.seconds, speech.seconds - SECONDS[1], 0.0))
        if fault == (False, 0.0):
            return sentence, speech
        if spare is None or fault < spare[0]:
            spare = fault, sentence, speech
    assert spare is not None
    return spare[1], spare[2]


def _record(path: Path, speech: Speech, profile: DeviceProfile, session: int, index: int, seed: int) -> None:
    """Save ``speech`` as it sounds through the room and microphone of the person; level, noise and distance are the session's."""
    day = derive_random(seed, "session", profile.likeness, session)
    acoustics: Acoustics = replace(
        profile.acoustics,
        snr_db=profile.acoustics.snr_db + day.uniform(-2.5, 2.5),
        direct_db=profile.acoustics.direct_db + day.uniform(-1.5, 1.5),
        gain_db=profile.acoustics.gain_db + day.uniform(-3.0, 3.0),
    )
    room = derive_generator(seed, "room", profile.likeness)
    noise = derive_generator(seed, "noise", profile.name, index)
    save_audio(path, record(speech.render(), acoustics, room, noise))
