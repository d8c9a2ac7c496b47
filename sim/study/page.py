"""The pages of studies, one each: what stands between two comments is made from stored rows, with the plot first."""

import os
from pathlib import Path

from fl.core.files import PUBLIC, write_atomically
from sim.section import page_parts, write_section
from sim.study.influence import influence_table, influences
from sim.study.plan import SIZES
from sim.study.rows import StudyResult
from sim.study.table import markdown, spread_table

STORE = Path("docs/studies")
PAGES = Path("docs/results")


def markers(name: str) -> tuple[str, str]:
    """The comments around a study's section."""
    return f"<!-- study {name}: made by idiolect study {name} -->", f"<!-- end of study {name} -->"


def page_of(name: str, pages: Path) -> Path:
    """The page of a study in the folder ``pages``."""
    return pages / f"{name}.md"


def stored_at(name: str, size: str, folder: Path) -> Path:
    """Where the rows of a study lie: each size has its own, so that a quick look replaces no result."""
    return folder / f"{name}-{size}.json"


def store(result: StudyResult, folder: Path) -> Path:
    """Rows and plot as files of ``folder``."""
    from sim.study.plots import influence_svg, results_svg  # matplotlib: nothing else of a study waits for it

    path = stored_at(result.name, result.size, folder)
    result.write(path)
    write_atomically(path.with_suffix(".svg"), results_svg(result).encode(), mode=PUBLIC)
    if searched(result):
        write_atomically(_influence(path), influence_svg(result).encode(), mode=PUBLIC)
    return path


def searched(result: StudyResult) -> bool:
    """Whether the settings of its cells were drawn at random, and often enough to ask which of them matters."""
    return bool(result.conditions.get("drawn") and influences(result))


def write_study(result: StudyResult, pages: Path, folder: Path) -> None:
    """Store the rows, and replace the section of the study's page by all sizes stored. A page that is there must have its two comments."""
    page = page_of(result.name, pages)
    if not page.exists():
        write_atomically(page, "\n\n".join([f"# {result.question}", *markers(result.name), ""]).encode(), mode=PUBLIC)
    page_parts(page, *markers(result.name))
    store(result, folder)
    write_section(page, *markers(result.name), _section(result.name, page, folder))


def rewrite(pages: Path, folder: Path) -> list[Path]:
    """Every study whose rows are stored, written into its page again: nothing is run. Returns the pages."""
    results = [StudyResult.read(path) for path in sorted(folder.glob("*.json"))]
    for result in results:
        store(result, folder)
    written = {name: page_of(name, pages) for name in sorted({result.name for result in results})}
    for name, page in written.items():
        write_section(page, *markers(name), _section(name, page, folder))
    return list(written.values())


def _section(name: str, page: Path, folder: Path) -> str:
    """Plot and tables of each size that is stored, the largest first."""
    stored = [StudyResult.read(path) for path in folder.glob(f"{name}-*.json")]
    found = [each for each in stored if each.name == name]  # ctc-* are files of ctc-tokens too
    order = [*reversed(SIZES)]
    found.sort(key=lambda each: order.index(each.size) if each.size in order else len(order))
    return "\n".join(_part(each, page, folder) for each in found)


def _part(result: StudyResult, page: Path, folder: Path) -> str:
    path = stored_at(result.name, result.size, folder)
    text = f"{image(result.question, path.with_suffix('.svg'), page)}\n{markdown(result)}"
    if searched(result):
        text += f"\n{image('Each setting and the error rate', _influence(path), page)}\n{influence_table(result)}"
    if result.conditions.get("repeated") and (spread := spread_table(result)):
        text += f"\n{spread}"
    return text


def _influence(stored: Path) -> Path:
    return stored.with_name(f"{stored.stem}-influence.svg")


def image(title: str, plot: Path, page: Path) -> str:
    """A line of ``page`` that shows ``plot``, wherever the two lie."""
    return f"![{title}]({Path(os.path.relpath(plot.resolve(), page.resolve().parent)).as_posix()})\n"
