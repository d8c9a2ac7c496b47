"""A device whose adapter the real server trains: which tensors move, and which never do."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clients.device.adapt import PRIVATE_STEPS, AdaptOptions, check_adapted
from clients.device.client import DeviceClient
from clients.device.labelled import read_labelled
from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.layer import fresh_adapter
from fl.bases.resolve import load_base
from fl.core.errors import ConfigError, IdiolectError
from fl.packed.blob import PackedInfo, pack, unpack
from fl.settings.tables import TrainTable
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


def adapt(device: DeviceClient, labelled, options: AdaptOptions) -> dict[str, bool]:
    """Whether each tensor of the stored adapter moved, by name."""
    before = unpack(device.store.load())[0]
    device.adapt(labelled, options)
    after = unpack(device.store.load())[0]
    return {name: not np.array_equal(before[name], after[name]) for name in before}


def is_gate(name: str) -> bool:
    return "gated_lora_gate" in name


def test_by_default_the_gates_are_trained_and_every_a_and_b_stays_equal_to_the_bit(port, tmp_path, labelled):
    moved = adapt(client(tmp_path, port), labelled, AdaptOptions())
    assert len(moved) > 8
    assert moved == {name: is_gate(name) for name in moved}


def test_shared_steps_train_a_and_b_and_no_gate(port, tmp_path, labelled):
    moved = adapt(client(tmp_path, port), labelled, AdaptOptions(shared_steps=2))
    assert moved == {name: not is_gate(name) for name in moved}


def test_an_adapter_without_a_private_part_is_trained_by_shared_steps_alone(port, tmp_path, labelled):
    device = client(tmp_path, port, gate="none")
    before = device.store.load()
    with pytest.raises(IdiolectError, match="private"):  # the server's refusal, or the device's
        device.adapt(labelled, AdaptOptions())
    assert device.store.load() == before
    assert all(adapt(device, labelled, AdaptOptions(shared_steps=2)).values())


def test_a_server_that_trained_nothing_is_found_out():
    with pytest.raises(ConfigError, match="no private part; --shared-steps"):
        check_adapted(b"", b"", AdaptOptions(), {"private": []})


def test_the_default_is_as_many_steps_as_a_round_of_a_run():
    assert TrainTable().local_steps == PRIVATE_STEPS
