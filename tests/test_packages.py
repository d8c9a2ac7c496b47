"""Another project's ``strategies`` or ``clients``: Idiolect's command works beside them or names the one that hides its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.superlink.grid import InMemoryGrid

from fl.core.apart import Apart
from fl.core.errors import CorpusError, PackageError
from fl.settings.config import make_config
from idiolect import PACKAGES, shadow
from sim.backends.run import run_simulation
from strategies.app import main as serve_run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Another Flower project with packages of all our names, as the current folder."""
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_our_own_packages_and_folders_that_are_no_packages_hide_nothing(tmp_path):
    (tmp_path / "strategies").mkdir()  # Python passes over a folder without __init__.py
    assert shadow([str(tmp_path), str(ROOT)]) == ""


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_or_module_that_stands_first_is_named_with_its_path(tmp_path, name):
    path = [str(tmp_path), str(ROOT)]
    (tmp_path / f"{name}.py").touch()
    assert str(tmp_path / f"{name}.py") in shadow(path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    assert f"{tmp_path / name} hides Idiolect's own package {name!r}" in shadow(path)
    assert shadow(path[::-1]) == ""


def test_the_check_needs_none_of_the_packages_that_it_checks():
    tree = ast.parse((ROOT / "idiolect.py").read_text(encoding="utf-8"))
    first = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name for node in first for name in (getattr(node, "module", None) or node.names[0].name,)}
    assert names
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


@pytest.mark.parametrize(("options", "code"), [(["-m"], 1), (["-P", "-m"], 0)])
def test_the_command_refuses_a_folder_that_python_searches_first_and_no_other(project, monkeypatch, options, code):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, *options, "idiolect", "device", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert (f"idiolect: {project / 'fl'} hides" in done.stderr) == bool(code)
    assert "Traceback" not in done.stderr


def test_a_run_on_ray_refuses_a_folder_whose_packages_its_workers_would_import(project):
    with pytest.raises(PackageError, match=rf"Ray's workers .* {project / 'fl'} hides .* --serial"):
        run_simulation(make_config({}), processes=True)


def test_a_simulation_of_flower_refuses_the_folder_where_its_superlink_was_started(project):
    with pytest.raises(PackageError, match=rf"SuperLink was started, and {project / 'fl'} hides"):
        serve_run(object.__new__(InMemoryGrid), context=None)


def test_a_parser_process_imports_nothing_from_the_current_folder(project):
    (project / "fl" / "__init__.py").write_text("raise SystemExit('not ours')", encoding="utf-8")
    with Apart("string:Formatter", CorpusError) as child:
        assert child.one("nothing", "parse", "answered") == ["answered", None, None, None]
