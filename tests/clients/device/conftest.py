"""A device in a folder, a server that can misbehave, and a second of something like speech."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.stub_server import StubServer
from clients.device.client import DeviceClient
from clients.device.http import RetryPolicy, ServerAddress
from clients.device.seal import SCRYPT
from clients.device.settings import DeviceSettings, initialize
from fl.packed.blob import PackedInfo, pack

INFO = PackedInfo(
    "whisper-base", "whisper:512x6+6:01", "", "gates", "trimmed", "ko", {"r": 2, "gate": "self"}, "float16"
)


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IDIOLECT_DEVICE", str(tmp_path / "default-device"))
    for name in ("IDIOLECT_TOKEN", "IDIOLECT_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _quick_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deriving a key is slow on purpose; one test does it as a device does."""
    monkeypatch.setitem(SCRYPT, "n", 2**5)


@pytest.fixture
def server() -> Iterator[StubServer]:
    with StubServer() as stub:
        yield stub


@pytest.fixture
def make_adapter() -> Callable[..., bytes]:
    """A maker of packed adapters of a few numbers; ``changes`` are those of what it says of itself."""

    def make(seed: int = 0, width: int = 6, **changes: object) -> bytes:
        generator = np.random.default_rng(seed)
        shapes = {"m.q.gated_lora_A": (2, width), "m.q.gated_lora_B": (5, 2), "m.q.gated_lora_gate_bias": (2,)}
        tensors = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        return pack(tensors, PackedInfo(**{**INFO.__dict__, **changes}))

    return make


@pytest.fixture
def waits() -> list[float]:
    """What a client waited between its attempts, in seconds."""
    return []


@pytest.fixture
def retry(waits: list[float]) -> RetryPolicy:
    """Without waiting: each wait is as long as it may be, and only written down."""
    return RetryPolicy(attempts=3, sleep=waits.append, uniform=lambda low, high: high, clock=lambda: sum(waits))


@pytest.fixture
def make_client(tmp_path: Path, server: StubServer, retry: RetryPolicy) -> Callable[..., DeviceClient]:
    """A maker of clients of one folder; settings as given."""

    def make(folder: str = "device", token: str = "", **settings: object) -> DeviceClient:
        chosen = initialize(tmp_path / folder, DeviceSettings(server=server.url, **settings))  # type: ignore[arg-type]
        return DeviceClient(tmp_path / folder, chosen, ServerAddress(server.url, token, timeout=5.0), retry=retry)

    return make


@pytest.fixture
def client(make_client: Callable[..., DeviceClient]) -> DeviceClient:
    return make_client()


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    """A second of noise at 16 kHz, 16 bit."""
    path = tmp_path / "김민수의 회의.wav"
    generator = np.random.default_rng(1)
    soundfile.write(path, (3000 * generator.standard_normal(16_000)).clip(-32768, 32767).astype(np.int16), 16_000)
    return path
