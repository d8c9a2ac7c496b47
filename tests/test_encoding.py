"""Text of people's files: what a byte order mark says, what an encoding is guessed to be, and what little damage costs."""

import pytest

from fl.core.encoding import decode_text, likely_encoding
from fl.core.errors import CorpusError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("told", ["", "cp949"])
def test_a_byte_order_mark_says_more_than_an_option(encoding: str, told: str) -> None:
    if (encoding, told) != ("utf-8", "cp949"):
        assert decode_text("오늘 meeting".encode(encoding), "a.txt", CorpusError, told) == "오늘 meeting"


@pytest.mark.parametrize(
    ("text", "encoding", "guess"),
    [
        ("네", "cp949", "cp949"),
        ("“ㅋㅋㅋ” 오늘 meeting…", "cp949", "cp949"),
        ("오늘 meeting", "utf-16-le", "utf-16-le"),
        ("오늘 meeting", "utf-16-be", "utf-16-be"),
        ("안녕하세요", "utf-16-le", "utf-16-le"),
        ("我们明天开会讨论这个项目", "gb18030", "gb18030"),
        ("naïve Âge À la carte", "cp1252", "cp1252"),
        ("Привет мир", "cp1251", ""),
        ("今日は会議です", "euc_jp", ""),
    ],
)
def test_the_likely_encoding(text: str, encoding: str, guess: str) -> None:
    assert likely_encoding(text.encode(encoding)) == guess


def test_little_damage_is_marked_where_that_is_allowed() -> None:
    data = ("가" * 100).encode() + b"\xff\n"
    assert decode_text(data, "a.txt", CorpusError, damaged=0.01) == "가" * 100 + "\ufffd\n"
    for allowed in (0.0, 0.009):
        with pytest.raises(CorpusError, match=r"a\.txt:1: not UTF-8"):
            decode_text(data, "a.txt", CorpusError, damaged=allowed)


def test_a_remedy_is_not_what_was_just_tried() -> None:
    cut_off = b"\xff\xfe\x01\x00\x02"  # in UTF-16, as its mark says
    with pytest.raises(CorpusError, match="the file is damaged there: save it again"):
        decode_text(cut_off, "a.txt", CorpusError)
    with pytest.raises(CorpusError, match="give --encoding, or convert the file"):
        decode_text("Сегодня хорошая погода".encode("cp1251"), "a.txt", CorpusError)
