"""Language pairs as data: one TOML file holds voices, endings, sentence patterns and lexicon of a pair.

The syntax of entries and patterns is explained at the top of ``pairs/ko-en.toml``.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from fl.core.errors import ConfigError
from fl.data.synthetic.grammar import LEVELS, Lexicon, Pair, Topic, TraitWords, check_grammar
from fl.data.synthetic.morphology import Kind, Part, Phrase

PAIRS_FOLDER = Path(__file__).parent / "pairs"


def known_pairs() -> list[str]:
    """Names of the pairs that ship with Idiolect."""
    return sorted(path.stem for path in PAIRS_FOLDER.glob("*.toml"))


def load_pair(name: str) -> Pair:
    """The pair ``name`` of :func:`known_pairs`, or the pair file at the path ``name`` if it ends in ``.toml``.

    Raises ConfigError for an unknown name, and for a file that is malformed, naming the file and the entry.
    """
    path = Path(name) if name.endswith(".toml") else PAIRS_FOLDER / f"{name}.toml"
    if not path.is_file():
        raise ConfigError(
            f"language pair {name!r} not found; known: {', '.join(known_pairs())}, or give the path of a .toml file"
        )
    try:
        pair = _read(tomllib.loads(path.read_text(encoding="utf-8")))
        check_grammar(pair)
        return pair
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: missing or mistyped entry {error}; compare with {PAIRS_FOLDER}/ko-en.toml"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _read(table: Mapping[str, Any]) -> Pair:
    shared = _lexicon(table["shared"])
    topics = []
    for name, topic in table["topics"].items():
        general = {**shared, **_lexicon(topic)}
        topics.append(Topic(name, tuple({**general, **_lexicon(frame)} for frame in topic["frames"])))
    rules = {name: tuple(patterns) for name, patterns in table["rules"].items()}
    missing = [level for level in LEVELS if not rules.get(level)]
    if missing:
        raise ConfigError(f"[rules] has no patterns for {', '.join(missing)}")
    if not re.fullmatch(r"[A-Za-z0-9-]+", table["id"]):
        raise ConfigError(f"id {table['id']!r} names people and folders: letters, digits and hyphens only")
    variants = tuple(table["voices"]["variants"].split())
    if not variants:
        raise ConfigError("[voices] lists no voice variants")
    return Pair(
        id=table["id"],
        matrix=table["languages"]["matrix"],
        embedded=table["languages"]["embedded"],
        matrix_voice=table["voices"]["matrix"],
        embedded_voice=table["voices"]["embedded"],
        variants=variants,
        endings={name: tuple(forms) for name, forms in table.get("endings", {}).items()},
        rules=rules,
        topics=tuple(topics),
        traits=_traits(table.get("traits", {})),
        readings=dict(
            entry.replace("_", " ").split("~") for entry in table.get("readings", {}).get("words", "").split()
        ),
    )


def _traits(table: Mapping[str, Any]) -> TraitWords:
    if unknown := sorted(set(table) - {field.name for field in fields(TraitWords)}):
        raise ConfigError(f"[traits] has an unknown entry {unknown[0]!r}")
    return TraitWords(
        fillers=tuple(filler.replace("_", " ") for filler in table.get("fillers", "").split()),
        numbers=tuple(
            (spelled, digits) for spelled, digits in (n.split("=") for n in table.get("numbers", "").split())
        ),
        number_frame=table.get("number_frame", "{}"),
        joined=frozenset(table.get("joined", "").split()),
        names=tuple(tuple(_entry("matrix", text) for text in part.split()) for part in table.get("names", ())),
        jargon=tuple(tuple(_entry("embedded", text) for text in part.split()) for part in table.get("jargon", ())),
    )


def _lexicon(table: Mapping[str, Any]) -> Lexicon:
    lexicon: dict[tuple[Kind, str], tuple[Phrase, ...]] = {}
    for kind in get_args(Kind):
        for category, entries in table.get(kind, {}).items():
            lexicon[kind, category] = tuple(_entry(kind, text) for text in entries.split())
    return lexicon


def _entry(kind: Kind, text: str) -> Phrase:
    """``text[/mark][=latin][~sound]`` with ``_`` for spaces."""
    rest, _, sound = text.partition("~")
    rest, _, latin = rest.partition("=")
    surface, slash, mark = rest.partition("/")
    if not surface or (kind == "loan") != bool(latin):
        raise ConfigError(f"entry {text!r}: a loanword is written matrix=latin, any other word without '='")
    words = tuple((Part(word, kind, latin or None),) for word in surface.split("_"))
    if kind == "loan" and (len(words) > 1 or "_" in latin):
        raise ConfigError(f"loanword {text!r} must be one word in both spellings, or counts of words would differ")
    return Phrase(words, sound or surface.split("_")[-1], slash + mark)
