"""The studies of a page: each between two comments, made from stored rows, with its plot as a file beside them."""

from __future__ import annotations

from pathlib import Path

from fl.files import PUBLIC, write_atomically
from sim.section import page_parts, write_section
from sim.study.chart import svg
from sim.study.influence import influence_svg, influence_table
from sim.study.rows import StudyResult
from sim.study.table import markdown

STORE = Path("docs/studies")
PAGE = Path("docs/results.md")


def markers(name: str) -> tuple[str, str]:
    """The comments around a study's section."""
    return f"<!-- study {name}: made by idiolect study {name} -->", f"<!-- end of study {name} -->"


def store(result: StudyResult, folder: Path) -> Path:
    """Rows and plot as files of ``folder``."""
    path = folder / f"{result.name}.json"
    result.write(path)
    write_atomically(path.with_suffix(".svg"), svg(result).encode(), mode=PUBLIC)
    if searched(result):
        write_atomically(folder / f"{result.name}-influence.svg", influence_svg(result).encode(), mode=PUBLIC)
    return path


def searched(result: StudyResult) -> bool:
    """Whether several settings vary at once, so that it is a question which of them matters."""
    drawn = [row.settings for row in result.rows if row.settings]
    varied = {name for settings in drawn for name in settings}
    return (
        len(varied) > 1
        and all(settings.keys() == varied for settings in drawn)
        and all(len({settings[name] for settings in drawn}) > 1 for name in varied)
    )


def write_study(result: StudyResult, page: Path, folder: Path) -> None:
    """Store the rows and replace the study's section of ``page``, which must have its two comments."""
    page_parts(page, *markers(result.name))
    stored = store(result, folder)
    plot = stored.with_suffix(".svg").resolve().relative_to(page.resolve().parent)
    text = f"{result.question}\n\n![{result.question}]({plot.as_posix()})\n\n{markdown(result)}"
    if searched(result) and (table := influence_table(result)):
        text += f"\n![Each setting and the error rate]({plot.with_name(f'{result.name}-influence.svg').as_posix()})\n\n{table}"
    write_section(page, *markers(result.name), text)


def rewrite(page: Path, folder: Path) -> list[str]:
    """Every study whose rows are stored, written into ``page`` again: nothing is run. Returns their names."""
    names = []
    for path in sorted(folder.glob("*.json")):
        result = StudyResult.read(path)
        write_study(result, page, folder)
        names.append(result.name)
    return names
