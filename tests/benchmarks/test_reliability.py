"""The table of docs/reliability.md is the stored rows, and nothing that was lost is left out of it."""

from pathlib import Path

from benchmarks.reliability import END, PAGE, START, InjectionRow, read_rows, section, store
from sim.section import page_parts

KILLS = InjectionRow("kills", "SIGKILL", 50, 49, 1, (0, 1), "make faults", "final tensors, bit for bit")


def test_a_stored_row_comes_back_with_where_it_was_measured(tmp_path: Path) -> None:
    store(KILLS, tmp_path)
    ((row, conditions),) = read_rows(tmp_path)
    assert row == KILLS
    text = section([(row, conditions)])
    assert "| SIGKILL | 50 | 49 | 1 | 0, 1 | `make faults` |" in text
    assert conditions["machine"]["processor"] in text


def test_the_page_is_made_from_the_stored_rows() -> None:
    head, tail = page_parts(PAGE, START, END)
    assert PAGE.read_text(encoding="utf-8") == f"{head}{START}\n\n{section(read_rows())}\n{END}{tail}"
