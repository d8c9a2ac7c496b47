"""Text to token ids and back, for pretrained Whispers (``tokenizer.json``) and for randomly initialised ones (bytes)."""

import hashlib
import json
import logging
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import tokenizers
from transformers.models.whisper.tokenization_whisper import LANGUAGES as CODES
from transformers.models.whisper.tokenization_whisper import WhisperTokenizer

from fl.core.errors import BaseModelError

log = logging.getLogger("idiolect.bases")
CONTROL = re.compile(r"<\|.*\|>")  # steers the decoder, or is a time: no text, whether a file says so or not
ENGLISH_END = 50_256  # one id earlier than in a multilingual vocabulary
LANGUAGES = [*CODES][:99]  # in the order of their token ids; a hundredth, "yue", only in large-v3 and turbo


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that steer the decoder. ``languages`` is empty in an English-only model, and ``transcribe`` unused there."""

    end: int
    start: int
    transcribe: int
    no_timestamps: int
    languages: dict[str, int]

    def prefix(self, language: str | None) -> list[int]:
        """What every decoded sequence starts with: start, language, task, no timestamps.

        ``language`` is a Whisper code such as "ko". An English-only model takes None or "en" and has neither language
        nor task in its prefix; a multilingual one needs a language. Raises :class:`BaseModelError` otherwise.
        """
        if not self.languages:
            if language not in (None, "en"):
                raise BaseModelError(f"language {language!r} with an English-only base: use 'en', or another base.")
            return [self.start, self.no_timestamps]
        if language not in self.languages:
            known = ", ".join(sorted(self.languages))
            raise BaseModelError(f"language {language!r} is not one that this base knows. Known: {known}.")
        return [self.start, self.languages[language], self.transcribe, self.no_timestamps]


class Tokenizer(ABC):
    """Text to ids and back; it can write any text."""

    special: SpecialTokens
    previous: int | None = None  # the token in front of a prompt

    @property
    @abstractmethod
    def digest(self) -> str:
        """Hexadecimal SHA-256 of what every id stands for: equal for tokenizers that decode alike, whatever their files."""

    @abstractmethod
    def spell(self, text: str) -> list[int]:
        """Ids of exactly ``text``, as it stands inside a sentence."""

    @abstractmethod
    def plain(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, outer spaces included, special tokens left out."""

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` (normalized to NFC) without special tokens, as Whisper writes a sentence: after a space."""
        return self.spell(" " + unicodedata.normalize("NFC", text))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` in NFC, special tokens and outer spaces left out."""
        return unicodedata.normalize("NFC", self.plain(ids)).strip()


class FileTokenizer(Tokenizer):
    """The byte-pair encoding in a ``tokenizer.json``, or in the older ``vocab.json`` and ``merges.txt`` beside its path.

    ``words`` are the ids behind the end that are text: those of tokens that somebody added. What steers the decoder is never text,
    in whatever text it is written: its characters are spelled.
    """

    def __init__(self, path: Path, *, multilingual: bool) -> None:
        try:
            if path.exists() or not path.with_name("merges.txt").exists():
                self._bpe = tokenizers.Tokenizer.from_file(str(path))
            else:
                self._bpe = WhisperTokenizer.from_pretrained(path.parent, local_files_only=True).backend_tokenizer
        except Exception as error:  # the library raises bare Exception, for a missing file as for a broken one
            raise BaseModelError(
                f"{path} is not a readable tokenizer ({error}). A base needs the tokenizer.json of its model, or its vocab.json, "
                "merges.txt and added_tokens.json: save them with `AutoTokenizer.from_pretrained(...).save_pretrained(folder)`."
            ) from error
        added = self._bpe.get_added_tokens_decoder()
        control = {index for index, token in added.items() if token.special or CONTROL.fullmatch(token.content)}
        self._bpe.add_special_tokens([added[index].content for index in control])
        self._bpe.encode_special_tokens = True
        self.special = SpecialTokens(
            end=self._id("<|endoftext|>", path),
            start=self._id("<|startoftranscript|>", path),
            transcribe=self._id("<|transcribe|>", path),
            no_timestamps=self._id("<|notimestamps|>", path),
            languages=self._languages() if multilingual and self._id("<|endoftext|>", path) != ENGLISH_END else {},
        )
        contents = sorted(added[index].content for index in control)
        if others := [text for text in contents if text and not CONTROL.fullmatch(text)]:
            log.warning("%s: special tokens that are neither trained nor decoded: %s", path.parent, ", ".join(others))
        every = self._bpe.get_vocab(with_added_tokens=True).values()
        self.words = frozenset(index for index in every if index > self.special.end and index not in control)
        for index in self.words & added.keys():
            if self.plain([index]) != added[index].content:
                raise BaseModelError(
                    f"{path}: the added token {added[index].content!r} is decoded as {self.plain([index])!r}: a byte-level tokenizer "
                    "takes such letters for bytes. Leave it out of the tokenizer, and train on text without it."
                )
        self.previous = self._bpe.token_to_id("<|startofprev|>")

    @cached_property
    def digest(self) -> str:
        """See :class:`Tokenizer`. Of the vocabulary with the added tokens, not of the file, which may be written in many ways."""
        return digest_of(sorted(self._bpe.get_vocab(with_added_tokens=True).items()))

    def _id(self, token: str, path: Path) -> int:
        value = self._bpe.token_to_id(token)
        if value is None:
            raise BaseModelError(f"{path} has no token {token}: not the tokenizer of a Whisper.")
        return int(value)

    def _languages(self) -> dict[str, int]:
        added = self._bpe.get_added_tokens_decoder().items()
        found = ((re.fullmatch(r"<\|([a-z]{2,3})\|>", token.content), index) for index, token in added)
        return {match[1]: index for match, index in found if match}

    def spell(self, text: str) -> list[int]:
        """See :class:`Tokenizer`."""
        return list(self._bpe.encode(text, add_special_tokens=False).ids)

    def encode(self, text: str) -> list[int]:
        """See :class:`Tokenizer`. An added word takes no space into its token, and alone it may not begin a transcript."""
        ids = super().encode(text)
        return ids[1:] if len(ids) > 1 and ids[1] in self.words and self.plain(ids[:1]) == " " else ids

    def plain(self, ids: Sequence[int]) -> str:
        """See :class:`Tokenizer`."""
        return str(
            self._bpe.decode([i for i in ids if i < self.special.end or i in self.words], skip_special_tokens=True)
        )


class ByteTokenizer(Tokenizer):
    """One token a byte of UTF-8, with the special tokens where a vocabulary of that size has them.

    For random weights only: they know no language, so nothing needs to be downloaded to give them one.
    """

    def __init__(self, vocabulary: int) -> None:
        if vocabulary < 300:
            raise BaseModelError(f"a byte tokenizer needs 300 ids or more, not {vocabulary}.")
        if vocabulary < 50_000:  # small test vocabularies: everything right behind the bytes
            end, languages, multilingual = 256, LANGUAGES[:16], True
        else:
            multilingual = vocabulary != 51_864
            end = 50_257 if multilingual else 50_256
            languages = LANGUAGES + (["yue"] if vocabulary == 51_866 else [])
        first = end + 2
        task = first + len(languages) + 1  # behind <|translate|>
        self.special = SpecialTokens(
            end=end,
            start=end + 1,
            transcribe=task,
            no_timestamps=task + 4,
            languages={code: first + index for index, code in enumerate(languages)} if multilingual else {},
        )
        self.previous = task + 2

    @property
    def digest(self) -> str:
        """See :class:`Tokenizer`."""
        return digest_of(["bytes", asdict(self.special)])

    def spell(self, text: str) -> list[int]:
        """See :class:`Tokenizer`."""
        return list(text.encode())

    def plain(self, ids: Sequence[int]) -> str:
        """See :class:`Tokenizer`."""
        return bytes(index for index in ids if index < 256).decode(errors="replace")


def digest_of(content: object) -> str:
    """Hexadecimal SHA-256 of ``content`` as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
