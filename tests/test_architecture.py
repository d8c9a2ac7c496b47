"""One thing, one place: no name of an algorithm, gate or method is compared outside its own file, and a class name is one class.

Ask the object for what it can do.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest

from fl.adapters.gates.table import GATES
from fl.algorithms.table import ALGORITHMS
from fl.methods.table import METHODS

ROOT = Path(__file__).parents[1]
PACKAGES = ("fl", "clients", "strategies", "sim")
TESTED_AS = (ast.Eq, ast.NotEq, ast.In, ast.NotIn)


@dataclass(frozen=True)
class Comparison:
    """A comparison with a name, in a file at a line; ``other`` is the text of what it is compared with."""

    path: str
    line: int
    name: str
    other: str


def find_sources(root: Path, packages: Collection[str] = PACKAGES) -> dict[str, str]:
    """Source text by path from the root."""
    paths = [path for package in packages for path in sorted((root / package).rglob("*.py"))]
    return {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in paths}


@lru_cache(maxsize=1024)
def parsed(text: str) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(text)


def strings_in(node: ast.expr | None) -> set[str]:
    """The text that a literal is, or the texts in a tuple, list or set."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {node.value}
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return {text for element in node.elts for text in strings_in(element)}
    if isinstance(node, ast.Call) and node.args and ast.unparse(node.func) in ("frozenset", "set", "tuple", "list"):
        return strings_in(node.args[0])
    return set()


def constants_of(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Texts by the name of a constant in capitals, so that a comparison through a name is found too."""
    found: dict[str, set[str]] = defaultdict(set)
    for text in sources.values():
        for node in parsed(text).body:
            targets = (
                node.targets
                if isinstance(node, ast.Assign)
                else [node.target]
                if isinstance(node, ast.AnnAssign)
                else []
            )
            for target in targets:
                names, values = [target], [node.value]  # type: ignore[union-attr]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):  # type: ignore[union-attr]
                    names, values = target.elts, node.value.elts  # type: ignore[union-attr, assignment]
                for name, value in zip(names, values, strict=True):
                    if isinstance(name, ast.Name) and name.id.isupper():
                        found[name.id] |= strings_in(value)
    return found


def _compared(tree: ast.AST) -> Iterator[tuple[int, ast.expr, str]]:
    """Each side of a comparison with the text of the others, and each value of a ``match``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(isinstance(op, TESTED_AS) for op in node.ops):
            sides = [node.left, *node.comparators]
            for side in sides:
                yield node.lineno, side, " ".join(ast.unparse(other) for other in sides if other is not side)
        elif isinstance(node, ast.Match):
            for case in node.cases:
                for part in ast.walk(case.pattern):
                    if isinstance(part, ast.MatchValue):
                        yield part.lineno, part.value, ast.unparse(node.subject)


def comparisons(sources: Mapping[str, str], names: Collection[str]) -> list[Comparison]:
    """All comparisons with one of ``names``: as a text, in a row of texts, or through a constant that holds some of them."""
    constants = {name: texts for name, texts in constants_of(sources).items() if texts & set(names)}
    found = []
    for path, text in sources.items():
        for line, side, other in _compared(parsed(text)):
            word = side.id if isinstance(side, ast.Name) else side.attr if isinstance(side, ast.Attribute) else ""
            texts = constants.get(word, set()) if word.isupper() else strings_in(side)
            if not texts >= set(names):  # whether a name is one of the whole table is a question about the table
                found += [Comparison(path, line, name, other) for name in sorted(texts & set(names))]
    return found


def as_lines(found: list[Comparison]) -> list[str]:
    return [f"{one.path}:{one.line} compares {one.other!r} with {one.name!r}" for one in found]


# Words that name more than one thing: they are meant only where the other side speaks of that thing
MEANT = {
    "gates": r"algorithm|strategy|personali|\bname\b|\brule\b",  # a split, too
    "fedsa": r"algorithm|strategy|shared|\bname\b|\brule\b",  # a split, too
    "ffa": r"algorithm|strategy|shared|\bname\b|\brule\b",  # a split, too
    "none": r"gate",  # noise, masks, an attack, encryption
    "full": r"method",  # a window
}
KINDS: dict[str, tuple[str, ...]] = {"algorithm": tuple(ALGORITHMS), "gate": tuple(GATES), "method": tuple(METHODS)}


def defines(text: str, name: str) -> bool:
    """Whether a class of this file has the ``name``: it is the thing's own file."""
    for node in ast.walk(parsed(text)):
        for part in node.body if isinstance(node, ast.ClassDef) else ():
            target = (
                part.targets[0]
                if isinstance(part, ast.Assign)
                else part.target
                if isinstance(part, ast.AnnAssign)
                else None
            )
            if isinstance(target, ast.Name) and target.id == "name" and strings_in(part.value) == {name}:  # type: ignore[union-attr]
                return True
    return False


def foreign(sources: Mapping[str, str], names: Collection[str]) -> list[Comparison]:
    """Comparisons with a name outside the file that defines it, where the word is meant."""
    return [
        one
        for one in comparisons(sources, names)
        if re.search(MEANT.get(one.name, ""), one.other) and not defines(sources[one.path], one.name)
    ]


def repeated_classes(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """The files of each class name that several classes have."""
    found: dict[str, list[str]] = defaultdict(list)
    for path, text in sources.items():
        for node in ast.walk(parsed(text)):
            if isinstance(node, ast.ClassDef):
                found[node.name.lstrip("_")].append(path)
    return {name: paths for name, paths in found.items() if len(paths) > 1}


@pytest.fixture(scope="module")
def project() -> dict[str, str]:
    return find_sources(ROOT)


def test_all_four_packages_are_looked_at(project: dict[str, str]) -> None:
    assert {path.partition("/")[0] for path in project} == set(PACKAGES)
    assert {"clients/training/phase.py", "strategies/arm.py", "fl/settings/check.py", "sim/cli/app.py"} <= set(project)


@pytest.mark.parametrize("package", ["clients", "strategies"])
def test_the_drivers_know_no_algorithm_by_name(project: dict[str, str], package: str) -> None:
    found = [one for one in foreign(project, ALGORITHMS) if one.path.startswith(f"{package}/")]
    assert as_lines(found) == []


@pytest.mark.parametrize("kind", KINDS)
def test_no_name_is_compared_outside_its_own_file(project: dict[str, str], kind: str) -> None:
    assert as_lines(foreign(project, KINDS[kind])) == []


def test_a_class_name_is_one_class(project: dict[str, str]) -> None:
    assert repeated_classes(project) == {}


# The checks themselves

NAMES = ("krum", "median", "ffa", "none")


@pytest.mark.parametrize(
    "text",
    [
        'if name == "krum": pass',
        'if "krum" == name: pass',
        'x = name != "krum"',
        'x = name in ("krum", "other")',
        'x = name not in ["krum"]',
        'x = name in {"krum"}',
        'x = name in frozenset({"krum", "median"})',
        'def f(name):\n    return [n for n in name if n == "krum"]',
        'match name:\n    case "krum": pass',
        'match name:\n    case "other" | "krum": pass',
        'match pair:\n    case ("krum", 1): pass',
        'KRUM = "krum"\nx = name == KRUM',
        'A, KRUM = 1, "krum"\nx = name == KRUM',
        'SLOW: tuple[str, ...] = ("krum", "median")\nx = name in SLOW',
        'x = (name, rate) == ("krum", 1)',
        'x = a == b == "krum"',
        'x = config.algorithm.name == "ffa"',
        'x = gate == "none"',
    ],
)
def test_the_check_finds_a_comparison_with_a_name(text: str) -> None:
    assert len({one.line for one in foreign({"clients/a.py": text}, NAMES)}) == 1


def test_the_check_finds_a_comparison_through_a_constant_of_another_module() -> None:
    sources = {"fl/names.py": 'SLOW = ("krum",)', "clients/a.py": "from fl import names\nx = name in names.SLOW"}
    assert [one.path for one in foreign(sources, NAMES)] == ["clients/a.py"]


@pytest.mark.parametrize(
    "text",
    [
        'settings = {"algorithm": "krum"}',  # a table of a study names settings and compares nothing
        'ARMS = [("krum", "median"), ("fedavg",)]',
        'make(algorithm="krum")',
        'x = name == "krumm"',
        'x = "krum" < name',
        'ALL = ("krum", "median", "ffa", "none")\nx = name in ALL',  # whether it is a name at all
        'class Krum:\n    name = "krum"\n    x = other == "krum"',  # its own file
        'class Krum:\n    name: ClassVar[str] = "krum"\n\n\nx = other == "krum"',
        'x = split == "ffa"',
        'x = dp == "none"',
    ],
)
def test_the_check_lets_other_uses_pass(text: str) -> None:
    assert as_lines(foreign({"clients/a.py": text}, NAMES)) == []


def test_the_check_finds_a_class_name_that_comes_twice_even_inside_another_class() -> None:
    sources = {
        "fl/a.py": "class Plan: pass\nclass Other: pass",
        "sim/b.py": "def f():\n    class Plan: pass",
        "clients/c.py": "class Outer:\n    class Plan: pass",
    }
    assert repeated_classes(sources) == {"Plan": ["fl/a.py", "sim/b.py", "clients/c.py"]}
