"""Wheel and sdist in clean environments: the command, the Flower app, and a folder of somebody else's Flower project.

Installs everything twice, so only ``make install-test`` runs it.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("fl", "clients", "strategies", "sim")
TINY = "run --base random:whisper-nano --devices 2 --new-people 1 --sentences 24 --arms personalized --rounds 1 --local-steps 1"
LOAD_APP = """
import sys
from flwr.supercore.object_ref import load_app
for name in ("strategies.app:app", "clients.app:app"):
    app = load_app(name, ImportError, sys.argv[1])
    print(type(app).__name__, sys.modules[name.partition(":")[0]].__file__)
"""

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


class Installed:
    """A distribution in an environment of its own, with what its command needs and nothing else."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self.archive, self.bin = archive, folder / "bin"
        subprocess.run([getattr(sys, "_base_executable", sys.executable), "-m", "venv", folder], check=True)
        self.python("-m", "pip", "install", "-q", "-c", str(ROOT / "requirements.lock"), f"{archive}[synth]", "pytest")
        self.site = Path(self.python("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())

    def run(self, program: str, *words: str, cwd: Path | None = None, code: int = 0, **more: str):
        """The finished process of a program of this environment; its exit code must be ``code``."""
        plain = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        env = {**plain, "PATH": f"{self.bin}{os.pathsep}{plain['PATH']}", "OMP_NUM_THREADS": "1", **more}
        done = subprocess.run(
            [self.bin / program, *words], cwd=cwd or self.bin, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done

    def python(self, *words: str, cwd: Path | None = None, code: int = 0, **more: str):
        """The same for Python."""
        return self.run("python", *words, cwd=cwd, code=code, **more)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Both archives, built from the tree as it is."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def installed(request, archives, tmp_path_factory):
    return Installed(archives[request.param], tmp_path_factory.mktemp(request.param) / "env")


@pytest.fixture
def project(tmp_path):
    """Somebody else's Flower project, with a strategy and clients of its own."""
    for name in ("strategies", "clients"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "app.py").write_text("app = 'theirs'\n", encoding="utf-8")
    (tmp_path / "test_theirs.py").write_text(
        "import pytest\nfrom clients.app import app\nfrom fl.algorithms.table import ALGORITHMS\n"
        "from fl.core.errors import PackageError\nfrom fl.settings.config import make_config\n"
        "from sim.backends.run import run_simulation\n\n\n"
        "def test_their_packages_are_theirs_and_a_run_of_ours_is_refused():\n"
        "    assert app == 'theirs' and 'krum' in ALGORITHMS\n"
        "    with pytest.raises(PackageError, match='hides'):\n"
        "        run_simulation(make_config({}), serial=True)\n",
        encoding="utf-8",
    )
    return tmp_path


def files(folder: Path) -> set[str]:
    """Every file of our packages under ``folder``, without what Python compiled."""
    found = (path for name in PACKAGES for path in (folder / name).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)) for path in found if "__pycache__" not in path.parts}


def test_everything_that_the_tree_has_is_installed(installed):
    assert files(installed.site) == files(ROOT)
    assert {f"{name}/py.typed" for name in PACKAGES} < files(ROOT)


def test_the_command_works_and_trains(installed, tmp_path):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert installed.run("idiolect", "--version", cwd=tmp_path).stdout.strip() == f"idiolect {version}"
    assert "demo" in installed.run("idiolect", "--help", cwd=tmp_path).stdout
    installed.run("idiolect", *TINY.split(), "--output", "out", cwd=tmp_path)
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_flower_loads_the_installed_app(installed, tmp_path):
    """As for a project whose pyproject.toml names ``strategies.app:app`` and ``clients.app:app``."""
    found = installed.python("-P", "-c", LOAD_APP, str(tmp_path), cwd=tmp_path).stdout.split()
    assert found == [
        *("ServerApp", str(installed.site / "strategies" / "app.py")),
        *("ClientApp", str(installed.site / "clients" / "app.py")),
    ]


def test_flower_builds_the_app_of_the_source_archive_and_loads_it_before_the_installed_one(
    installed, archives, tmp_path
):
    with tarfile.open(archives["sdist"]) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    source = unpacked.rename(tmp_path / "source")  # Flower refuses a name like idiolect_fl-0.2.0
    installed.run("flwr", "build", cwd=source, FLWR_HOME=str(tmp_path / "flwr"), FLWR_TELEMETRY_ENABLED="0")
    (bundle,) = source.glob("*.fab")
    app = tmp_path / "app"
    zipfile.ZipFile(bundle).extractall(app)
    shutil.rmtree(source)
    found = installed.python("-P", "-c", LOAD_APP, str(app), cwd=tmp_path).stdout.split()
    assert found == ["ServerApp", str(app / "strategies" / "app.py"), "ClientApp", str(app / "clients" / "app.py")]


def test_in_the_folder_of_another_project_the_command_runs_and_refuses_ray(installed, project):
    installed.run("idiolect", *TINY.split(), "--output", "out", cwd=project)
    refused = installed.run("idiolect", *TINY.split(), "--processes", "--output", "other", cwd=project, code=1).stderr
    assert f"{project / 'clients'} hides" in " ".join(refused.split())
    assert "--serial" in refused


@pytest.mark.parametrize("start", ["module", "path"])
def test_where_python_finds_another_project_first_the_command_names_it(installed, project, start):
    words = ["idiolect", "--version"]
    if start == "module":
        refused = installed.python("-m", *words, cwd=project, code=1)
    else:
        refused = installed.run(*words, cwd=project, code=1, PYTHONPATH=str(project))
    assert refused.stderr.startswith(f"idiolect: {project / 'clients'} hides Idiolect's own package 'clients'")
    assert "Traceback" not in refused.stderr


def test_the_other_project_keeps_its_packages_in_its_tests_and_for_flower(installed, project):
    installed.python("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project)
    found = installed.python("-P", "-c", LOAD_APP, str(project), cwd=project).stdout.split()
    assert found == ["str", str(project / "strategies" / "app.py"), "str", str(project / "clients" / "app.py")]


def test_a_folder_without_init_of_another_project_is_hidden_by_ours_as_the_page_says(installed, tmp_path):
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "mine.py").touch()
    installed.python("-c", "import strategies.mine", cwd=tmp_path, code=1)
    (tmp_path / "strategies" / "__init__.py").touch()
    installed.python("-c", "import strategies.mine", cwd=tmp_path)
