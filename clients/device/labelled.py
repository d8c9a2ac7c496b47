"""A person's labelled speech: a folder of recordings with their texts, or a manifest. What lies there and is not used is named."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from clients.device.audio import Upload, encode_file
from fl.core.encoding import decode_text, likely_encoding
from fl.core.errors import AudioError, ManifestError, TextError
from fl.core.paths import find, is_litter, readable
from fl.speech.audio import SUFFIXES
from fl.speech.text import fold_text, normalize_text

MANIFEST_NAME = "manifest.jsonl"
MAX_TEXT_BYTES = 4 * 2**20
MAX_UTTERANCES = 1000
KOREAN = "cp949"  # what Korean Windows writes where it does not write Unicode
_SHOWN = 10

Labelled: TypeAlias = tuple[Upload, str]  # one utterance and what was said in it


@dataclass
class LabelledSpeech:
    """Utterances; why each other file, or line of the manifest, is ``left_out``; which texts were ``guessed`` to be in CP949."""

    utterances: list[Labelled] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    guessed: dict[str, str] = field(default_factory=dict)  # and how they begin

    def remarks(self) -> list[str]:
        """What a person should know, a line each."""
        lines = []
        if self.guessed:
            told = _listed([f"{name} ({text[:20]!r})" for name, text in self.guessed.items()])
            lines.append(f"read as Korean in {KOREAN}, since it is not UTF-8: {told}; --encoding NAME if that is wrong")
        if self.left_out:
            told = _listed([f"{name} ({reason})" for name, reason in self.left_out.items()])
            lines.append(f"{len(self.left_out)} left out: {told}")
        return lines


def _listed(texts: list[str]) -> str:
    return "; ".join([*texts[:_SHOWN], *([f"and {len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else [])])


@dataclass(frozen=True)
class _Spoken:
    """An utterance before its audio is read. ``name`` is what a person knows it by."""

    name: str
    audio: Path
    text: str


def read_labelled(source: Path, codec: str = "flac", *, encoding: str = "", language: str = "") -> LabelledSpeech:
    """What can be learned from a folder, ``a.wav`` beside ``a.txt`` or a manifest in it, or from a manifest: JSON Lines with
    ``audio``, relative to it, and ``text``.

    Texts are in ``encoding``, by default in UTF-8 or what their byte order mark says, else in CP949 where they are plainly Korean
    and ``language`` allows it. Raises :class:`ManifestError` that names file and line, also where no utterance can be used.
    """
    reader, source = _SpeechReader(encoding, language in ("", "ko")), find(source)
    if source.is_dir():
        there = sorted(path for path in source.iterdir() if not is_litter(path.name))
        manifest = next((path for path in there if path.name.lower() == MANIFEST_NAME), None)
        spoken = list(reader.folder(there) if manifest is None else reader.manifest(manifest, there))
    else:
        spoken = list(reader.manifest(source, []))
    found = reader.found
    if len(spoken) > MAX_UTTERANCES:
        raise ManifestError(f"{source}: has {len(spoken)} utterances; give 1 to {MAX_UTTERANCES}")
    for one in spoken:
        try:
            if not fold_text(text := normalize_text(one.text)):
                raise TextError("the text has no words")
            found.utterances.append((encode_file(one.audio, codec), text))
        except (AudioError, TextError) as error:
            found.left_out[one.name] = str(error).removeprefix(f"{one.audio}: ")
    if not found.utterances:
        raise ManifestError(
            f"{source}: has no utterance that can be used; give a folder with a.wav beside a.txt, or a {MANIFEST_NAME}; "
            + "; ".join(found.remarks() or ["nothing lies there"])
        )
    return found


class _SpeechReader:
    """Reads names and texts, and keeps why anything is left out."""

    def __init__(self, encoding: str, korean: bool) -> None:
        self.found = LabelledSpeech()
        self._encoding, self._korean = encoding, korean

    def folder(self, there: list[Path]) -> Iterator[_Spoken]:
        """A recording and a text belong together by their names without suffix; ``a.wav.txt`` goes with ``a.wav`` too."""
        files = [path for path in there if not path.is_dir()]
        texts = {readable(path.stem): path for path in files if path.suffix.lower() == ".txt"}
        used: dict[Path, Path] = {}
        for path in there:
            text = texts.get(readable(path.stem)) or texts.get(readable(path.name))
            if path.is_dir():
                self._leave_out(path, "a folder; give it by itself")
            elif path.suffix.lower() not in SUFFIXES:
                if path.suffix.lower() != ".txt":
                    self._leave_out(path, "neither text nor audio that is read; 'ffmpeg -i FILE a.flac' converts audio")
            elif text is None:
                self._leave_out(path, "no text beside it; write what is said into a .txt of the same name")
            elif text in used:
                self._leave_out(path, f"{used[text].name} has the same text; keep one")
            else:
                used[text] = path
                yield _Spoken(path.name, path, self._read(text))
        for path in files:
            if path.suffix.lower() == ".txt" and path not in used:
                self._leave_out(path, "no recording beside it")

    def manifest(self, path: Path, there: list[Path]) -> Iterator[_Spoken]:
        """Of the files that are ``there``, each that no line names is left out."""
        used = {path}
        for number, line in enumerate(self._read(path).split("\n"), 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
                audio, text = values["audio"], values["text"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ManifestError(
                    f"{path}:{number}: is no JSON object with 'audio' and 'text' ({error!r})"
                ) from error
            if not isinstance(audio, str) or not isinstance(text, str) or values.get("start") or values.get("end"):
                raise ManifestError(
                    f"{path}:{number}: 'audio' and 'text' have to be texts, and parts files of their own"
                )
            used.add(find(path.parent / audio))
            yield _Spoken(f"{path.name}:{number}", path.parent / audio, text)
        for one in there:
            if one not in used:
                self._leave_out(one, f"not in {path.name}")

    def _leave_out(self, path: Path, reason: str) -> None:
        self.found.left_out[path.name] = reason

    def _read(self, path: Path) -> str:
        try:
            if path.suffix.lower() in SUFFIXES:
                raise ManifestError(f"{path}: is a recording; give its folder, with the text in a .txt beside it")
            if path.stat().st_size > MAX_TEXT_BYTES:
                raise ManifestError(f"{path}:1: has more than {MAX_TEXT_BYTES:,} bytes")
            data = path.read_bytes()
        except OSError as error:
            raise ManifestError(f"{path}: cannot be read ({error.strerror}); check the name") from error
        try:
            return decode_text(data, str(path), ManifestError, self._encoding)
        except ManifestError:
            if self._encoding or not self._korean or likely_encoding(data) != KOREAN:
                raise
        text = decode_text(data, str(path), ManifestError, KOREAN)
        self.found.guessed[path.name] = text.strip()
        return text
