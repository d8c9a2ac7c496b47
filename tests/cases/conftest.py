"""What people bring, as they bring it: each test makes its input on the spot and carries the cell of docs/compatibility.md that it
proves. ``make cases`` (IDIOLECT_CASES=1) writes the page; every other run only looks whether the page says the same."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest

from benchmarks.compatibility import PAGE, Cell, section, write
from fl.serving.http.auth import add_token


def _cells(item: pytest.Item) -> list[Cell]:
    return [(*mark.args,) for mark in item.iter_markers("case")]  # type: ignore[misc]


@pytest.fixture(autouse=True)
def on_the_page(request: pytest.FixtureRequest) -> None:
    """The page has each cell that the test carries."""
    cells = _cells(request.node)
    if "IDIOLECT_CASES" in os.environ:
        return
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    for table, row, _, answer in cells:
        cell = section(table, [(table, row, _, answer)]).splitlines()[-1].split("|")
        wanted = {part.strip() for part in cell if part.strip()}
        assert any(wanted <= {part.strip() for part in line.split("|")} for line in lines), f"{wanted}: run make cases"


_skipped: set[str] = set()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember what was not tried."""
    if report.skipped:
        _skipped.add(report.nodeid)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the page where every case holds. Workers of pytest-xdist have each a part of them: it is written without them."""
    cells = [cell for item in getattr(session, "items", ()) for cell in _cells(item)]
    if "IDIOLECT_CASES" in os.environ and exitstatus == 0 and "PYTEST_XDIST_TESTRUNUID" not in os.environ and cells:
        write(cells)
        for item in session.items:
            if item.nodeid in _skipped and (kept := _cells(item)):
                print(f"\nnot tried here, so the page says what an earlier run found: {kept}")


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """``serving(*options)``: the address of ``idiolect serve`` on a random base, a process for each list of options."""
    with ExitStack() as stack:

        @cache
        def start(*options: str) -> str:
            log = tmp_path_factory.mktemp("serving") / "log"
            command = [
                sys.executable,
                "-c",
                "from sim.cli.entry import main; main()",
                "serve",
                "--base",
                "random:whisper-nano",
                "--port",
                "0",
            ]
            process = subprocess.Popen([*command, *options], stderr=log.open("w"))
            stack.callback(process.wait)
            stack.callback(process.terminate)
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            return found[0]

        yield start


@pytest.fixture(scope="session")
def with_tokens(serving: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The address of a server with tokens that serves its base under any name, also to pages of two origins; and a token."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.txt"
    token = add_token(path, "phone")
    origins = ("--cors-origin", "app://obsidian.md", "--cors-origin", "http://page.localhost")
    return serving("--tokens", str(path), "--any-model", *origins), token
