"""What a release promises: one version, a lock that covers every extra, and a public interface that is there."""

import ast
import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fl

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = dict(
    line.split("==") for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").split("\n") if "==" in line
)
ROW = re.compile(r"^\| `([\w.]+)` \| (`.+?`) \|", re.MULTILINE)
PUBLIC = {
    (module, name)
    for module, names in ROW.findall((ROOT / "docs" / "api.md").read_text(encoding="utf-8"))
    for name in re.findall(r"`(\w+)`", names)
}


def test_the_version_is_the_same_wherever_it_stands():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, day = re.search(r"^## \[([\d.]+)\] - (\S+)$", changes, re.MULTILINE).groups()
    assert {PROJECT["version"], citation["version"], version} == {fl.__version__}
    assert str(citation["date-released"]) == day


@pytest.mark.parametrize(
    "extra", ["", *sorted(PROJECT["optional-dependencies"].keys() - {"docs"})]
)  # docs pins its own
def test_the_lock_has_a_fitting_version_of_every_requirement(extra):
    locked = {canonicalize_name(name): version for name, version in LOCK.items()}
    for text in PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]:
        wanted = Requirement(text)
        assert locked.get(canonicalize_name(wanted.name), "") in wanted.specifier, text


@pytest.mark.parametrize(("module", "name"), sorted(PUBLIC))
def test_a_public_name_can_be_imported_and_says_what_it_does(module, name):
    found = getattr(importlib.import_module(module), name)
    if inspect.isclass(found) or inspect.isfunction(found):
        assert inspect.getdoc(found), f"{module}.{name} has no docstring"


def test_recipes_import_public_names_alone():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    imported = {
        (node.module, alias.name)
        for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ("fl", "clients", "strategies", "sim")
        for alias in node.names
    }
    assert len(imported) > 20
    assert imported <= PUBLIC
