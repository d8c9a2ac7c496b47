"""Tables of studies and audits: the same cells on a page and in a terminal, bold where they say so."""

from io import StringIO

from rich.console import Console

from sim.section import ReportTable, markdown_tables, print_tables

TABLE = ReportTable("Rates", ("split", "view", "rate"), (("a", "x", "**1.0**"), ("a", "y", "[2]"), ("b", "x", "3*")), 2)


def test_a_page_has_a_title_a_head_and_a_line_for_each_row():
    assert markdown_tables([TABLE], "One machine.").splitlines() == [
        "Rates:",
        "",
        "| split | view | rate |",
        "| --- | --- | --- |",
        "| a | x | **1.0** |",
        "| a | y | [2] |",
        "| b | x | 3* |",
        "",
        "One machine.",
    ]


def test_a_terminal_shows_bold_cells_without_stars_and_brackets_as_they_are():
    console = Console(width=80, file=StringIO(), force_terminal=True, color_system="standard")
    print_tables([TABLE], "One [machine].", console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    (line,) = (line for line in text.splitlines() if "1.0" in line)
    assert "\x1b[1m" in line
    assert "**" not in text
    assert "3*" in text
    assert "[2]" in text
    assert "One [machine]." in text
    assert text.count("├") + text.count("┡") == 2  # under the head, and where the split changes
