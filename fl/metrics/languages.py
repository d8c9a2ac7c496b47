"""Which language a word belongs to: from a transcript's spans where it has them, else from its script.

A language is a code such as ``ko``; ``None`` is language-independent (digits, symbols). Mixed words are split first.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from fl.core.errors import MetricError
from fl.metrics.tokens import nfc, normalize_for_scoring, words
from fl.speech.text import script

Spans = Sequence[tuple[str, str]]

# Scripts that name one language by themselves. All other alphabets are shared, so they need spans or a default.
SCRIPT_LANGUAGES = {"hangul": "ko", "han": "zh", "kana": "ja"}
LANGUAGE_INDEPENDENT = frozenset({"", "other", "und", "zxx"})  # span codes that name no language (ISO 639-2 and ours)
_POINT = "."  # a decimal point inside one span is lost when spans cut a number in pieces: ignored when matching


def letter_script(char: str) -> str | None:
    """``hangul``, ``han``, ``kana`` or ``alphabetic`` for a letter, ``None`` for digits, marks and signs."""
    found = script(char)
    return found if found in SCRIPT_LANGUAGES else "alphabetic" if char.isalpha() else None


def word_script(word: str) -> str | None:
    """The script of the word's first letter, ``None`` where it has no letter."""
    return next((script for script in map(letter_script, word) if script), None)


def switch_words(text: str) -> list[str]:
    """Words cut wherever the script changes, each Han character on its own: ``bug는`` -> ``bug 는``, ``mp3는`` -> ``mp3 는``.

    Digits and signs stay with the letters before them. This is how the tagged references of PIER separate a particle
    from an English word; both sides of a comparison are cut alike.
    """
    pieces: list[str] = []
    for word in words(text):
        piece, current = "", None
        for char in word:
            script = letter_script(char)
            if piece and script and current and (script != current or script == "han"):
                pieces.append(piece)
                piece, current = "", None
            piece, current = piece + char, current or script
        pieces.append(piece)
    return pieces


def language_tags(text: str, *, alphabetic: str = "en") -> list[str | None]:
    """A language for each of :func:`switch_words`, by script alone; ``alphabetic`` is the one written in letters."""
    return [script_language(word, alphabetic) for word in switch_words(text)]


def script_language(word: str, alphabetic: str) -> str | None:
    """The language that the word's script names: ``ko``, ``zh``, ``ja``, else ``alphabetic``; ``None`` without letters."""
    script = word_script(word)
    return None if script is None else SCRIPT_LANGUAGES.get(script, alphabetic)


def matrix_language(tags: Sequence[str | None]) -> str | None:
    """The language of most words, the first of them on a tie; ``None`` where no word has one."""
    counts = Counter(tag for tag in tags if tag is not None)
    return max(counts, key=counts.__getitem__) if counts else None  # max and Counter both keep first come, first


def corpus_matrix_language(annotations: Iterable[Spans]) -> str | None:
    """The language of most annotated words of a corpus, given the spans of each utterance once; ``None`` without annotations.

    PIER counts errors at the words of all other languages, so that a sentence wholly in an embedded language counts whole.
    """
    return matrix_language([tag for spans in annotations for tag in span_tags(spans)])


def span_tags(spans: Spans) -> list[str | None]:
    """The languages of the spans, with the codes that name none as ``None``."""
    return [None if language in LANGUAGE_INDEPENDENT else language for _, language in spans]


def alphabetic_languages(spans: Spans) -> list[str]:
    """Languages of the spans that are not named by a script of their own, in order of appearance."""
    named = set(SCRIPT_LANGUAGES.values())
    return list(dict.fromkeys(tag for tag in span_tags(spans) if tag is not None and tag not in named))


def tag_words(text: str, spans: Spans, pieces: Sequence[str]) -> list[str | None]:
    """A language for each of ``pieces``, the :func:`switch_words` of the normalised ``text``.

    A piece takes the language of the span in which it begins. Inside a span that mixes scripts (``bug는`` as one English
    word) a piece in a script that names a language takes that one, so the particle is Korean. Without spans the script
    alone decides. Raises :class:`MetricError` if the spans do not spell the text.
    """
    if not spans:
        return [script_language(piece, "en") for piece in pieces]
    owners = _span_of_each_letter(text, spans)
    tags: list[str | None] = []
    position = 0
    for piece in pieces:
        letters = len(piece.replace(_POINT, ""))
        tags.append(_piece_language(piece, spans[owners[position]], spans) if letters else None)
        position += letters
    return tags


def check_spans(text: str, spans: Spans) -> None:
    """Raises :class:`MetricError` unless the spans, one after the other, spell ``text`` (scoring form, no spaces)."""
    if spans:
        _span_of_each_letter(normalize_for_scoring(text), spans)


def _span_of_each_letter(text: str, spans: Spans) -> list[int]:
    pieces = [_letters(normalize_for_scoring(word)) for word, _ in spans]
    if "".join(pieces) != _letters(text):
        spelled = " ".join(word for word, _ in spans)
        raise MetricError(
            f"the spans spell {spelled!r} but the reference is {text!r}: "
            "give every word of the text one span, in order, or leave the spans out"
        )
    return [index for index, piece in enumerate(pieces) for _ in piece]


def _letters(text: str) -> str:
    return nfc("".join(text.split()).replace(_POINT, ""))


def _piece_language(piece: str, span: tuple[str, str], spans: Spans) -> str | None:
    word, language = span
    scripts = {script for script in map(letter_script, normalize_for_scoring(word)) if script}
    if len(scripts) > 1:
        if language in SCRIPT_LANGUAGES.values() or language in LANGUAGE_INDEPENDENT:
            language = next(iter(alphabetic_languages(spans)), "en")
        return script_language(piece, language)
    return None if language in LANGUAGE_INDEPENDENT else language
