"""What a spelling table changes in a transcript, and what it leaves."""

from unicodedata import normalize

import pytest

from fl.core.errors import AdapterError, ManifestError
from fl.speech.spelling import SPELLING_NAME, SpellingTable, read_lexicon

MEETING, REPORT, BUG, BAR = ("미팅", "meeting"), ("리포트", "report"), ("버그", "bug"), ("바", "bar")
TEAM, FILE = ("팀", "team"), ("파일", "file")
OWN = [
    ("meeting에서 만나", [MEETING]),
    ("report를 보내", [REPORT]),
    ("team 있어", [TEAM]),
    ("file 있어", [FILE]),
    ("버그 고쳤어", [BUG]),
]
KNOWN = [("데드라인은 내일", [("데드라인", "deadline")]), ("바로 갔어", []), ("bar에 갔어", [BAR])]


def test_seen_words_are_written_as_they_were_and_others_by_the_habit_that_they_show():
    table = SpellingTable.of(OWN, KNOWN)
    assert table.respell("미팅에서 bug 리포트를") == "meeting에서 버그 report를"
    assert table.respell("데드라인은 내일") == "deadline은 내일"


def test_a_word_that_only_begins_like_a_loanword_is_left_alone():
    table = SpellingTable.of(OWN, KNOWN)
    assert table.respell("바에 바로 갔어") == "bar에 바로 갔어"  # another word of the lexicon's sentences
    assert table.respell("바꿨어") == "바꿨어"  # and one with an ending that no loanword has


@pytest.mark.parametrize(
    ("latin", "matrix", "told"), [(1, 0, True), (1, 1, False), (3, 1, False), (4, 1, True), (7, 2, True)]
)
def test_a_habit_spells_unseen_words_where_the_seen_ones_tell_it(latin, matrix, told):
    words = [(f"단어{chr(0xAC00 + i)}", f"word{chr(97 + i)}") for i in range(latin + matrix)]
    own = [(f"{pair[i < latin]} 있어", [pair]) for i, pair in enumerate(words)]
    assert SpellingTable.of(own, KNOWN).respell("데드라인은") == ("deadline은" if told else "데드라인은")
    other = [(f"{pair[i >= latin]} 있어", [pair]) for i, pair in enumerate(words)]
    assert SpellingTable.of(other, KNOWN).respell("deadline은") == ("데드라인은" if told else "deadline은")


def test_a_table_is_read_as_it_was_written_and_a_damaged_one_is_refused(tmp_path):
    table = SpellingTable.of(OWN, KNOWN)
    assert SpellingTable.read(tmp_path) is None
    table.write(tmp_path)
    assert SpellingTable.read(tmp_path) == table
    (tmp_path / SPELLING_NAME).write_text('{"schema": 2}')
    with pytest.raises(AdapterError, match="no spelling table: enrol again"):
        SpellingTable.read(tmp_path)


def test_a_text_alone_tells_the_loanwords_that_stand_in_it_in_either_spelling():
    texts = ["meeting은 바로 bug에", "리포트라서 갔어"]  # 라서 is no ending of the lexicon, 바로 another word
    assert SpellingTable.of_texts(texts, [*OWN, *KNOWN]) == SpellingTable.of(
        [(texts[0], [MEETING, BUG]), (texts[1], [])], [*OWN, *KNOWN]
    )


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"text": "나"}\n{"text": "커피"}'.encode("cp949"), "is not UTF-8: convert it"),
        (b'\n{"text": "a", "loanwords": 3}', ":2 is no line of a manifest"),
        (b"[" * 100_000, ":1 is no line of a manifest"),
        (b'{"text": "a"}\n', "has no loanwords"),
        (b'{"text": "a", "loanwords": [["", "lobby"]]}', ":1 is no line of a manifest .* is no pair of two spellings"),
        (b'{"text": "a", "loanwords": ["ab"]}', ":1 .* 'ab' is no pair of two spellings"),
        (b'{"text": null, "loanwords": [["a", "b"]]}', ":1 .* None is no text"),
        ('{"text": "커피"}'.encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
    ],
)
def test_what_is_no_lexicon_is_refused_with_its_line(tmp_path, content, told):
    path = tmp_path / "lexicon.jsonl"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=told):
        read_lexicon(path)


@pytest.mark.parametrize(
    ("own", "pairs", "heard", "respelled"),
    [
        (
            "메시지를 보내",
            [("메시지", "message"), ("메세지", "message")],
            "message를",
            "메시지를",
        ),  # seen, and by habit
        ("lobi에서 봐", [("로비", "lobby"), ("로비", "lobi")], "로비에서", "lobi에서"),
        ("앱을 켜서 happy해요", [("앱", "app")], "app을", "앱을"),  # which stands in happy
        ("커피를 coffee를", [("커피", "coffee")], "커피를 coffee를", "커피를 coffee를"),  # both tell nothing
        ("el click en vivo", [("clic", "click")], "el clic, un click", "el click, un click"),  # one begins the other
        ("un eslogan", [("eslogan", "slogan")], "el slogan", "el eslogan"),  # one ends the other
        ("Meeting은, 내일!", [("미팅", "meeting")], "(미팅은) MEETING은?", "(meeting은) MEETING은?"),
        ("IT 회사", [("아이티", "IT")], "아이티 회사, make it", "IT 회사, make it"),
        ("아이티 회사", [("아이티", "IT")], "IT 회사, make it", "아이티 회사, make it"),
        ("닷넷을 써", [("닷넷", ".NET")], ".NET을 배워", "닷넷을 배워"),
        ("커피를 커피PC방", [("커피", "coffee")], "coffeePC방", "커피PC방"),
        ("C++를 써", [("씨플플", "C++")], "씨플플! c++", "C++! c++"),
    ],
)
def test_what_a_person_wrote_decides(own, pairs, heard, respelled):
    known = [(f"{a}을 {a}를 {a}에서 {a}은 {a}", [(a, b)]) for a, b in pairs]
    assert SpellingTable.of_texts([own], known).respell(heard) == respelled


def test_a_word_within_a_text_without_spaces_tells_a_habit_too():
    table = SpellingTable.of([("多分pizzaを買う", [("ピザ", "pizza")])], [("チーズが甘い", [("チーズ", "cheese")])])
    assert table.respell("チーズが甘い") == "cheeseが甘い"


def test_a_lexicon_is_in_one_unicode_form(tmp_path):
    path = tmp_path / "lexicon.jsonl"
    line = (
        '{"text": "커피를", "loanwords": [["커피", "coffee"], ["DJ", "DJ"], ["Email", "email"]]}'  # one tells a habit
    )
    path.write_text(normalize("NFD", line), encoding="utf-8")
    assert read_lexicon(path) == [("커피를", [("커피", "coffee")])]
