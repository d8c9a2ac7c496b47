"""Spanish morphology: articles and adjectives that agree in gender, and the regular verb."""

from fl.core.errors import ConfigError

ARTICLES = {
    "el": ("el", "la"),
    "un": ("un", "una"),
    "al": ("al", "a la"),
    "del": ("del", "de la"),
    "este": ("este", "esta"),
    "mi": ("mi", "mi"),
    "tu": ("tu", "tu"),
}
"""Masculine and feminine; ``al`` and ``del`` are the contractions of a + el and de + el."""

_ENDINGS = {
    "past.yo": {"ar": "é", "er": "í", "ir": "í"},
    "past.ella": {"ar": "ó", "er": "ió", "ir": "ió"},
    "past.nosotros": {"ar": "amos", "er": "imos", "ir": "imos"},
    "present.nosotros": {"ar": "amos", "er": "emos", "ir": "imos"},
    "gerund": {"ar": "ando", "er": "iendo", "ir": "iendo"},
    "participle": {"ar": "ado", "er": "ido", "ir": "ido"},
}
_BEFORE_E = {"car": "qué", "gar": "gué", "zar": "cé"}


def gender(noun: str, mark: str) -> str:
    """``"m"`` or ``"f"``: the mark of the lexicon entry, otherwise by the ending (-a, -ión and -dad are feminine)."""
    if mark in ("m", "f"):
        return mark
    return "f" if noun.split()[0].endswith(("a", "ión", "dad")) else "m"


def article(name: str, noun_gender: str) -> str:
    """The article ``name`` (a key of ARTICLES, masculine) in the gender of its noun."""
    if name not in ARTICLES:
        raise ConfigError(f"unknown Spanish article {name!r}; known: {', '.join(ARTICLES)}")
    return ARTICLES[name][noun_gender == "f"]


def agree(adjective: str, noun_gender: str) -> str:
    """``caro`` -> ``cara`` for a feminine noun; adjectives in -e or a consonant stay."""
    return adjective[:-1] + "a" if noun_gender == "f" and adjective.endswith("o") else adjective


def conjugate(infinitive: str, form: str) -> str:
    """A regular verb in ``form`` (``past.yo``, ``gerund``, ...), with the spelling changes busqué, llegué, empecé."""
    if form == "infinitive":
        return infinitive
    kind = infinitive[-2:]
    if form not in _ENDINGS or kind not in ("ar", "er", "ir"):
        raise ConfigError(f"cannot conjugate {infinitive!r} as {form!r}; forms: infinitive, {', '.join(_ENDINGS)}")
    if form == "past.yo" and infinitive[-3:] in _BEFORE_E:
        return infinitive[:-3] + _BEFORE_E[infinitive[-3:]]
    return infinitive[:-2] + _ENDINGS[form][kind]
