"""Imports go one way: fl knows nobody, clients and strategies know fl, sim knows all; and no circle anywhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "fl": {"fl"},
    "clients": {"fl", "clients"},
    "strategies": {"fl", "strategies"},
    "sim": {"fl", "clients", "strategies", "sim"},
}
OUTSIDE = {"tests", "benchmarks"}  # nothing that is shipped may import these


@dataclass(frozen=True)
class Arrow:
    """An import of ``target`` by ``source``; ``late`` if it happens in a function or for the type checker only."""

    source: str
    target: str
    line: int
    late: bool


def find_modules(root: Path) -> dict[str, str]:
    """Source text by dotted module name; a package is the text of its ``__init__.py``."""
    modules = {}
    for package in ALLOWED:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            modules[".".join(parts).removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return modules


def _nodes(tree: ast.AST, late: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom | ast.Call, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Call):
            yield node, late
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _nodes(node, True)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from _nodes(ast.Module([child], []), True)
            for child in node.orelse:
                yield from _nodes(ast.Module([child], []), late)
        else:
            yield from _nodes(node, late)


def _targets(node: ast.Import | ast.ImportFrom | ast.Call, package: str, modules: Mapping[str, str]) -> list[str]:
    """The modules that one statement names; ``from fl import rng`` names ``fl.core.rng``, not ``fl``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        literal = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        return [literal] if name.endswith(("import_module", "__import__")) and isinstance(literal, str) else []
    base = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*above, *([node.module] if node.module else [])])
    return [f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names]


def find_arrows(modules: Mapping[str, str]) -> list[Arrow]:
    """All imports between the packages of the project, and of tests and benchmarks."""
    arrows = []
    for source, text in modules.items():
        is_package = any(other.startswith(source + ".") for other in modules)
        package = source if is_package else source.rpartition(".")[0]
        for node, late in _nodes(ast.parse(text, source)):
            for target in dict.fromkeys(_targets(node, package, modules)):
                if target.partition(".")[0] in ALLOWED.keys() | OUTSIDE:
                    arrows.append(Arrow(source, target, node.lineno, late))
    return arrows


def wrong_arrows(modules: Mapping[str, str]) -> list[str]:
    """Imports against the direction that the design allows."""
    return [
        f"{arrow.source}:{arrow.line} imports {arrow.target}"
        for arrow in find_arrows(modules)
        if arrow.target.partition(".")[0] not in ALLOWED[arrow.source.partition(".")[0]]
    ]


def find_circle(modules: Mapping[str, str]) -> list[str]:
    """A circle of imports that run when the modules are loaded, or an empty list."""
    follows: dict[str, list[str]] = {name: [] for name in modules}
    for arrow in find_arrows(modules):
        if not arrow.late and arrow.target in modules:
            follows[arrow.source].append(arrow.target)
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in follows[name]:
            if circle := walk(target, [*path, name]):
                return circle
        done.add(name)
        return []

    return next((circle for name in modules if (circle := walk(name, []))), [])


@pytest.fixture(scope="module")
def project() -> dict[str, str]:
    return find_modules(ROOT)


def test_all_four_packages_are_looked_at(project):
    assert {name.partition(".")[0] for name in project} == set(ALLOWED)
    assert {"fl.adapters.layer", "clients.mods", "strategies.loop", "sim.cli.app"} <= set(project)
    assert len(find_arrows(project)) > 100


def test_every_import_goes_the_way_the_design_allows(project):
    assert wrong_arrows(project) == []


def test_no_modules_import_each_other_in_a_circle(project):
    assert find_circle(project) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("fl.core.rng", "from clients.app import app"),
        ("fl.core.rng", "import sim.backends.run"),
        ("fl.core.rng", "import sim.backends.run as anything"),
        ("fl.core.rng", "from strategies import loop"),
        ("fl.core.rng", "def late():\n    from clients import app"),
        ("fl.core.rng", "class A:\n    def late(self):\n        import clients"),
        ("fl.core.rng", "if TYPE_CHECKING:\n    from sim.backends.run import run"),
        ("fl.core.rng", "try:\n    import clients\nexcept ImportError:\n    pass"),
        ("fl.core.rng", "import importlib\nimportlib.import_module('clients.app')"),
        ("clients.app", "from strategies.loop import RoundLoop"),
        ("clients.app", "import fl.core.rng, sim.cli.app"),
        ("strategies.loop", "def late():\n    import clients.mods"),
        ("sim.cli.app", "from tests.conftest import anything"),
        ("fl.core.rng", "import benchmarks.explore"),
    ],
)
def test_the_check_finds_an_arrow_the_wrong_way(module, text):
    assert len(wrong_arrows({module: text})) == 1


def test_the_check_lets_the_right_ways_pass():
    modules = {
        "fl": "",
        "fl.core.rng": "import os, clientsen",
        "clients": "",
        "clients.app": "from fl import rng\nfrom fl.core.rng import derive_seed",
        "strategies": "",
        "strategies.loop": "import fl.core.rng",
        "sim": "",
        "sim.cli.app": "import clients.app\nfrom strategies import loop\nfrom ..backends import run",
        "sim.backends.run": "import fl",
    }
    assert wrong_arrows(modules) == []
    assert find_circle(modules) == []
    assert ("clients.app", "fl.core.rng") in {(a.source, a.target) for a in find_arrows(modules)}
    assert ("sim.cli.app", "sim.backends.run") in {(a.source, a.target) for a in find_arrows(modules)}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("import fl.b", "import fl.a"),
        ("from fl import b", "from fl.a import x"),
        ("from . import b", "from .a import x"),
        ("try:\n    import fl.b\nexcept ImportError:\n    pass", "class B:\n    import fl.a"),
        ("import fl.a", ""),
    ],
)
def test_the_check_finds_a_circle(a, b):
    circle = find_circle({"fl": "", "fl.a": a, "fl.b": b})
    assert circle
    assert circle[0] == circle[-1]


def test_the_check_finds_a_long_circle():
    modules = {"fl": "", "fl.a": "import fl.b", "fl.b": "import fl.c", "fl.c": "import fl.d", "fl.d": "import fl.b"}
    assert find_circle(modules) == ["fl.b", "fl.c", "fl.d", "fl.b"]


@pytest.mark.parametrize(
    "back", ["def late():\n    import fl.a", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import fl.a"]
)
def test_an_import_that_runs_later_or_never_closes_no_circle(back):
    assert find_circle({"fl": "", "fl.a": "import fl.b", "fl.b": back}) == []
