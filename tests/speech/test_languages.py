"""Whatever people and programs call a language, Whisper is told its code."""

import pytest

from fl.core.errors import ConfigError
from fl.speech.languages import language_code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        *((text, "ko") for text in ("ko", "KO", " ko ", "ko-KR", "ko_KR", "ko_KR.UTF-8", "Korean", "korean", "kor")),
        *((text, "en") for text in ("en-US", "en-GB", "ENGLISH", "eng")),
        *((text, "zh") for text in ("zh-Hans-CN", "zh-TW", "cmn-Hans-CN", "Mandarin")),
        ("yue", "yue"),
        ("haitian  creole", "ht"),
        ("jv", "jw"),
        ("nb-NO", "no"),
        ("fil-PH", "tl"),
        ("", ""),
        (" ", ""),
        ("Auto", "auto"),
    ],
)
def test_a_language_has_one_code(text: str, code: str) -> None:
    assert language_code(text) == code


@pytest.mark.parametrize("text", ["klingon", "xx", "k", "ko,en", "-", "한"])
def test_what_names_none_is_refused_with_what_would(text: str) -> None:
    with pytest.raises(
        ConfigError, match=f"language '{text}' is unknown: give a code such as 'ko', 'ko-KR' or 'Korean'"
    ):
        language_code(text)
