"""Pages and docstrings name nothing that is not there: read as text and syntax trees, without importing anything."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("fl", "clients", "strategies", "sim")
TREES = (*PACKAGES, "benchmarks")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCS = ROOT / "docs"
INDEXES = (DOCS / "index.md", DOCS / "results" / "index.md")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
REFERENCE = re.compile(r":(?:mod|class|func|meth|attr|data|exc):`~?([\w.]+)`")
DOTTED = re.compile(rf"(?:{'|'.join(TREES)})(?:\.\w+)+")


@lru_cache(maxsize=1024)
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page's headings, made as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = (re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE))
    return frozenset(re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles)


def navigation(index: Path) -> list[Path]:
    """The pages that the ``toctree`` blocks of ``index`` list."""
    blocks = re.findall(r"^```\{toctree\}\n(.*?)^```$", index.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    entries = [line for block in blocks for line in block.splitlines() if line and line[0] != ":"]
    return [index.parent / (re.sub(r".*<(.+)>", r"\1", entry) + ".md") for entry in entries]


@lru_cache(maxsize=1024)
def names_in(path: Path) -> frozenset[str]:
    """All names that a module defines, binds or imports, at whatever depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                names.add(node.name)
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
            case ast.Attribute(ctx=ast.Store()):
                names.add(node.attr)
            case ast.alias():
                names.add(node.asname or node.name)
            case ast.Constant(value=str(text)):  # of packages that load their names late
                names.add(text)
    return frozenset(names)


def exists(dotted: str) -> bool:
    """Whether ``dotted`` is a package, a module, or a name (and its member) in one."""
    path = ROOT
    parts = dotted.split(".")
    while parts and (path / parts[0]).is_dir():
        path /= parts.pop(0)
    module = path / f"{parts[0]}.py" if parts else path
    if module.is_file():
        parts.pop(0)
    elif path == ROOT or not (module := path / "__init__.py").is_file():
        return False
    return set(parts) <= names_in(module)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_files_and_modules_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for quoted in re.findall(r"`([^`\n]+)`", text):
        if re.fullmatch(rf"(?:{'|'.join(TREES)}|docs|tests)/[\w./-]+", quoted) and "NAME" not in quoted:
            assert (ROOT / quoted).exists(), quoted
        if DOTTED.fullmatch(quoted):
            assert exists(quoted), quoted
    for module, names in re.findall(r"^\s*from ([\w.]+) import ([\w, ]+)$", text, re.MULTILINE):
        for name in names.split(", ") if module.split(".")[0] in TREES else ():
            assert exists(f"{module}.{name}"), f"{module}.{name}"
    for link, anchor in re.findall(r"\]\((?!https?:)([\w./-]*)(?:#([^)\s]+))?\)", text):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), f"{link}#{anchor}"


def test_every_page_is_in_the_navigation_once() -> None:
    listed = [page for index in INDEXES for page in navigation(index)]
    pages = {page for page in PAGES if page.is_relative_to(DOCS)} - {INDEXES[0]}
    assert set(listed) == pages
    assert len(listed) == len(pages)


def test_each_page_says_its_title_first_and_no_table_is_wide() -> None:
    for page in PAGES:
        if page.is_relative_to(DOCS):
            lines = page.read_text(encoding="utf-8").splitlines()
            assert lines[0].startswith("# "), page
            wide = [line for line in lines if line.startswith("| --- |") and line.count("---") > 7]
            assert not wide, page


def test_the_readme_stays_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert not [line for line in lines if len(line) > 120]


def test_a_link_to_a_heading_that_is_not_there_is_found() -> None:
    assert "how-does-it-decide" in anchors(DOCS / "how-to" / "enrol.md")
    assert "no-such-heading" not in anchors(DOCS / "how-to" / "enrol.md")


@pytest.mark.parametrize("package", PACKAGES)
def test_references_of_docstrings_resolve(package: str) -> None:
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] == package:
            for name in REFERENCE.findall(path.read_text(encoding="utf-8")):
                own = name.split(".")
                found = exists(name) if own[0] in TREES else set(own) <= names_in(path)
                assert found, f"{path.relative_to(ROOT)} names {name}"


def test_each_package_says_what_it_knows() -> None:
    for path in SOURCES:
        if path.name == "__init__.py":
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            assert len(text.splitlines()) >= 3, path.relative_to(ROOT)


def test_a_name_that_is_not_there_is_found() -> None:
    assert exists("fl.adapters.correction")
    assert exists("fl.methods.files.load_method")
    assert exists("strategies.arm.ArmStrategy.corrections")
    assert not exists("strategies.base.SharedFedAvg")
    assert not exists("fl.adapters.correction.nothing")


def test_the_map_is_the_tree() -> None:
    block = (DOCS / "tree.md").read_text(encoding="utf-8")
    named, top = set(), ""
    for indent, name in re.findall(r"^( {4}| {6})(\w+)/ ", block, flags=re.MULTILINE):
        top = name if len(indent) == 4 else top
        named.add(name if len(indent) == 4 else f"{top}/{name}")
    packages = {str(path.parent.relative_to(ROOT)) for top in PACKAGES for path in (ROOT / top).rglob("__init__.py")}
    assert named == {path for path in packages if path.count("/") < 2} | {"tests", "benchmarks", "docs"}
