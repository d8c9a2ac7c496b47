"""The table of figures: every row under ``benchmarks/results`` beside its target, and what has not been measured as open.

A figure is named here once, with what it means and its target; a script writes ``results/<name>.json`` for it. A result that
is not named here is shown too, with the target that it carries.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks._report import RESULTS, BenchmarkRow, machine
from sim.section import markdown_table

START, END = "<!-- benchmarks: made by python -m benchmarks -->", "<!-- end of benchmarks -->"
HEADINGS = ("figure", "measured", "ratio", "target", "of target", "")


@dataclass(frozen=True)
class Figure:
    """A figure with a target: the name of its row, what it is, its target and the script that measures it.

    ``amx`` is the target of a machine whose processor has AMX tiles, where it is another one.
    """

    name: str
    title: str
    target: float
    script: str
    unit: str = "x"
    at_most: bool = False
    gpu: bool = False
    amx: float | None = None

    def target_of(self, conditions: Mapping[str, Any]) -> float:
        """The target of a row with these conditions: its machine says whether it has AMX tiles."""
        tiles = (conditions.get("machine") or {}).get("amx", False)
        return self.amx if tiles and self.amx is not None else self.target

    @property
    def bounds(self) -> str:
        """Both targets in words."""
        text = bound(self.target, self.unit, self.at_most)
        return text if self.amx is None else f"{text}; with AMX {number(self.amx)}{_behind(self.unit)}"


FIGURES = (
    Figure("local_step", "local step, own length against 30 s", 8.0, "local_step"),
    Figure("client_round", "client-rounds a second against the stock recipe, LoRA", 12.0, "client_round", amx=20.0),
    Figure("client_round_personalized", "the same with personal gates", 12.0, "client_round", amx=20.0),
    Figure("cohort_batch_8", "cohort against one device at a time, local batch 8", 1.1, "cohort"),
    Figure("cohort_batch_1", "cohort against one device at a time, local batch 1", 1.8, "cohort"),
    Figure("pfl_round_batch_8", "against the same step in pfl-research, local batch 8", 1.3, "peers.pfl_round"),
    Figure("pfl_round_batch_1", "against the same step in pfl-research, local batch 1", 1.8, "peers.pfl_round"),
    Figure("pfl_processes_batch_8", "against it in two processes, local batch 8", 1.1, "peers.pfl_round"),
    Figure("pfl_processes_batch_1", "against it in two processes, local batch 1", 1.5, "peers.pfl_round"),
    Figure("matrix_share", "local step, share of the machine's matrix-product rate, float32", 0.70, "cohort", unit=""),
    Figure("demo", "make demo, 144 steps a device, all arms", 16.0, "demo", "min", at_most=True, amx=10.0),
    Figure("tiles_local_step", "local step in bf16 against float32, processor with AMX", 0.40, "gpu", at_most=True),
    Figure(
        "tiles_cohort", "cohort of 6 x 2 in bf16 against one by one in float32, with AMX", 0.33, "gpu", at_most=True
    ),
    Figure("gpu_local_step", "local step in bf16 against float32, one GPU", 0.40, "gpu", at_most=True, gpu=True),
    Figure("gpu_cohort", "cohort of 6 x 2 in bf16 against one by one in float32", 0.33, "gpu", at_most=True, gpu=True),
    Figure(
        "private_phase_b_of_the_decoder",
        "private phase in a cohort against one by one, B of the decoder",
        1.0,
        "private_phase",
    ),
    Figure("private_phase_gates", "the same, all gates", 1.0, "private_phase"),
    Figure("compiled", "local steps of an arm by torch.compile, its start included, against without", 1.0, "compiled"),
    Figure("precision", "MER of bf16 against float32's, over the chance in training", 1.0, "precision", at_most=True),
    Figure("prefix", "decoder adapters on cached encoder states against adapters everywhere", 3.0, "prefix"),
    Figure("population_framework", "framework time a simulated device", 1.0, "population", "ms", at_most=True),
    Figure(
        "population_framework_private", "the same with private state on disk", 3.0, "population", "ms", at_most=True
    ),
    Figure("backends", "rounds with threads in one process against processes on Ray", 1.0, "backends"),
    Figure("shared_cores_twin", "training step beside another run, against OpenMP's own waiting", 2.0, "shared_cores"),
    Figure("shared_cores_busy", "the same beside a loop that keeps one core busy", 1.5, "shared_cores"),
    Figure("shared_cores_alone", "the same alone: what it costs", 1.1, "shared_cores", at_most=True),
    Figure("memory", "resident memory, 4 workers against 1", 1.5, "memory", at_most=True),
    Figure("aggregation", "aggregating 1,000 devices, slowest linear strategy", 2.0, "aggregation", "s", at_most=True),
    Figure(
        "aggregation_growth",
        "seconds by devices, 1,000 to 10,000 or more, steepest linear strategy: exponent",
        1.1,
        "aggregation_growth",
        "",
        at_most=True,
    ),
    Figure("secure_sum", "secure sum of 100 devices, computation of a device", 1.0, "secure_sum", "s", at_most=True),
    Figure("population_seconds", "100,000 devices, 1,000 sampled, 5 rounds", 60.0, "population", "s", at_most=True),
    Figure("population_memory", "peak memory of it", 2.0, "population", "GiB", at_most=True),
    Figure(
        "growth_devices_seconds", "its time by registered devices, 10 to 100,000: exponent", 1.0, "population", "", True
    ),
    Figure("growth_devices_memory", "its memory by them: exponent", 1.0, "population", "", True),
    Figure(
        "growth_speech_training",
        "training step by length of speech, 2 to 29 s: exponent",
        1.2,
        "growth_speech",
        "",
        True,
    ),
    Figure("growth_speech_memory", "its peak memory by length: exponent", 1.2, "growth_speech", "", True),
    Figure("growth_speech_transcription", "transcription by length: exponent", 1.2, "growth_speech", "", True),
    Figure(
        "serving_peft_switching_30s", "16 people at once against PEFT switching adapters, 30 s windows", 6.0, "serving"
    ),
    Figure("serving_peft_switching", "the same on trimmed windows", 2.5, "serving"),
    Figure("serving_peft_mixed", "against PEFT's own batch of mixed adapters, trimmed windows", 1.7, "serving"),
    Figure(
        "serving_people", "16 people with adapters of their own at once, 3 s each", 2.6, "serving", "s", at_most=True
    ),
    Figure("first_word", "thin client, 3 s of speech: time to the first word", 0.6, "first_word", "s", at_most=True),
    Figure("growth_people", "seconds by people in a batch, 1 to 64: exponent", 1.0, "growth_people", "", at_most=True),
    Figure("run_start", "bare run to its first training step", 12.0, "run_start", "s", at_most=True),
    Figure("serving_over_base", "time of 16 gated adapters against none", 1.25, "serving", at_most=True),
    Figure(
        "serving_load_latency", "32 thin clients, 2,000 requests: p95 against p50", 3.0, "serving_load", at_most=True
    ),
    Figure("serving_load_memory", "growth of the server's memory meanwhile", 1.1, "serving_load", at_most=True),
    Figure("thin_memory", "resident memory of the thin device", 60.0, "thin", "MiB", at_most=True),
    Figure("thin_import", "time to import the thin client", 0.3, "thin", "s", at_most=True),
    Figure("thin_adapter_float16", "adapter with self gates on the device, float16", 2.0, "thin", "MiB", at_most=True),
    Figure("thin_adapter_int8", "the same, int8", 1.0, "thin", "MiB", at_most=True),
    Figure(
        "gpu_client_round", "one GPU: client-rounds a second against the stock recipe", 15.0, "client_round", gpu=True
    ),
)


def target_here(name: str) -> float:
    """The target of a figure on this machine, for the script that measures it; 1 for what is no figure of the project."""
    here = {"machine": machine()}
    return next((figure.target_of(here) for figure in FIGURES if figure.name == name), 1.0)


@dataclass(frozen=True)
class FigureLine:
    """One line of the table, as text; ``state`` is ``met``, ``missed`` or ``open``."""

    title: str
    measured: str
    ratio: str
    target: str
    of_target: str
    note: str
    state: str

    @property
    def cells(self) -> tuple[str, ...]:
        """What is printed, in the order of :data:`HEADINGS`."""
        return (self.title, self.measured, self.ratio, self.target, self.of_target, f"{self.state}{self.note}")


def read_row(path: Path) -> BenchmarkRow:
    """The row of one results file. Raises ValueError that names the file if it is not one."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return BenchmarkRow(**{field.name: found[field.name] for field in fields(BenchmarkRow) if field.name in found})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no row of a benchmark ({error}): measure it again or remove it") from error


def read_rows(folder: Path = RESULTS) -> dict[str, BenchmarkRow]:
    """All rows under ``folder`` by name."""
    return {row.name: row for row in map(read_row, sorted(folder.glob("*.json")))}


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def bound(target: float, unit: str, at_most: bool) -> str:
    """A target in words."""
    return f"{'at most' if at_most else 'at least'} {number(target)}{_behind(unit)}"


def _behind(unit: str) -> str:
    return unit if unit in ("x", "") else f" {unit}"


def _spread(conditions: Mapping[str, Any]) -> str:
    found = conditions.get("spread")
    return f" ({number(found['min'])} to {number(found['max'])})" if isinstance(found, Mapping) else ""


def measured_line(row: BenchmarkRow, figure: Figure | None) -> FigureLine:
    """The line of a figure that was measured. The target is the project's where it names one, not the row's own."""
    target = figure.target_of(row.conditions) if figure else row.target
    at_most, unit = (figure.at_most, figure.unit) if figure else (row.at_most, "x")
    judged = BenchmarkRow(row.name, row.value, row.unit, row.ratio, target, row.conditions, at_most)
    note = row.conditions.get("note")
    return FigureLine(
        title=figure.title if figure else row.name.replace("_", " "),
        measured=f"{number(row.value)} {row.unit}",
        ratio=f"{number(row.ratio)}{_behind(unit)}{_spread(row.conditions)}",
        target=bound(target, unit, at_most),
        of_target=f"{judged.of_target:.2f}",
        note=f"; {note}" if note else "",
        state="met" if judged.met else "missed",
    )


def open_line(figure: Figure) -> FigureLine:
    """The line of a figure without a result."""
    reason = ": needs a GPU" if figure.gpu else f": benchmarks.{figure.script}"
    return FigureLine(figure.title, "-", "-", figure.bounds, "-", reason, "open")


def make_lines(rows: Mapping[str, BenchmarkRow], figures: Sequence[Figure] = FIGURES) -> list[FigureLine]:
    """All lines: the project's figures in their order, then results that are not among them."""
    lines = [measured_line(rows[f.name], f) if f.name in rows else open_line(f) for f in figures]
    named = {figure.name for figure in figures}
    return lines + [measured_line(row, None) for name, row in rows.items() if name not in named]


def footnotes(rows: Iterable[BenchmarkRow]) -> list[str]:
    """Machine, versions and seeds: one line for each different set of them, with the rows it holds for."""
    where: dict[str, list[str]] = {}
    for row in rows:
        machine = row.conditions.get("machine")
        if not isinstance(machine, dict):
            continue
        versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
        seed = f", seed {row.conditions['seed']}" if "seed" in row.conditions else ""
        device = f"{machine['gpu']}, " if machine.get("gpu") else ""
        text = f"{device}{machine.get('processor')}, {machine.get('cores')} cores, Python {machine.get('python')}, {versions}{seed}"
        where.setdefault(text, []).append(row.name)
    return [f"{', '.join(names)}: {text}." for text, names in where.items()]


def rich_table(lines: Sequence[FigureLine]) -> Table:
    """The table for a terminal."""
    colours = {"met": "green", "missed": "red", "open": "yellow"}
    table = Table()
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading in ("ratio", "of target") else "left")
    for line in lines:
        *cells, last = line.cells
        table.add_row(*cells, f"[{colours[line.state]}]{line.state}[/]{last.removeprefix(line.state)}")
    return table


def markdown(lines: Sequence[FigureLine], notes: Sequence[str] = ()) -> str:
    """The table for a page."""
    return markdown_table(HEADINGS, [line.cells for line in lines]) + "".join(f"\n{note}\n" for note in notes)
