"""A device that the real server enrols: which tensors move, which never do, and what is stored."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clients.device.adapt import AdaptOptions
from clients.device.client import DeviceClient
from clients.device.labelled import read_labelled
from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.layer import fresh_adapter
from fl.bases.resolve import load_base
from fl.packed.blob import PackedInfo, pack, unpack
from sim.study.network.latency import AskingDevice
from sim.study.network.local import served

BASE = "random:whisper-nano"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with served(BASE) as port:
        yield port


def client(folder: Path, port: int, gate: str = "self") -> DeviceClient:
    """A device of the server with an adapter of small random numbers for its base."""
    base = load_base(BASE)
    config = GatedLoraConfig(r=2, lora_alpha=4.0, gate=gate, target_modules=target_pattern(("decoder.self",)))
    generator = np.random.default_rng(0)
    tensors = {
        name: (0.01 * generator.standard_normal(tuple(tensor.shape))).astype(np.float32)
        for name, tensor in fresh_adapter(base.model, config).items()
    }
    written = {"r": 2, "lora_alpha": 4.0, "gate": gate, "target_modules": config.target_modules}
    info = PackedInfo(base.name, base.fingerprint, "", "gates", "trimmed", "ko", written, "float32")
    return AskingDevice(folder / "device", pack(tensors, info)).client(port)


@pytest.fixture
def labelled(tmp_path):
    noise = np.random.default_rng(1).standard_normal(16_000)
    soundfile.write(tmp_path / "a.wav", 0.1 * noise, 16_000)
    (tmp_path / "a.txt").write_text("오늘 meeting 있어요")
    return read_labelled(tmp_path).utterances


def is_trained(name: str) -> bool:
    return "decoder" in name and name.endswith("_B")


@pytest.mark.parametrize("gate", ["self", "none"])
def test_b_of_the_decoder_is_enrolled_and_everything_else_stays_equal_to_the_bit(port, tmp_path, labelled, gate):
    device = client(tmp_path, port, gate)
    before, _ = unpack(device.store.load())
    info, report = device.enrol(labelled, AdaptOptions(keep=True))
    after, _ = unpack(device.store.load())
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert changed <= set(report["private"]) == {name for name in before if is_trained(name)}
    assert info.split == "fedsa"
    assert report["private_bytes"] < sum(before[name].nbytes for name in before if is_trained(name))


def test_an_adapter_that_does_not_help_is_not_stored(port, tmp_path):
    """Noise has nothing to learn: what another sentence says does not follow from this one."""
    for i, text in enumerate(["오늘 meeting", "내일", "we go home", "아니요"]):
        noise = np.random.default_rng(i).standard_normal(16_000)
        soundfile.write(tmp_path / f"{i}.wav", 0.1 * noise, 16_000)
        (tmp_path / f"{i}.txt").write_text(text)
    device = client(tmp_path, port)
    before = device.store.load()
    _, report = device.enrol(read_labelled(tmp_path).utterances, AdaptOptions(seed=1))
    kept = report["kept"]
    assert (device.store.load() == before) is not kept
    errors = [sum(one["errors"][i] for one in report["unseen"]) for i in (0, 1)]
    assert kept == (report["steps"] > 0 and errors[1] <= errors[0])
