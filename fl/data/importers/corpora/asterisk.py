"""Prompts of the Asterisk telephone exchange as Debian packages them: one person a language, one of them in English and Spanish.

Nobody switches within a prompt. What one person said in two languages is joined to utterances of one prompt each, which language
first in turn; each prompt is in one utterance, so that none is in two splits.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from fl.core.errors import CorpusError
from fl.core.paths import files_below
from fl.data.importers.places import roots_of
from fl.data.importers.records import Finding, Importer, Options, Record, UnusableError
from fl.data.importers.texts import numbered_lines

VOICE = re.compile(r"([a-z]{2})_[A-Z]{2}_[fm]_(\w+)")  # a folder, such as en_US_f_Allison
LEAST = 30  # prompts of a family that are a topic of their own
REST = "other"


class Prompt(NamedTuple):
    """A recording with its text. ``family`` is what it is for: ``vm`` of ``vm-goodbye`` is voice mail."""

    where: str
    key: str
    text: str
    language: str
    person: str
    audio: Path

    @property
    def family(self) -> tuple[str, str]:
        """Of one person."""
        return self.person, re.split("[-/]", self.key)[0]


def read(source: Path, options: Options) -> Iterator[Finding]:
    """Records of the lists below ``source``, ``key: text`` a line, whose recording is ``<voice>/<key>.wav`` below a root."""
    lists = [path for path in files_below(source, "core-sounds-*.txt") if options.wants(path.stem[-2:])]
    if not lists:
        raise CorpusError(f"{source}: holds no core-sounds-*.txt; to get it: {IMPORTER.get}")
    recordings = {(lang, key): found for root in roots_of(source, options) for lang, key, found in _recordings(root)}
    prompts: list[Prompt] = []
    for path in lists:
        for number, line in numbered_lines(path, options.encoding):
            key, colon, text = (part.strip() for part in line.partition(":"))
            where, language = f"{path}:{number}", path.stem[-2:]
            if not colon or line.startswith(";"):
                continue
            if (language, key) not in recordings:
                yield UnusableError(where, "a text without a recording")
            elif re.search(r"[][()<>*#]", text) or len(text.split()) < 2:
                yield UnusableError(where, "a tone, a key, a note or a single word")
            else:
                prompts.append(Prompt(where, key, " ".join(text.split()), language, *recordings[language, key]))
    sizes = Counter(prompt.family for prompt in prompts)
    topics: dict[tuple[str, str], dict[str, list[Prompt]]] = defaultdict(lambda: defaultdict(list))
    for prompt in prompts:
        person, family = prompt.family
        topics[person, family if sizes[person, family] >= LEAST else REST][prompt.language].append(prompt)
    for (person, topic), languages in topics.items():
        yield from (_record(parts, f"{person} {topic}") for parts in _joined(list(languages.values())))


def _recordings(root: Path) -> Iterator[tuple[str, str, tuple[str, Path]]]:
    """Language, key, person and file of each."""
    for path in files_below(root, "*.wav"):
        for folder in path.parents:
            if voice := VOICE.fullmatch(folder.name):
                yield voice[1], path.relative_to(folder).with_suffix("").as_posix(), (voice[2], path)


def _joined(languages: list[list[Prompt]]) -> Iterator[list[Prompt]]:
    """One prompt of each language, not the one of the same meaning where there are others."""
    turned = [
        prompts[(shift := len(prompts) * i // len(languages)) :] + prompts[:shift]
        for i, prompts in enumerate(languages)
    ]
    for number, row in enumerate(zip_longest(*turned)):
        parts = [prompt for prompt in row if prompt is not None]
        yield parts[::-1] if number % 2 else parts


def _record(parts: list[Prompt], topic: str) -> Record:
    main = max(parts, key=lambda prompt: len(prompt.text.split()))
    return Record(
        parts[0].where,
        "+".join(f"{prompt.language}/{prompt.key}" for prompt in parts),
        parts[0].audio,
        " ".join(prompt.text for prompt in parts),
        topic=topic,
        lang=main.language,
        level="sentence",
        spans=tuple((prompt.text, prompt.language) for prompt in parts),
        then=tuple(prompt.audio for prompt in parts[1:]),
    )


IMPORTER = Importer(
    title="Asterisk's telephone prompts, English-Spanish of one person (and French, Italian, Russian of one each)",
    layout="core-sounds-en.txt (key: text) and en_US_f_Allison/<key>.wav; likewise es, fr, it, ru",
    speakers="one a language; pseudo-devices by what the prompts are for (voice mail, conferences, ...)",
    licence="CC BY-SA 3.0 (Russian CC BY 3.0)",
    get=(
        "apt-get download asterisk-core-sounds-{en,es}{,-wav} && for p in *.deb; do dpkg -x $p DIR; done "
        "&& gunzip DIR/usr/share/doc/*/core-sounds-*.txt.gz"
    ),
    read=read,
)
