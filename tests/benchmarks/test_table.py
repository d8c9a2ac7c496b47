"""The table of figures beside their targets."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.__main__ import Script
from benchmarks._report import BenchmarkRow, write_row
from benchmarks.growth import tables_of
from benchmarks.table import (
    END,
    FIGURES,
    HEADINGS,
    START,
    Figure,
    footnotes,
    make_lines,
    markdown,
    read_rows,
    rich_table,
)
from sim.section import SectionError, write_section

SPEED = Figure("speed", "client-rounds a second", 12.0, "client_round")
SECONDS = Figure("seconds", "time of a run", 60.0, "population", "s", at_most=True)
GPU = Figure("gpu_speed", "on a GPU", 15.0, "client_round", gpu=True)


def test_a_measured_figure_stands_beside_its_target(make_row: Callable[..., BenchmarkRow]) -> None:
    row = make_row(conditions={"spread": {"min": 14.0, "max": 16.25}, "note": "WER 31.5 %"})
    (line,) = make_lines({"speed": row}, [SPEED])
    assert line.measured == "2.5 rounds/s"
    assert (line.ratio, line.target, line.of_target) == ("15x (14 to 16.2)", "at least 12x", "1.25")
    assert line.cells[-1] == "met; WER 31.5 %"


def test_a_figure_under_its_target_is_missed(make_row: Callable[..., BenchmarkRow]) -> None:
    (line,) = make_lines({"speed": make_row(ratio=6.0)}, [SPEED])
    assert (line.state, line.of_target) == ("missed", "0.50")


def test_the_projects_target_holds_and_not_the_one_in_the_file(make_row: Callable[..., BenchmarkRow]) -> None:
    (line,) = make_lines({"speed": make_row(ratio=6.0, target=5.0)}, [SPEED])
    assert (line.state, line.target) == ("missed", "at least 12x")


def test_a_machine_with_amx_is_held_against_its_own_target(make_row: Callable[..., BenchmarkRow]) -> None:
    figure = replace(SPEED, amx=20.0)
    with_tiles, without = (make_row(ratio=15.0, conditions={"machine": {"amx": amx}}) for amx in (True, False))
    assert [
        (line.state, line.target) for row in (with_tiles, without) for line in make_lines({"speed": row}, [figure])
    ] == [
        ("missed", "at least 20x"),
        ("met", "at least 12x"),
    ]
    (line,) = make_lines({}, [figure])  # not measured: which machine it will be is not known
    assert line.target == "at least 12x; with AMX 20x"


def test_the_script_of_every_figure_is_there() -> None:
    for figure in FIGURES:
        path = Script(figure.script).path
        assert path.is_file(), f"{figure.name}: no {path}"


def test_an_upper_bound_is_met_from_below(make_row: Callable[..., BenchmarkRow]) -> None:
    below, above = (make_row("seconds", value=s, unit="s", ratio=s, target=60.0) for s in (40.0, 80.0))
    (good,), (bad,) = make_lines({"seconds": below}, [SECONDS]), make_lines({"seconds": above}, [SECONDS])
    assert (good.state, good.of_target, good.ratio, good.target) == ("met", "1.50", "40 s", "at most 60 s")
    assert (bad.state, bad.of_target) == ("missed", "0.75")


def test_a_missing_figure_is_open_and_names_its_script() -> None:
    lines = make_lines({}, [SPEED, GPU])
    assert [line.state for line in lines] == ["open", "open"]
    assert lines[0].cells[1:] == ("-", "-", "at least 12x", "-", "open: benchmarks.client_round")
    assert lines[1].cells[-1] == "open: needs a GPU"


def test_a_result_that_no_figure_names_is_shown_with_its_own_target(make_row: Callable[..., BenchmarkRow]) -> None:
    lines = make_lines({"extra_row": make_row("extra_row", ratio=3.0, target=4.0)}, [SPEED])
    assert [line.title for line in lines] == [SPEED.title, "extra row"]
    assert (lines[1].state, lines[1].target) == ("missed", "at least 4x")


def test_rows_come_back_from_disk_as_they_were_written(tmp_path: Path, make_row: Callable[..., BenchmarkRow]) -> None:
    rows = {"speed": make_row(), "seconds": make_row("seconds", at_most=True)}
    for row in rows.values():
        write_row(row, tmp_path)
    assert read_rows(tmp_path) == rows


@pytest.mark.parametrize("text", ["{", "[1]", json.dumps({"name": "x"})])
def test_a_file_that_is_no_row_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(ValueError, match=r"broken\.json"):
        read_rows(tmp_path)


def test_the_projects_figures_have_names_of_their_own() -> None:
    assert len({figure.name for figure in FIGURES}) == len(FIGURES)
    assert len({figure.title for figure in FIGURES}) == len(FIGURES)


def test_results_in_the_repository_are_rows() -> None:
    assert "local_step" in read_rows()


def test_a_table_of_growth_has_a_figure_for_each_size(make_row: Callable[..., BenchmarkRow]) -> None:
    by_devices = {"10": {"median": 1.5}, "1000": {"median": 2.25}}
    row = make_row("growth_devices_seconds", unit="s", ratio=0.088, conditions={"by_devices": by_devices})
    (table,) = tables_of([make_row(), row])
    assert table.title == "Devices, seconds (s); exponent 0.09"
    assert (table.heads, table.rows) == (("devices", "10", "1000"), (("figure", "1.5", "2.25"),))


def test_markdown_has_one_row_for_each_line_and_escapes_bars(make_row: Callable[..., BenchmarkRow]) -> None:
    lines = make_lines({"speed": make_row(conditions={"note": "a|b"})}, [SPEED, GPU])
    table = markdown(lines, ["machine: one"]).splitlines()
    assert table[0] == "| " + " | ".join(HEADINGS) + " |"
    assert len(table) == 2 + 2 + 2
    assert "a\\|b" in table[2]
    assert table[-1] == "machine: one"


def test_the_terminal_table_says_what_the_page_says(make_row: Callable[..., BenchmarkRow]) -> None:
    lines = make_lines({"speed": make_row(conditions={"note": "WER 31.5 %"})}, [SPEED, GPU])
    screen = io.StringIO()
    Console(file=screen, width=200).print(rich_table(lines))
    for line in lines:
        for cell in line.cells:
            assert cell in screen.getvalue()


def test_a_page_is_changed_between_the_markers_only(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    write_section(page, START, END, "| new |\n")
    write_section(page, START, END, "| newer |\n")
    assert page.read_text() == f"before\n{START}\n\n| newer |\n\n{END}\nafter\n"


@pytest.mark.parametrize("text", ["nothing", f"{START}\nno end", f"{END}\nno start"])
def test_a_page_without_markers_is_refused_and_left_as_it_is(tmp_path: Path, text: str) -> None:
    page = tmp_path / "README.md"
    page.write_text(text)
    with pytest.raises(SectionError, match="needs the comments"):
        write_section(page, START, END, "| new |")
    assert page.read_text() == text


def test_footnotes_bring_rows_of_one_machine_together(make_row: Callable[..., BenchmarkRow]) -> None:
    machine = {"processor": "P", "cores": 2, "python": "3.11", "versions": {"torch": "2.13"}}
    here = {"machine": machine, "seed": 1}
    there = {"machine": {**machine, "gpu": "G"}, "seed": 1}
    rows = [make_row(name, conditions=c) for name, c in (("a", here), ("b", here), ("c", there), ("d", {}))]
    assert footnotes(rows) == [
        "a, b: P, 2 cores, Python 3.11, torch 2.13, seed 1.",
        "c: G, P, 2 cores, Python 3.11, torch 2.13, seed 1.",
    ]
