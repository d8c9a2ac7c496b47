"""The study's arithmetic on rows made by hand, and the file that keeps them."""

import json
from dataclasses import replace

import pytest

from fl.core.errors import ConfigError, RunError
from sim.study.enrol.command import pairs
from sim.study.enrol.plot import curves_svg
from sim.study.enrol.rows import EnrolRow, append_rows, pooled, read_rows
from sim.study.enrol.table import compared, conditions, headline, holm, pair_tables, sign_flip_p, tables

TOKENS = 50


def row(person: int, method: str, sentences: int, errors: int, seed: int = 1, **more) -> EnrolRow:
    counts = dict.fromkeys(("mer", "mer_folded", "wer", "cer"), (errors, TOKENS))
    return EnrolRow(seed, f"p{person}", method, sentences, "d", counts, machine="CPU", **more)


def rows_of_ten() -> list[EnrolRow]:
    """Ten people: one method halves everybody's errors but harms one, another changes nothing."""
    neutral = [
        row(i, "neutral", 0, 10 + i, traits={"habit": "latin" if i % 2 else "matrix", "accent": i / 10})
        for i in range(10)
    ]
    better = [
        row(i, "B", 5, 30 if i == 9 else (10 + i) // 2, numbers=7, steps=3, losses={0: 2.0, 3: 1.0}) for i in range(10)
    ]
    return [*neutral, *better, *(row(i, "same", 5, 10 + i) for i in range(10))]


def test_a_method_is_compared_with_neutral_on_the_same_people():
    rows = rows_of_ten()
    strangers = [row(1, "B", 5, 0, seed=2)]  # whose neutral was not measured
    better, same = compared([*rows, *strangers], 5)
    after, before = 5 + 5 + 6 + 6 + 7 + 7 + 8 + 8 + 9 + 30, sum(range(10, 20))
    assert better.rate("mer") == pytest.approx(after / (10 * TOKENS))
    assert better.against.relative == pytest.approx((after - before) / before)
    assert better.harmed == pytest.approx(0.1)
    assert better.worst_tenth == pytest.approx(30 / TOKENS)
    assert (same.against.relative, same.harmed, same.p, same.significant) == (0, 0, 1, False)


def test_two_methods_are_compared_on_the_people_whom_both_enrolled():
    rows = [*rows_of_ten(), row(1, "B", 5, 0, seed=2)]  # the stranger has no row of another method
    (table,) = pair_tables(rows, "same")
    assert table.title == "Against same, with 5 sentences"
    points = 100 * (5 + 5 + 6 + 6 + 7 + 7 + 8 + 8 + 9 + 30 - sum(range(10, 20))) / (10 * TOKENS)
    (neutral, better) = table.rows
    assert neutral == ("neutral", "10", "+0.0 (+0.0 to +0.0)", "+0.0 (+0.0 to +0.0)")
    assert better[:2] == ("B", "10")
    assert better[2].startswith(f"{points:+.1f} (")
    (turned,) = pair_tables(rows, "B")
    assert turned.rows[-1][2].startswith(f"{-points:+.1f} (")


def test_a_method_that_not_everybody_enrolled_by_says_of_how_many_it_is():
    rows = [row for row in rows_of_ten() if row.method != "B" or row.person != "p3"]
    found = tables(rows)[0]
    assert found.title == "10 held-out speakers with 5 sentences"
    assert [line[0] for line in found.rows] == ["neutral", "B (9 people)", "same"]


def test_neutral_of_a_table_is_of_those_who_have_so_many_sentences():
    (few, *_) = tables([*(row(i, "neutral", 0, 10 + i) for i in range(3)), *(row(i, "B", 5, 20) for i in (1, 2))])
    assert few.title == "2 held-out speakers with 5 sentences"
    assert few.rows[0][2].startswith(f"{100 * (11 + 12) / (2 * TOKENS):.1f} (")
    assert few.rows[1][0] == "B"


def test_two_who_share_a_voice_are_drawn_together_and_harmed_each_alone():
    rows = [
        EnrolRow(1, name, method, size, "d", {"mer": (errors, TOKENS)}, couple=couple)
        for name, couple, before, after in (("a", "x", 10, 4), ("b", "x", 10, 12), ("c", "", 10, 5))
        for method, size, errors in (("neutral", 0, before), ("B", 5, after))
    ]
    assert pooled([row for row in rows if row.method == "B"], "mer") == ([5, 16], [TOKENS, 2 * TOKENS])
    assert compared(rows, 5)[0].harmed == pytest.approx(1 / 3)


def test_holm_rejects_from_the_smallest_up_and_stops_at_the_first_that_is_too_large():
    assert holm([0.04, 0.01, 0.03]) == [False, True, False]  # 0.01 <= 0.05 / 3, 0.03 > 0.05 / 2
    assert holm([0.02, 0.01, 0.03]) == [True, True, True]
    assert holm([0.03, 0.03]) == [False, False]


def test_the_sign_flip_test_knows_a_certain_difference_from_none():
    assert sign_flip_p([-3] * 12) == pytest.approx(2 / 2**12, abs=5e-4)
    assert sign_flip_p([5, -5, 1, -1]) == 1


def test_by_trait_people_are_divided_by_its_value_or_at_the_median_and_not_by_what_all_have():
    same = [replace(one, traits={**one.traits, "names": 1.0}) for one in rows_of_ten()]
    by_habit, by_accent = tables(same)[2:]
    assert (by_habit.heads, by_accent.heads) == (("method", "latin", "matrix"), ("method", "lower half", "upper half"))
    lower, upper = 100 * sum(range(10, 15)) / (5 * TOKENS), 100 * sum(range(15, 20)) / (5 * TOKENS)
    assert by_accent.rows[0] == ("neutral", f"{lower:.1f} ({lower:.1f})", f"{upper:.1f} ({upper:.1f})")


def test_tables_have_at_most_seven_columns_and_name_every_method_and_trait():
    found = tables(rows_of_ten())
    assert all(len(table.heads) <= 7 for table in found)
    assert [line[0] for line in found[0].rows] == [line[0] for line in found[1].rows] == ["neutral", "B", "same"]
    assert {table.title.rpartition(" ")[2] for table in found[2:]} == {"habit", "accent"}
    assert "10 held-out speakers, 500 tokens" in conditions(rows_of_ten())
    assert curves_svg(rows_of_ten()) == curves_svg(rows_of_ten())


def test_the_headline_has_what_most_people_enrolled_by_the_best_on_top_and_compares_each_on_its_own_people():
    rows = [row(i, "neutral", 0, 10 if i else 20) for i in range(4)]
    rows += [row(i, name, n, errors) for name, errors in (("B", 8), ("table", 5)) for i in range(4) for n in (5, 20)]
    rows += [row(i, "three", n, 9) for i in range(1, 4) for n in (5, 20)]
    rows += [row(i, "half", n, 1) for i in range(2) for n in (5, 20)] + [row(i, "once", 5, 1) for i in range(4)]
    found = headline(rows)
    assert [line[0] for line in found.rows] == ["nothing: the shared adapter", "table", "B", "three (3 people)"]
    assert found.rows[1][2].startswith("10.0, -60 (")
    assert headline(rows, ("B",)).rows == (found.rows[0], found.rows[2])
    assert found.heads[2:] == ("5 sentences, %", "folded", "20 sentences, %", "folded")
    assert found.rows[3][4].startswith("18.0, -10 (")


def test_the_last_row_of_a_key_counts_and_half_a_line_at_the_end_is_written_over(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, [row(1, "B", 5, 3), row(2, "B", 5, 4)])
    append_rows(path, [row(1, "B", 5, 9, losses={0: 1.5})])
    whole = path.read_text()
    path.write_text(whole + whole[:50])  # a process ended here
    first, second = read_rows(path)
    assert (first.counts["mer"], second.counts["mer"]) == ((9, TOKENS), (4, TOKENS))
    assert first.losses == {0: 1.5}
    for damaged in (b"{}\n" + whole.encode(), whole.encode().replace(b'"p1"', b'"p\xff"')):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=":1 is no row"):
            read_rows(path)


def test_a_line_after_half_a_line_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, [row(1, "B", 5, 3)])
    path.write_text(path.read_text() + '{"seed": 1, "per')
    append_rows(path, [row(2, "B", 5, 4)])
    assert len(read_rows(path)) == 2


def test_the_command_prints_pairs_of_stored_rows_and_names_what_is_not_there(tmp_path, capsys):
    append_rows(tmp_path / "enrol.jsonl", rows_of_ten())
    pairs("enrol", against="same", rows=tmp_path, as_json=True)
    (table,) = json.loads(capsys.readouterr().out)
    assert table["title"] == "Against same, with 5 sentences"
    with pytest.raises(ConfigError, match="known are enrol, participants, enrol-baselines, enrol-methods"):
        pairs("nothing", rows=tmp_path)
    with pytest.raises(ConfigError, match="no rows of 'gates': known are neutral; B; same"):
        pairs("enrol", against="gates", rows=tmp_path)
