"""The report of the network study: percentiles, thresholds, memory and conditions, in a terminal, as JSON and on a page."""

import json
import math
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sim.section import SectionError, markdown_tables, page_parts, print_tables, write_section
from sim.study.network.command import DEVICES
from sim.study.network.latency import MODES, Latency
from sim.study.network.local import ProcessCost
from sim.study.network.report import END, START, conditions_text, tables
from sim.study.network.study import MeasuredThreshold, NetworkStudy, Threshold


def made(**changes: Any) -> NetworkStudy:
    rows = tuple(Latency("lte", mode.name, (1.0, 1.5), (0.8, 0.9), 40_000, 400, 1.1) for mode in MODES)
    direct = tuple(replace(row, profile="none", modelled=0.0) for row in rows)
    thresholds = (
        Threshold("phone", "handle, Opus", 3.0, 0.45, 2.5e5),
        Threshold("phone", "handle, FLAC", 3.0, math.inf, 0.0),
        Threshold("laptop", "handle, Opus", 0.5, None, None),
    )
    confirmed = (MeasuredThreshold("lte,rtt=0.45", "handle, Opus", "phone", 3.0, (3.1, 2.9)),)
    conditions = {
        "base": "whisper-base",
        "audio_seconds": 3.0,
        "adapter_bytes": 1_800_000,
        "precision": "float16",
        "repeats": 2,
        "seed": 0,
        "devices": {"phone": 3.0},
        "reference": "lte",
        "machine": {"processor": "a processor", "cores": 2, "python": "3.11"},
    }
    study = NetworkStudy(
        conditions, ProcessCost((1.0,), 2**30), ProcessCost((1.0,), 2**25), direct, rows, thresholds, confirmed
    )
    return replace(study, **changes)


def markdown(study: NetworkStudy) -> str:
    return markdown_tables(tables(study), conditions_text(study))


def test_the_tables_say_percentiles_thresholds_memory_and_conditions():
    console = Console(width=200, file=StringIO())
    print_tables(tables(made()), conditions_text(made()), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("1.25 (1.48)", "0.85", "450 ms", "0.25 Mbit/s", "never", "any", "1024 MiB", "32 MiB", "3.00", "1.00"):
        assert part in text
    for part in ("whisper-base", "1,800,000 bytes", "2 repetitions", "a processor"):
        assert part in markdown(made())


def test_rows_of_markdown_have_as_many_cells_as_their_heads():
    blocks = [block.splitlines() for block in markdown(made()).split("\n\n") if block.startswith("|")]
    assert len(blocks) == 4
    for block in blocks:
        assert len({line.count("|") for line in block}) == 1


def test_json_has_no_infinity_and_the_raw_measurements():
    document = json.loads(json.dumps(made().document(), allow_nan=False))
    assert [row["rtt"] for row in document["thresholds"]] == [0.45, "any", None]
    assert document["latencies"][0]["seconds"] == [1.0, 1.5]
    assert document["conditions"]["machine"]["cores"] == 2


def test_the_section_of_a_page_is_replaced_and_nothing_else(tmp_path: Path):
    page = tmp_path / "network.md"
    page.write_text(f"before\n{START}\nwhat was there\n{END}\nafter\n", encoding="utf-8")
    write_section(page, START, END, markdown(made()))
    first = page.read_text(encoding="utf-8")
    write_section(page, START, END, markdown(made()))
    assert page.read_text(encoding="utf-8") == first
    assert first.startswith(f"before\n{START}")
    assert first.endswith(f"{END}\nafter\n")
    assert "what was there" not in first
    assert markdown(made()) in first


@pytest.mark.parametrize("text", ["", START, f"{END} {START}"])
def test_a_page_without_the_comments_is_refused_before_anything_is_measured(tmp_path: Path, text: str):
    page = tmp_path / "network.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(SectionError, match=r"network.md needs the comments"):
        page_parts(page, START, END)


def test_the_documentation_has_the_comments_and_the_slowdowns():
    page = Path(__file__).parents[4] / "docs" / "network.md"
    page_parts(page, START, END)
    text = page.read_text(encoding="utf-8")
    for name, slowdown in DEVICES.items():
        assert f"| `{name}` | {slowdown:g} |" in text
