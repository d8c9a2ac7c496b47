"""Text that others wrote (names in adapters and manifests, answers of servers, errors), as a terminal or a log may show it."""

from collections.abc import Sequence
from unicodedata import category

SHOWN = 10  # lines of a list in which anything may stand many times

_STEERING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # control, format (direction of writing), surrogates, line ends
_JOINERS = "\u200c\u200d"  # parts of words in Persian and many languages of India


def harmless(text: str, kept: str = "\n\t") -> str:
    """``text`` without the characters that steer a terminal or hide others, but for those ``kept``."""
    kept += _JOINERS
    return "".join(c for c in text if c in kept or category(c) not in _STEERING)


def first_of(things: Sequence[object], most: int = SHOWN) -> list[str]:
    """A line for each of the first ``most``, and one that says how many more there are."""
    more = [f"and {len(things) - most} more"] if len(things) > most else []
    return [*map(str, things[:most]), *more]
