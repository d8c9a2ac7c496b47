"""What a spelling table changes in a transcript, and what it leaves."""

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
    ],
)
def test_what_is_no_lexicon_is_refused_with_its_line(tmp_path, content, told):
    path = tmp_path / "lexicon.jsonl"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=told):
        read_lexicon(path)
