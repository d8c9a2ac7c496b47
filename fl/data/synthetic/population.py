"""A population of people who mix two languages: sentences, voices, rooms and habits brought together on disk."""

import hashlib
import json
import os
from bisect import bisect
from collections import deque
from collections.abc import Callable, Iterator, Mapping
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
from fl.data.synthetic.acoustics import Acoustics, join_segments, record
from fl.data.synthetic.espeak import ESPEAK_SAMPLE_RATE, Espeak
from fl.data.synthetic.grammar import Pair, Sentence, generate
from fl.data.synthetic.pairs import load_pair
from fl.data.synthetic.voices import DeviceProfile, draw_profiles
from fl.speech.audio import SAMPLE_RATE, Waveform, save_audio

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
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Make a synthetic population in ``out_dir`` and return the path of its manifest.

    ``devices`` people take part and ``new_people`` more never do; each says ``sentences`` sentences in 7 to 9 sessions.
    Beside the manifest lie 16-bit WAV files (16 kHz) and ``population.json`` with the settings and every person's
    profile. The same arguments give the same bytes. The folder appears complete or not at all; if it is there already
    from the same settings it is reused. ``progress(done, total)`` is called after each utterance.

    Raises ConfigError for settings that are not allowed, a folder that holds something else, or a missing espeak-ng.
    """
    out_dir = Path(out_dir)
    limits = {"devices": (1, _MAX_PEOPLE), "new_people": (0, _MAX_PEOPLE), "sentences": (1, 100_000)}
    settings = {"devices": devices, "new_people": new_people, "sentences": sentences, "seed": seed}
    for key, (low, high) in limits.items():
        if not low <= settings[key] <= high:
            raise ConfigError(f"{key}={settings[key]} is not allowed: from {low} to {high}")
    grammar = load_pair(pair)
    stamp = _stamp(grammar, settings)
    if _is_finished(out_dir, stamp):
        return out_dir / MANIFEST_NAME
    profiles = draw_profiles(grammar, devices=devices, new_people=new_people, seed=seed)
    with new_folder(out_dir) as work:
        utterances = []
        with ThreadPoolExecutor(os.cpu_count()) as recorders:
            said = _speak_all(work, grammar, profiles, sentences, seed, Espeak(), recorders)
            for utterance, recorded in _a_few_ahead(said):
                recorded.result()
                utterances.append(utterance)
                if progress is not None:
                    progress(len(utterances), len(profiles) * sentences)
        write_manifest(work / MANIFEST_NAME, utterances)
        content = {"schema": 1, "settings": stamp, "people": [asdict(profile) for profile in profiles]}
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


def _stamp(pair: Pair, settings: Mapping[str, int]) -> dict[str, Any]:
    """What decides the bytes of a population."""
    grammar = hashlib.sha256(repr(pair).encode()).hexdigest()
    return {"generator": GENERATOR_VERSION, "pair": pair.id, "pair_sha256": grammar, **settings}


def population_digest(*, pair: str, devices: int, new_people: int, sentences: int, seed: int) -> str:
    """Eight hexadecimal digits of everything that decides a population's bytes: for the name of its folder in a cache."""
    settings = {"devices": devices, "new_people": new_people, "sentences": sentences, "seed": seed}
    stamp = _stamp(load_pair(pair), settings)
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
    profiles: tuple[DeviceProfile, ...],
    sentences: int,
    seed: int,
    espeak: Espeak,
    recorders: ThreadPoolExecutor,
) -> Iterator[Said]:
    """Each sentence, spoken in this thread (what is said depends on all that was), and its recording, in another one."""
    said: set[str] = set()
    for profile in profiles:
        (folder / "audio" / profile.name).mkdir(parents=True)
        random = derive_random(seed, "sentences", profile.name)
        sessions = session_numbers(sentences, derive_random(seed, "sessions", profile.name))
        for index, session in enumerate(sessions):
            sentence, speech = _draw_sentence(pair, profile, said, espeak, random)
            said.add(sentence.key())
            path = folder / "audio" / profile.name / f"{index:03d}.wav"
            recorded = recorders.submit(_record, path, speech, profile, session, index, seed)
            written = sentence.write(pair, profile.writes_latin)
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
    pair: Pair, profile: DeviceProfile, said: set[str], espeak: Espeak, random: Random
) -> tuple[Sentence, Waveform]:
    """A sentence that nobody has said yet and that lasts SECONDS, with its sound; the best found after 60 tries."""
    level = profile.draw_level(random)
    spare: tuple[tuple[bool, float], Sentence, Waveform] | None = None
    for _ in range(_TRIES):
        topics = profile.draw_topics(pair, random)
        register = profile.register if random.random() < 0.9 else 1 - profile.register
        sentence = generate(pair, level=level, topic=random.choice(topics), register=register, random=random)
        if sentence.key() in said and spare is not None:
            continue
        runs = [espeak.render(text, language, profile.voice) for text, language in sentence.segments(pair)]
        speech = join_segments(runs, ESPEAK_SAMPLE_RATE)
        seconds = len(speech) / SAMPLE_RATE
        fault = (sentence.key() in said, max(SECONDS[0] - seconds, seconds - SECONDS[1], 0.0))
        if fault == (False, 0.0):
            return sentence, speech
        if spare is None or fault < spare[0]:
            spare = fault, sentence, speech
    assert spare is not None
    return spare[1], spare[2]


def _record(path: Path, speech: Waveform, profile: DeviceProfile, session: int, index: int, seed: int) -> None:
    """Save ``speech`` as it sounds through the room and microphone of the person; level, noise and distance are the session's."""
    day = derive_random(seed, "session", profile.name, session)
    acoustics: Acoustics = replace(
        profile.acoustics,
        snr_db=profile.acoustics.snr_db + day.uniform(-2.5, 2.5),
        direct_db=profile.acoustics.direct_db + day.uniform(-1.5, 1.5),
        gain_db=profile.acoustics.gain_db + day.uniform(-3.0, 3.0),
    )
    room = derive_generator(seed, "room", profile.name)
    noise = derive_generator(seed, "noise", profile.name, index)
    save_audio(path, record(speech, acoustics, room, noise))
