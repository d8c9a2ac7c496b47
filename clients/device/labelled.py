"""A person's labelled speech: a folder of recordings with their texts, or a manifest. What lies there and is not used is named."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from clients.device.audio import Upload, encode_file
from fl.core.encoding import decode_text, likely_encoding
from fl.core.errors import AudioError, ManifestError, TextError
from fl.core.paths import find, is_litter, readable
from fl.core.printing import first_of
from fl.speech.audio import SUFFIXES
from fl.speech.text import fold_text, normalize_text

MANIFEST_NAME, TEXT_SUFFIX = "manifest.jsonl", ".txt"
MAX_TEXT_BYTES = 4 * 2**20
MAX_UTTERANCES = 1000
KOREAN = "cp949"  # what Korean Windows writes where it does not write Unicode
_NUMBER = re.compile(r"\b(?:audio|texts)[.\[](\d{1,4})\b")  # of an utterance, in a server's refusal

Labelled: TypeAlias = tuple[Upload, str]  # one utterance and what was said in it
Spoken: TypeAlias = tuple[str, Path, str]  # what a person knows it by, where it is, and what was said in it


@dataclass
class LabelledSpeech:
    """Utterances and the ``names`` that a person knows them by; why each other file, or line of the manifest, is ``left_out``;
    which texts were ``guessed`` to be in CP949."""

    utterances: list[Labelled] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    guessed: dict[str, str] = field(default_factory=dict)  # and how they begin

    def leave_out(self, refusal: str) -> str:
        """The name of the utterance that a server refuses by its number, which is left out from now on; "" where it names none."""
        match = _NUMBER.search(refusal)
        if match is None or (place := int(match[1])) >= len(self.names):
            return ""
        del self.utterances[place]
        self.left_out[name := self.names.pop(place)] = refusal
        return name

    def remarks(self) -> list[str]:
        """What a person should know, a line each."""
        lines = []
        if self.guessed:
            told = "; ".join(first_of([f"{name} ({text!r})" for name, text in self.guessed.items()]))
            lines.append(f"read as Korean in {KOREAN}, since it is not UTF-8: {told}; --encoding NAME if that is wrong")
        if self.left_out:
            told = "; ".join(first_of([f"{name} ({why})" for name, why in self.left_out.items()]))
            lines.append(f"{len(self.left_out)} left out: {told}")
        return lines


def read_labelled(source: Path, codec: str = "flac", encoding: str = "", language: str = "") -> LabelledSpeech:
    """What can be learned from a folder, ``a.wav`` beside ``a.txt`` or a manifest in it, or from a manifest: JSON Lines with
    ``audio``, relative to it, and ``text``.

    Texts are in ``encoding``, by default in UTF-8 or what their byte order mark says, else in CP949 where they are plainly Korean
    and ``language`` allows it. Raises :class:`ManifestError` that names file and line, also where no utterance can be used.
    """
    found, source = LabelledSpeech(), find(source)

    def read(path: Path) -> str:
        return _read_text(path, encoding, found.guessed if language[:2].lower() in ("", "ko") else None)

    there = sorted(path for path in source.iterdir() if not is_litter(path.name)) if source.is_dir() else []
    manifest = next((path for path in there if path.name.lower() == MANIFEST_NAME), None if source.is_dir() else source)
    left_out = found.left_out
    spoken = [*(_in_manifest(manifest, there, read, left_out) if manifest else _in_folder(there, read, left_out))]
    if len(spoken) > MAX_UTTERANCES:
        raise ManifestError(f"{source}: has {len(spoken)} utterances; give 1 to {MAX_UTTERANCES}")
    for name, audio, said in spoken:
        try:
            if not fold_text(text := normalize_text(said)):
                raise TextError("the text has no words")
            found.utterances.append((encode_file(audio, codec), text))
            found.names.append(name)
        except (AudioError, TextError) as error:
            left_out[name] = str(error).removeprefix(f"{audio}: ")
    if not found.utterances:
        raise ManifestError(
            f"{source}: has no utterance that can be used; give a folder with a.wav beside a.txt, or a {MANIFEST_NAME}; "
            + "; ".join(found.remarks() or ["nothing lies there"])
        )
    return found


def _in_folder(there: Sequence[Path], read: Callable[[Path], str], left_out: dict[str, str]) -> Iterator[Spoken]:
    """A recording and a text belong together by their names without suffix; ``a.wav.txt`` goes with ``a.wav`` too."""
    texts = {readable(path.stem): path for path in there if path.suffix.lower() == TEXT_SUFFIX and not path.is_dir()}
    used: dict[Path, Path] = {}
    for path in there:
        text = texts.get(readable(path.stem)) or texts.get(readable(path.name))
        if path.is_dir():
            left_out[path.name] = "a folder; give it by itself"
        elif path.suffix.lower() == TEXT_SUFFIX:
            left_out[path.name] = "no recording beside it"
        elif path.suffix.lower() not in SUFFIXES:
            left_out[path.name] = "neither text nor audio that is read; 'ffmpeg -i FILE a.flac' converts audio"
        elif text is None:
            left_out[path.name] = "no text beside it; write what is said into a .txt of the same name"
        elif text in used:
            left_out[path.name] = f"{used[text].name} has the same text; keep one"
        else:
            used[text] = path
            yield path.name, path, read(text)
    for text in used:
        del left_out[text.name]


def _in_manifest(
    manifest: Path, there: Sequence[Path], read: Callable[[Path], str], left_out: dict[str, str]
) -> Iterator[Spoken]:
    """Of the files that are ``there``, each that no line names is left out. :class:`ManifestError` for lines of several speakers."""
    used, speakers = {manifest}, set[str]()
    for number, line in enumerate(read(manifest).split("\n"), 1):
        if not line.strip():
            continue
        name = f"{manifest.name}:{number}"
        try:
            values = json.loads(line)
            audio, text = values["audio"], values["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            left_out[name] = "is no JSON object with 'audio' and 'text'; write one a line"
            continue
        if not isinstance(audio, str) or not isinstance(text, str) or values.get("start") or values.get("end"):
            left_out[name] = "'audio' and 'text' have to be texts, and parts files of their own"
            continue
        path = find(manifest.parent / audio)
        if path in used:
            left_out[name] = f"{path.name} is in an earlier line; keep one"
            continue
        used.add(path)
        speakers |= {str(speaker)} if (speaker := values.get("speaker")) is not None else set()
        yield name, manifest.parent / audio, text
    if len(speakers) > 1:
        told = ", ".join(first_of(sorted(speakers)))
        raise ManifestError(f"{manifest}: has lines of several speakers ({told}); give those of one person")
    left_out |= {path.name: f"not in {manifest.name}" for path in there if path not in used}


def _read_text(path: Path, encoding: str, guessed: dict[str, str] | None) -> str:
    """The text of a file; what is read as Korean goes to ``guessed`` too, unless that is not allowed."""
    try:
        if path.suffix.lower() in SUFFIXES:
            raise ManifestError(f"{path}: is a recording; give its folder, with the text in a .txt beside it")
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise ManifestError(f"{path}:1: has more than {MAX_TEXT_BYTES:,} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); check the name") from error
    try:
        return decode_text(data, str(path), ManifestError, encoding)
    except ManifestError:
        if encoding or guessed is None or likely_encoding(data) != KOREAN:
            raise
    text = decode_text(data, str(path), ManifestError, KOREAN)
    guessed[path.name] = text.strip()[:20]
    return text
