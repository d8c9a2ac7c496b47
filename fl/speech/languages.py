"""What people and programs call a language, as the code that Whisper has a token for."""

import re

from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from fl.core.errors import ConfigError

AUTO = "auto"  # detected
_CODES = frozenset(TO_LANGUAGE_CODE.values())
# Codes that others use: Whisper's Javanese is "jw"; its Norwegian, Filipino and Mandarin are no narrower than these.
_OTHERS = {"jv": "jw", "nb": "no", "fil": "tl", "cmn": "zh", "iw": "he", "in": "id"}
_THREE = {"kor": "ko", "eng": "en", "zho": "zh", "jpn": "ja", "deu": "de", "fra": "fr", "spa": "es", "vie": "vi"}
_NAMES: dict[str, str] = {**TO_LANGUAGE_CODE, **_OTHERS, **_THREE}


def language_code(text: str) -> str:
    """``ko`` for ``ko``, ``KO``, ``ko-KR``, ``ko_KR.UTF-8``, ``Korean`` and ``kor``; empty and ``auto`` stay what they are.

    Raises :class:`ConfigError` for what names no language of Whisper's. Whether a base knows it is the base's to say.
    """
    name = " ".join(text.lower().split())
    code = _NAMES.get(name) or re.split(r"[-_.@]", name)[0]
    code = _NAMES.get(code, code)
    if code not in _CODES and name not in ("", AUTO):
        raise ConfigError(f"language {text[:40]!r} is unknown: give a code such as 'ko', 'ko-KR' or 'Korean'")
    return code
