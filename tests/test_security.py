"""What SECURITY.md promises: the tests that it names are there, and nothing that is read can run."""

import ast
import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict

from clients.app import app as client_app
from fl.protocol.wire import JOB, SETTINGS_RECORD, SHARED, Job, from_arrays, settings_record
from fl.settings.config import make_config
from sim.backends.serial import SerialGrid

ROOT = Path(__file__).parents[1]
NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
RUNNERS = {
    "eval",
    "exec",
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "np.load",
    "numpy.load",
    "np.fromfile",
    "pandas.read_pickle",
}
SWITCHES = ("trust_remote_code", "allow_pickle")


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED)))
def test_each_promise_names_a_test_that_is_there(path: str, name: str) -> None:
    assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8") or not name


def _dangers(source: str) -> set[str]:
    """What in a module could run what it reads."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names if alias.name.partition(".")[0] in UNPICKLERS}
            case ast.ImportFrom(module=str(module), names=names):
                found |= {module} if module.partition(".")[0] in UNPICKLERS else set()
                found |= {f"{module}.{alias.name}" for alias in names} & RUNNERS
            case ast.Call(func=function, args=arguments, keywords=keywords):
                called = ast.unparse(function)
                found |= {called} & RUNNERS
                found |= {k.arg for k in keywords if k.arg in SWITCHES and ast.unparse(k.value) != "False"}
                first = arguments[0].value if arguments and isinstance(arguments[0], ast.Constant) else None
                if called.endswith(("import_module", "__import__")) and str(first).partition(".")[0] in UNPICKLERS:
                    found.add(str(first))
    return found


@pytest.mark.parametrize(
    "source",
    ["import pickle", "import os, pickle as p", "from pickle import loads", "from joblib import load", "import joblib.memory",
     "from torch import load", "import importlib\nimportlib.import_module('dill')", "torch.load(x)", "np.load(file)",
     "f(x, allow_pickle=True)", "f(trust_remote_code=code)", "eval(x)", "def late():\n    import marshal"],
)  # fmt: skip
def test_what_could_run_is_found(source: str) -> None:
    assert _dangers(source)


def test_what_could_not_run_passes() -> None:
    assert not _dangers("import json\nfrom safetensors.torch import load_file\nnp.frombuffer(x)\nf(allow_pickle=False)")


@pytest.mark.parametrize("package", ["fl", "clients", "strategies", "sim", "benchmarks"])
def test_no_module_can_unpickle_or_run_what_it_reads(package: str) -> None:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths
    assert {str(p): found for p in paths if (found := _dangers(p.read_text(encoding="utf-8")))} == {}


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.trace), "w")


@pytest.mark.parametrize("stype", ["numpy.ndarray", "pickle"])
def test_a_pickle_in_a_message_is_not_opened_by_a_device(
    noise_manifest: Callable[..., Path], tmp_path: Path, stype: str
) -> None:
    trace, store = tmp_path / "opened", tmp_path / "store"
    values = np.array([Bomb(trace)], dtype=object)
    packed = io.BytesIO()
    np.save(packed, values, allow_pickle=True)
    data = pickle.dumps(values) if stype == "pickle" else packed.getvalue()
    arrays = ArrayRecord({"layer.lora_A": Array("object", (1,), stype, data)})
    with pytest.raises((ValueError, TypeError)):
        from_arrays(arrays)
    config = make_config({"base.name": "random:whisper-nano", "base.language": "ko", "data.manifest": "own"})
    content = RecordDict(
        {
            JOB: Job(arm="global", round=1, devices=("ann",)).to_record(),
            SETTINGS_RECORD: settings_record(config),
            SHARED: arrays,
        }
    )
    grid = SerialGrid(client_app, nodes=1)
    manifest = noise_manifest(["ann"], 6)
    grid._contexts[1].node_config = {"device-id": "ann", "store": str(store), "manifest": str(manifest)}
    for kind in (MessageType.TRAIN, MessageType.EVALUATE):
        (reply,) = grid.send_and_receive([Message(content, dst_node_id=1, message_type=kind)])
        assert reply.has_error()
        assert not trace.exists()
    pickle.loads(pickle.dumps(values))  # noqa: S301 - the bomb is sharp
    assert trace.exists()
