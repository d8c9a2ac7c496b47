"""Clients and strategies do not know which task they train: no name of one, no import of one, none of its words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from fl.metrics import METRICS
from fl.tasks.table import TASKS

ROOT = Path(__file__).parents[2]
# What a thin device is for: it records speech and asks a server for a transcript. It trains nothing here.
APPLICATION = re.compile(r"clients[./](?:device|thin)\b")
# Modules about one task, or about the data of one. fl.data.batching knows only sizes.
OF_A_TASK = re.compile(
    r"fl\.(speech|bases|serving)\b|fl\.tasks\.(?!(?:task|table|kind)\b)|fl\.data\.(?!batching)|fl\.data$"
)
METRIC_NAMES = {*METRICS, *(name for kind in TASKS.values() for name in kind.measures)} - {"error"}  # an ordinary word
WORDS = {
    "speech",
    "audio",
    "whisper",
    "wav2vec2",
    "utterance",
    "transcript",
    "speaker",
    "frames",
    "mel",
    "sentence",
    "image",
}


def modules() -> dict[str, str]:
    """Source text by path, of what trains and what aggregates."""
    paths = [path for package in ("clients", "strategies") for path in sorted((ROOT / package).rglob("*.py"))]
    found = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}
    return {path: text for path, text in found.items() if not APPLICATION.match(path)}


def _names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every name, attribute, keyword, argument and text in a module, with its line; docstrings are texts too."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Name):
            yield line, node.id
        elif isinstance(node, ast.Attribute):
            yield line, node.attr
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            yield line, node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield line, node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield line, node.value
        elif isinstance(node, ast.alias):
            yield line, node.name


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def mentions(sources: Mapping[str, str]) -> list[str]:
    """Where a task is known, with the word that gives it away."""
    constants = {name.upper().replace("-", "_") for name in TASKS}
    names = "|".join(re.escape(name) for name in {*TASKS, *constants, *METRIC_NAMES} - {"digits"})
    given_away = re.compile(rf"(?<![\w-])(?:{names})(?![\w-])|(?<![a-z])(?i:{'|'.join(sorted(WORDS))})s?(?![a-z])")
    found = []
    for path, text in sources.items():
        tree = ast.parse(text, path)
        found += [f"{path}:{line} imports {name}" for line, name in _imports(tree) if OF_A_TASK.match(name)]
        for line, name in _names(tree):
            if match := given_away.search(name) or re.fullmatch("digits", name):  # of a number, in prose
                found.append(f"{path}:{line} says {match[0]!r}")
    return found


def test_clients_and_strategies_know_no_task():
    sources = modules()
    assert {"clients/app.py", "clients/training/single.py", "strategies/app.py", "strategies/loop.py"} <= sources.keys()
    assert mentions(sources) == []


@pytest.mark.parametrize(
    "text",
    [
        "from fl.tasks.speech.task import SpeechTask",
        "def late():\n    import fl.tasks.noop",
        "from fl.settings.names import NO_OP",
        "from fl.tasks import text",
        "from fl.data.manifest import Utterance",
        "if config.data.task == 'digits': pass",
        "rate = counts['wer']",
        "LONG_FRAMES = 3",
        "def steps(utterances): pass",
        "x = task.audio",
        '"""Trains on speech."""',
    ],
)
def test_the_check_finds_what_gives_a_task_away(text):
    assert mentions({"clients/app.py": text})


@pytest.mark.parametrize(
    "text",
    [
        "from fl.tasks.task import Task",
        "from fl.tasks.table import load_task",
        "from fl.data.batching import buckets",
        "learns = worker.task.learns",
        "'lower the digits after the point' and error",
        "summer = framework = melody = 1",
    ],
)
def test_the_check_lets_other_words_pass(text):
    assert mentions({"clients/app.py": text.replace("digits", "decimals")}) == []
