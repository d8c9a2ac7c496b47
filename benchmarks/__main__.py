"""Run the benchmarks that there are, one after the other, then print every figure beside its target.

    python -m benchmarks [NAME ...] [--smoke] [--no-run] [--write docs/benchmarks.md]

Without names all of them run, which takes about an hour and a half and wants a machine that does nothing else. ``--smoke`` runs
them with the smallest sizes and keeps no figure; ``--no-run`` only prints the table; ``--write`` puts it into a page, between
the markers. The script of pfl-research needs an environment of its own (``make peers``, or its Python in PFL_PYTHON).
Exits with 1 if a script failed or missed its target.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.table import END, FIGURES, START, footnotes, make_lines, markdown, read_rows, rich_table
from sim.section import write_section

FOLDER = Path(__file__).parent
WIDTH = 170  # of a table that goes into a file
PFL_PYTHON = FOLDER.parent / "build" / "pfl" / "bin" / "python"


@dataclass(frozen=True)
class Script:
    """A benchmark that writes rows: its module under ``benchmarks``. Those under ``peers`` run in the environment of pfl."""

    name: str

    @property
    def pfl(self) -> bool:
        """Whether it runs in the environment of pfl."""
        return self.name.startswith("peers.")

    @property
    def path(self) -> Path:
        """Its file."""
        return FOLDER.joinpath(*self.name.split(".")).with_suffix(".py")

    def python(self) -> str | None:
        """The interpreter to run it with, None if that is not there."""
        if not self.pfl:
            return sys.executable
        chosen = Path(os.environ.get("PFL_PYTHON") or PFL_PYTHON)
        return str(chosen) if chosen.is_file() else None


SCRIPTS = tuple(map(Script, dict.fromkeys(figure.script for figure in FIGURES)))


def run_script(script: Script, smoke: bool, console: Console) -> bool:
    """Run one in a process of its own; whether it ended well. One that cannot run here is left out with a line."""
    python = script.python()
    if python is None:
        console.print(f"{script.name}: left out, its environment is not there: make peers")
        return True
    console.rule(script.name)
    command = [python, "-m", f"benchmarks.{script.name}", *(["--smoke"] if smoke else [])]
    code = subprocess.run(command, cwd=FOLDER.parent, check=False).returncode
    if code:
        console.print(f"{script.name}: exit code {code}: a target was missed, or it failed (above)")
    return code == 0


def choose(names: list[str]) -> list[Script]:
    """The scripts to run, of those whose file is there. Raises SystemExit for an unknown name."""
    there = [script for script in SCRIPTS if script.path.is_file()]
    unknown = sorted(set(names) - {script.name for script in there})
    if unknown:
        raise SystemExit(f"no benchmark {', '.join(unknown)}: there are {', '.join(s.name for s in there)}")
    return [script for script in there if not names or script.name in names]


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--no-run", action="store_true")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    scripts = [] if arguments.no_run else choose(arguments.names)
    well = [run_script(script, arguments.smoke, console) for script in scripts]
    rows = read_rows()
    lines, notes = make_lines(rows), footnotes(rows.values())
    console.print(rich_table(lines))
    for note in notes:
        console.print(note, style="dim", markup=False)
    if arguments.write:
        write_section(arguments.write, START, END, markdown(lines, notes))
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main())
