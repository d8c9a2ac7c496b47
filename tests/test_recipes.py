"""Every recipe of CONTRIBUTING.md, taken from the page itself: its file at its path, its row in its table, a fact about the thing."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from runpy import run_path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pytest
import torch
from peft import get_peft_model
from safetensors.numpy import load_file
from torch import nn
from transformers import HubertConfig, HubertForCTC
from typer.main import get_command

from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.gates.table import GATES
from fl.adapters.state import adapter_parameters
from fl.aggregation.updates import DeviceUpdate
from fl.algorithms.base import Round
from fl.algorithms.table import ALGORITHMS, make_algorithm
from fl.bases.ctc.loading import CTC_ARCHITECTURES, ctc_config
from fl.bases.ctc.vocabulary import make_vocabulary
from fl.bases.resolve import BASE_KINDS, load_speech_base, random_base
from fl.codecs.base import CompressionError
from fl.codecs.table import CODECS, make_codec
from fl.core.errors import ConfigError, CorpusError
from fl.core.registry import Registry
from fl.core.rng import derive_random
from fl.data.importers.build import ImportPlan, import_corpus
from fl.data.importers.records import Options
from fl.data.importers.table import IMPORTERS
from fl.data.manifest import read_manifest
from fl.data.synthetic import load_pair
from fl.data.synthetic.grammar import LEVELS, generate
from fl.methods.base import Recipe
from fl.methods.recipes import attach
from fl.methods.table import METHODS
from fl.methods.targets import targeted
from fl.metrics import METRICS, Counts, score_utterance
from fl.protocol.guard import error_counts
from fl.settings.config import RunConfig, make_config
from fl.settings.names import SITES
from fl.speech.audio import save_audio
from fl.tasks.table import TASKS, load_task
from sim.backends.run import run_simulation
from sim.cli.app import app
from sim.cli.late import COMMANDS, LateGroup
from sim.study.catalog import read_study
from sim.study.plan import SIZES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
TABLES: dict[str, Registry[Any]] = {
    table.group: table for table in (ALGORITHMS, BASE_KINDS, CODECS, GATES, IMPORTERS, METHODS, METRICS, TASKS)
}
PACKAGES = ("fl", "clients", "strategies", "sim", "benchmarks")


@dataclass(frozen=True)
class PageRecipe:
    """One section of the page that has a file."""

    text: str

    def find(self, pattern: str) -> tuple[str, ...]:
        """The groups of a pattern in the text; empty where it does not match."""
        match = re.search(pattern, self.text, re.DOTALL)
        return match.groups() if match else ()

    @property
    def path(self) -> Path:
        return Path(*self.find(r"- File: `([^`]+)`"))

    @property
    def code(self) -> str:
        return "".join(self.find(r"```\w+\n(.*?)```"))

    @property
    def module(self) -> str:
        return ".".join(self.path.with_suffix("").parts)

    @property
    def row(self) -> tuple[str, ...]:
        """The row, the name of its table, and the file of that; empty without one."""
        return self.find(r"- Row: `([^`]+)`\s+in\s+`(\w+)`\s+of\s+`([^`]+)`")

    @property
    def point(self) -> tuple[str, ...]:
        """Name and group of the entry point; empty without one."""
        return self.find(r"entry\s+point\s+`(\w+)`.*?in\s+`(idiolect\.\w+)`")

    @property
    def value(self) -> ast.expr:
        """The thing of the row, without its key."""
        text = self.row[0]
        if text.startswith('"'):
            found = ast.parse(f"{{{text}}}", mode="eval").body
            assert isinstance(found, ast.Dict)
            return found.values[0]
        found = ast.parse(f"({text})", mode="eval").body
        assert isinstance(found, ast.Tuple)
        return found.elts[0]

    @property
    def needed(self) -> str:
        """The import that the row needs."""
        used = {node.id for node in ast.walk(self.value) if isinstance(node, ast.Name)}
        own = sorted(used & {name for node in ast.parse(self.code).body for name in _defined(node)})
        if own:
            return f"from {self.module} import {', '.join(own)}\n"
        package, _, stem = self.module.rpartition(".")
        return f"from {package} import {stem}\n" if stem in used else ""


def _defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} if isinstance(node, ast.Assign) else set()


RECIPES = {
    section.partition("\n")[0]: PageRecipe(section) for section in PAGE.split("\n## ")[1:] if "\n- File: " in section
}
POINTS = {title: recipe for title, recipe in RECIPES.items() if recipe.point}


@pytest.fixture(scope="module", autouse=True)
def placed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Each file at its path in a folder beside the project's own, and each row as an entry point of another distribution."""
    site = tmp_path_factory.mktemp("site")
    info = site / "recipes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: recipes\nVersion: 1.0\n")
    points: dict[str, list[str]] = {}
    for recipe in RECIPES.values():
        (site / recipe.path).parent.mkdir(parents=True, exist_ok=True)
        (site / recipe.path).write_text(recipe.code, encoding="utf-8")
        if recipe.point:
            name, group = recipe.point
            table = ".".join(Path(recipe.row[2]).with_suffix("").parts)
            row = f"from {table} import *\n{recipe.needed}THING = {ast.unparse(recipe.value)}\n"
            (site / f"recipe_{name}.py").write_text(row)
            points.setdefault(group, []).append(f"{name} = recipe_{name}:THING")
    (info / "entry_points.txt").write_text("\n".join(f"[{g}]\n" + "\n".join(lines) for g, lines in points.items()))

    def forget() -> None:
        error_counts.cache_clear()
        for table in TABLES.values():
            vars(table).pop("_all", None)

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        for package in {recipe.module.rpartition(".")[0] for recipe in RECIPES.values() if recipe.path.suffix == ".py"}:
            found = importlib.import_module(package)
            patch.setattr(found, "__path__", [*found.__path__, str(site.joinpath(*package.split(".")))])
        forget()
        yield site
    forget()
    for name in (*(recipe.module for recipe in RECIPES.values()), *(f"recipe_{r.point[0]}" for r in POINTS.values())):
        sys.modules.pop(name, None)


def module(title: str) -> ModuleType:
    return importlib.import_module(RECIPES[title].module)


# The page


def test_the_page_has_a_recipe_for_each_kind_of_thing_that_another_package_can_add() -> None:
    assert {recipe.point[1] for recipe in POINTS.values()} == set(TABLES)
    assert {"A language pair", "A study", "A figure"} <= set(RECIPES)


@pytest.mark.parametrize("title", POINTS)
def test_the_thing_is_known_by_the_name_on_the_page(title: str) -> None:
    name, group = RECIPES[title].point
    assert name in TABLES[group]
    assert getattr(TABLES[group][name], "name", name) == name


def test_every_file_that_the_page_names_is_there() -> None:
    named = {name for name in re.findall(r"`([\w./-]+)`", PROSE) if "/" in name}
    assert len(named) > 30
    made = {str(recipe.path) for recipe in RECIPES.values()}
    assert [name for name in sorted(named - made) if not (ROOT / name).exists()] == []
    assert not [name for name in made if (ROOT / name).exists()], "a recipe is for a thing that is not there yet"


def test_every_command_that_the_page_names_is_there() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = re.findall(r"^    make (\w+)", PAGE, re.MULTILINE)
    assert made
    assert set(made) <= set(targets)
    modules = re.findall(r"`python -m ([\w.]+)", PROSE)
    assert modules
    assert all(importlib.util.find_spec(name) for name in modules)
    commands = re.findall(r"`idiolect ([^`]+)`", PROSE)
    assert len(commands) > 3
    for line in commands:
        name, *words = shlex.split(line)
        command = LateGroup().load(name) if COMMANDS[name].place else get_command(app).commands[name]  # type: ignore[attr-defined]
        if isinstance(command, click.Group):
            inner = words.pop(0)
            command = command.commands[
                "strategies" if inner == "alphas" else inner
            ]  # whose file is not in this process
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, f"idiolect {line}"


def test_each_row_fits_into_its_table_and_the_project_still_passes_its_checks(tmp_path: Path) -> None:
    """What a newcomer does: a file and a row, in a copy of the project."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for file in ("idiolect.py", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "settings.md", tmp_path / "docs")
    files = []
    for recipe in RECIPES.values():
        files.append(tmp_path / recipe.path)
        files[-1].write_text(recipe.code, encoding="utf-8")
        if recipe.row:
            row, table, path = recipe.row
            place = tmp_path / path
            text, count = re.subn(
                rf"^({table}\b(?:: [^=]+)? = [^{{(]*(?:\(\s*\"\w+\",\s*)?[{{(])",
                lambda found, row=row: f"{found[0]}{row}",  # type: ignore[misc]
                place.read_text(encoding="utf-8"),
                flags=re.MULTILINE,
            )
            assert count == 1, f"{table} of {path}"
            place.write_text(text.replace("\nfrom fl.", f"\n{recipe.needed}from fl.", 1), encoding="utf-8")
    python = [str(file) for file in files if file.suffix == ".py"]
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *check, *python], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    layering = run_path(str(ROOT / "tests" / "test_layering.py"), run_name="layering")
    modules = layering["find_modules"](tmp_path)
    assert layering["wrong_arrows"](modules) == []
    assert layering["find_circle"](modules) == []
    tables = {recipe.row[2] for recipe in RECIPES.values() if recipe.row}
    rows = [f"assert {r.point[0]!r} in TABLES[{r.point[1]!r}]" for r in POINTS.values()]
    script = [
        "from importlib import import_module",
        "from fl.core.registry import Registry",
        f"modules = [import_module(name) for name in {[t.removesuffix('.py').replace('/', '.') for t in sorted(tables)]}]",
        "TABLES = {t.group: t for m in modules for t in vars(m).values() if isinstance(t, Registry)}",
        *rows,
        "from fl.settings.config import make_config",
        "assert make_config({'algorithm': 'majority', 'majority.step': 0.5}).algorithm.majority.step == 0.5",
        "from fl.data.synthetic import known_pairs",
        "assert 'de-en' in known_pairs()",
        "from sim.study.catalog import STUDIES",
        "assert 'alphas' in STUDIES",
        "from benchmarks.__main__ import choose",
        "assert [script.name for script in choose(['mean'])] == ['mean']",
        "from runpy import run_module",
        "run_module('sim.cli.generate', run_name='__main__')",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    page, project = ((tmp_path / name).read_text(encoding="utf-8") for name in ("docs/settings.md", "pyproject.toml"))
    assert "| `algorithm.majority.step` | `0.001` |" in page
    assert all(f" {word}, " in page for word in ("majority", "tanh", "parity", "ia3"))
    assert "\n[tool.flwr.app.config.algorithm.majority]\nstep = 0.001\n" in project


# The things


def test_the_algorithm_takes_a_step_where_most_devices_agree() -> None:
    rows = {"a": [1.0, -3.0, 0.0], "b": [2.0, -1.0, 5.0], "c": [-9.0, 2.0, -0.1]}
    updates = tuple(DeviceUpdate(name, {"B": np.array(row, np.float32)}) for name, row in rows.items())
    half = make_algorithm(RunConfig(), "majority").aggregator()
    for order in (updates, updates[::-1]):
        assert half.aggregate(Round(1, {"B": np.zeros(3)}, order))["B"].tolist() == [0.001, -0.001, 0.0]
    with pytest.raises(ConfigError, match="majority"):
        make_config({"algorithm": "majority", "secure-sum": "pairwise"})


class OneMap(nn.Module):
    """The smallest model that takes an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(5, 4, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.map(x)  # type: ignore[no-any-return]


def test_the_gate_is_neutral_when_fresh_and_computes_its_formula() -> None:
    found = {}
    for gate in ("none", "tanh"):
        torch.manual_seed(0)
        config = GatedLoraConfig(r=2, lora_alpha=6.0, gate=gate, target_modules=["map"], init_seed=7)
        found[gate] = get_peft_model(OneMap(), config).double().eval()  # type: ignore[arg-type]
        with torch.no_grad():
            parameter(found[gate], "B").normal_()
    lora, gated = (found[gate] for gate in ("none", "tanh"))
    x = torch.randn(3, 5, dtype=torch.float64)
    with torch.no_grad():
        gated.load_state_dict(lora.state_dict(), strict=False)
        assert torch.equal(gated(x), lora(x))
        a, b, scale = (parameter(gated, what) for what in ("A", "B", "gate_scale"))
        scale.copy_(torch.tensor([0.5, -2.0]))
        z = x @ a.T
        expected = gated.base_model.model.map.base_layer(x) + 3.0 * (z * (1 + torch.tanh(z * scale))) @ b.T
        torch.testing.assert_close(gated(x), expected)


def parameter(model: nn.Module, what: str) -> nn.Parameter:
    return next(p for name, p in adapter_parameters(model).items() if name.endswith(f"_{what}"))


def test_the_codec_decodes_within_its_bound_and_checks_what_it_reads() -> None:
    random = np.random.default_rng(0)
    values = (random.standard_normal(4_000) * 10.0 ** random.uniform(-44, 37, 4_000)).astype(np.float32)
    codec = make_codec("bf16")
    payload = codec.encode(values)
    assert len(payload) == 2 * len(values)
    error = np.abs(codec.decode(payload, len(values)).astype(np.float64) - values)
    assert (error <= np.maximum(2.0**-7 * np.abs(values, dtype=np.float64), 2.0**-133)).all()
    exact = np.array([1.5, -2.0, 0.0, 96.0], np.float32)
    assert codec.decode(codec.encode(exact), 4).tolist() == exact.tolist()
    for broken in (payload[1:], codec.encode(np.full(len(values), np.inf, np.float32))):
        with pytest.raises(CompressionError):
            codec.decode(broken, len(values))
    largest = make_codec("top-k:0.5+bf16")
    assert largest.decode(largest.encode(np.array([3, -1, 2], np.float32)), 3).tolist() == [3, 0, 2]


def test_the_metric_counts_sentences_with_the_others() -> None:
    pairs = [("a b c", "a b c"), ("a b c", "a x"), ("a", "")]
    scores = [score_utterance(*pair).metrics for pair in pairs]
    assert sum((found["ser"] for found in scores), Counts()) == Counts(substitutions=2, reference=3)
    assert set(scores[0]) == set(METRICS) > {"ser", "wer"}


def test_the_task_has_devices_and_a_loss_and_trains(tmp_path: Path) -> None:
    values = {"task": "parity", "devices": 2, "new-people": 1, "rank": 2, "local-steps": 2, "rounds": 1}
    config = make_config({**values, "arms": "global", "gate": "none", "output": str(tmp_path / "run")})
    task = load_task(config)
    assert [task.is_new(device) for device in task.device_ids()] == [False, False, True]
    assert not task.device("person-2").train
    examples = task.device("person-0").train
    assert {example.target == "odd" for example in examples} == {int(e.inputs.sum()) % 2 == 1 for e in examples}
    sums, labels = task.losses(task.model, examples)
    torch.testing.assert_close(task.loss(task.model, examples), sums.sum() / labels.sum())
    torch.testing.assert_close(task.losses(task.model, examples[:1])[0], sums[:1])
    (prediction,) = task.predict(task.model, examples[:1], adapted=False, beams=1)
    wrong = int(prediction != examples[0].target)
    assert task.score(examples[0], prediction) == {"error": Counts(substitutions=wrong, reference=1)}
    with pytest.raises(ConfigError, match="task parity has examples of its own"):
        load_task(config.changed({"manifest": "/data/speech.jsonl"}))
    assert shared(run_simulation(config, serial=True)), "a round has trained"


def test_the_importer_reads_a_corpus_and_names_a_broken_line(tmp_path: Path) -> None:
    noise = (0.1 * np.random.default_rng(0).standard_normal(8_000)).astype(np.float32)
    for name in ("a.wav", "b.wav"):
        save_audio(tmp_path / name, noise)
    place = tmp_path / "list.txt"
    place.write_text("a.wav|ann|hello there\nb.wav|ben|good morning\n")
    import_corpus("piped", tmp_path, Options(), ImportPlan(out=tmp_path / "out"))
    rows = [(row.speaker, row.text) for row in read_manifest(tmp_path / "out" / "manifest.jsonl")]
    assert rows == [("ann", "hello there"), ("ben", "good morning")]
    place.write_text("a.wav|ann|hello there\nb.wav|ben\n")
    with pytest.raises(CorpusError, match=r"list\.txt:2: 2 fields"):
        import_corpus("piped", tmp_path, Options(), ImportPlan())


def test_the_method_changes_nothing_when_fresh_and_trains_its_shapes() -> None:
    base, recipe = random_base("random:whisper-nano"), Recipe("ia3", 1, 1.0, "none", target_pattern(SITES), 7)
    mel = np.random.default_rng(0).normal(0.0, 0.5, (base.mels, 50)).astype(np.float16)
    batch = base.collate([mel], ["meeting"], language="ko")
    frozen, adapted = base.loss(base.model, batch), attach(base.new_model(), recipe)
    assert adapted.shapes() == {
        f"{name}.ia3_scale": (m.out_features,) for name, m in targeted(base.model, recipe.targets)
    }
    loss = base.loss(adapted.model, batch)
    assert torch.equal(loss, frozen)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.any() for n, p in adapted.parameters.items() if "v_proj" in n)
    assert make_config({"method": "ia3", "gate": "none", "arms": "global"}).adapter.method == "ia3"


def test_the_base_computes_what_transformers_does(tmp_path: Path) -> None:
    vocabulary = make_vocabulary("latin")
    shape = ctc_config(CTC_ARCHITECTURES["wav2vec2-nano"], len(vocabulary)).to_dict()
    torch.manual_seed(0)
    hubert = HubertForCTC(HubertConfig.from_dict({**shape, "model_type": "hubert"})).eval()
    hubert.save_pretrained(tmp_path / "base")  # type: ignore[operator]
    vocabulary.save(tmp_path / "base")
    base = load_speech_base(str(tmp_path / "base"), cache=tmp_path / "cache")
    assert type(base).__name__ == "HubertBase"
    sound = torch.randn(1, 8_000)
    with torch.inference_mode():
        torch.testing.assert_close(base.model(sound).logits, hubert(sound).logits)


def test_the_language_pair_writes_every_level_with_its_loanwords(placed: Path) -> None:
    pair = load_pair(str(placed / RECIPES["A language pair"].path))
    assert (pair.id, pair.loanwords()["Klipp"]) == ("de-en", "clip")
    for level in LEVELS:
        sentence = generate(pair, level=level, topic="work", register=0, random=derive_random("recipe", level))
        written = sentence.write(pair, lambda matrix, latin: True)
        assert written.loanwords
        assert all(latin in written.text.split() for _, latin in written.loanwords)


def test_the_study_is_of_runs_that_could_be_made(placed: Path) -> None:
    study = read_study(placed / RECIPES["A study"].path)
    for size in SIZES.values():
        runs = [study.config(cell, size, 1, "") for cell in study.chosen(size)]
        alphas = [run.adapter.alpha for run in runs]
        assert len(set(alphas)) == len(alphas) >= 3


def test_the_figure_is_measured_and_keeps_nothing_in_a_smoke_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mean", "--smoke"])
    assert module("A figure").main() == 0
    assert "not written" in capsys.readouterr().out


def test_algorithm_gate_codec_and_metric_work_together_in_a_run(
    tmp_path: Path, noise_manifest: Callable[..., Path], own_home: Path
) -> None:
    config = make_config(
        {
            "base": "random:whisper-nano",
            "manifest": str(noise_manifest(["ann", "ben"], 5)),
            "language": "ko",
            "algorithm": "majority",
            "gate": "tanh",
            "codec": "bf16",
            "arms": "personalized",
            "rounds": 1,
            "local-steps": 2,
            "private-share": 0.5,
            "rank": 2,
            "new-people": 0,
            "output": str(tmp_path / "run"),
        }
    )
    folder = run_simulation(config, serial=True)
    steps = np.concatenate([values.ravel() for values in shared(folder).values()])
    assert set(np.unique(np.abs(steps))) <= {0.0, np.float32(0.001)}, "B starts at zero, and signs have one size"
    assert '"ser' in (folder / "results.jsonl").read_text()


def shared(folder: Path) -> dict[str, np.ndarray]:
    """The shared B of a run that have moved; they start at zero."""
    (path,) = (p for p in (folder / "checkpoints").glob("*.safetensors") if ".state" not in p.name)
    return {name: values for name, values in load_file(path).items() if name.endswith("_B") and values.any()}
