"""Nothing is unpickled on any path: a pickle that would write a file is fed to every loader; test_security.py looks at the modules."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from clients.store import DeviceStore
from fl.adapters.files import load_adapter
from fl.bases.resolve import load_speech_base, random_base
from fl.codecs.table import CODECS, make_codec
from fl.core.errors import IdiolectError
from fl.data.importers.build import ImportPlan, import_corpus
from fl.data.importers.records import Options
from fl.data.manifest import read_manifest
from fl.methods.files import load_method
from fl.packed.blob import unpack
from fl.packed.folder import pack_folder
from fl.protocol.reply import Expected
from fl.protocol.wire import from_arrays
from fl.runs.files import read_run
from strategies.checkpoint import checkpoint_path, load_checkpoint


class Bomb:
    """Writes ``path`` when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture
def fired(tmp_path):
    return tmp_path / "fired"


@pytest.fixture(params=["pickle", "old pickle", "torch", "old torch", "npy", "npz"])
def bomb(request, fired):
    """A file of a kind that some library unpickles, which writes ``fired`` when one does."""
    file = io.BytesIO()
    if request.param.endswith("pickle"):
        file.write(pickle.dumps(Bomb(fired), 0 if "old" in request.param else 5))
    elif request.param.endswith("torch"):
        torch.save({"weight": Bomb(fired)}, file, _use_new_zipfile_serialization="old" not in request.param)
    elif request.param == "npy":
        np.save(file, np.array([Bomb(fired)], object), allow_pickle=True)
    else:
        np.savez(file, weight=np.array([Bomb(fired)], object), allow_pickle=True)
    return file.getvalue()


@pytest.fixture(autouse=True)
def _nothing_was_unpickled(request, fired):
    yield
    if request.node.originalname != "test_the_bomb_works":
        assert not fired.exists(), "a pickle was opened"


def test_the_bomb_works(fired):
    pickle.loads(pickle.dumps(Bomb(fired)))  # noqa: S301 - that is what the others must not do
    assert fired.exists()


WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("load", [load_adapter, load_method, pack_folder])
def test_an_adapter(tmp_path, bomb, load, name):
    config = {"peft_type": "GATED_LORA", "r": 2, "lora_alpha": 2, "target_modules": "q_proj"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / name).write_bytes(bomb)
    with pytest.raises(IdiolectError):
        load(tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(bomb)
    with pytest.raises(IdiolectError):
        load(tmp_path)


def test_a_blob(bomb):
    with pytest.raises(IdiolectError):
        unpack(bomb)
    with pytest.raises(IdiolectError):
        unpack(len(bomb).to_bytes(8, "little") + bomb)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json", "tokenizer.json"]
)
def test_a_base(tmp_path, bomb, name):
    random_base("random:whisper-nano").model.save_pretrained(tmp_path / "base")
    if name != "tokenizer.json":
        (tmp_path / "base" / "model.safetensors").unlink()
    (tmp_path / "base" / name).write_bytes(bomb)
    with pytest.raises(IdiolectError):
        load_speech_base(str(tmp_path / "base"))


def test_a_checkpoint(tmp_path, bomb):
    checkpoint_path(tmp_path, "global").parent.mkdir(parents=True, exist_ok=True)
    checkpoint_path(tmp_path, "global").write_bytes(bomb)
    with pytest.raises(IdiolectError):
        load_checkpoint(tmp_path, "global", "f")


def test_a_private_state(tmp_path, bomb):
    store = DeviceStore(tmp_path, "f")
    store.save("global", "ann", 1, {"gate": torch.zeros(2)})
    (state,) = store.folder("global", "ann").iterdir()
    state.write_bytes(bomb)
    with pytest.raises(IdiolectError):
        store.load("global", "ann", {"gate": (2,)}, before=2)


@pytest.mark.parametrize("dtype", ["float32", "object"])
@pytest.mark.parametrize("stype", ["numpy.ndarray", "pickle"])
def test_an_array_of_a_message(bomb, dtype, stype):
    array = Array(dtype=dtype, shape=(1,), stype=stype, data=bomb)
    with pytest.raises(IdiolectError):
        Expected((1,), ("float32",)).decode("weight", array)
    with pytest.raises(
        (ValueError, TypeError, EOFError, OSError, KeyError)
    ):  # a node's own mod answers with the type alone
        from_arrays(ArrayRecord({"weight": array}))


@pytest.mark.parametrize("name", CODECS)
def test_an_encoding(bomb, name):
    codec = make_codec(f"{name}:0.5" if name == "top-k" else name)
    with pytest.raises(IdiolectError):
        codec.decode(np.frombuffer(bomb, np.uint8), 7)


def test_a_run_folder_and_a_manifest(tmp_path, bomb):
    for name in ("config.json", "results.jsonl", "costs.json", "manifest.jsonl"):
        (tmp_path / name).write_bytes(bomb)
    with pytest.raises(IdiolectError):
        read_run(tmp_path)
    with pytest.raises(IdiolectError):
        read_manifest(tmp_path / "manifest.jsonl")


def test_a_corpus(tmp_path, bomb):
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    rows = {"text": ["hello there"], "speaker": ["ann"], "audio": [{"bytes": bomb, "path": "a.wav"}], "extra": [bomb]}
    # what PyExtensionType had unpickled when a file was opened (CVE-2023-47248)
    noted = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": bomb}
    table = pa.table(rows)
    schema = pa.schema([field.with_metadata(noted) if field.name == "extra" else field for field in table.schema])
    table = table.cast(schema)
    for kind in ("parquet", "arrow"):
        folder = tmp_path / kind
        folder.mkdir()
        if kind == "parquet":
            pa.parquet.write_table(table, folder / "train.parquet")
        else:
            with pa.ipc.new_stream(str(folder / "train.arrow"), table.schema) as stream:
                stream.write_table(table)
        with pytest.raises(IdiolectError, match=r"the audio in row 1: cannot be read|is damaged|not a"):
            import_corpus("huggingface", folder, Options(), ImportPlan())
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        file.writestr("metadata.csv", bomb)
    with pytest.raises(IdiolectError):
        import_corpus("huggingface", tmp_path / "set.zip", Options(), ImportPlan(out=tmp_path / "out"))
