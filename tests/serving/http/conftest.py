"""A server around a tiny random Whisper: packed adapters for it, recordings, an engine that answers as it is told."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fastapi import FastAPI
from starlette.testclient import TestClient

from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.layer import fresh_adapter
from fl.bases.resolve import load_base
from fl.bases.whisper.alignment import TimedWord
from fl.bases.whisper.base import WhisperBase
from fl.packed.blob import PackedInfo, pack
from fl.serving.engine.requests import Request, ServedAdapter, Stages, Transcript
from fl.serving.http.app import create_app
from fl.serving.http.auth import TokenFile, add_token
from fl.serving.http.limits import ServerLimits

SITES = ("encoder.self", "decoder.self", "decoder.cross")
URL = "http://127.0.0.1"


@pytest.fixture(scope="session")
def base() -> WhisperBase:
    return load_base("random:whisper-nano")


@dataclass
class FakeEngine:
    """Answers with ``texts`` (or seconds of audio and the adapter's digest), at once unless ``hold``; keeps what was asked."""

    text: Callable[[Request], str] | None = None
    error: Callable[[Request], Exception | None] = lambda request: None
    hold: bool = False
    asked: list[Request] = field(default_factory=list)
    futures: list[Future[Transcript]] = field(default_factory=list)
    submitted: threading.Event = field(default_factory=threading.Event)
    refuse: Exception | None = None
    closed: bool = False

    def check_adapter(self, adapter: ServedAdapter) -> None:
        if self.refuse is not None:
            raise self.refuse

    def submit(self, request: Request) -> Future[Transcript]:
        if self.refuse is not None:
            raise self.refuse
        future: Future[Transcript] = Future()
        self.asked.append(request)
        self.futures.append(future)
        self.submitted.set()
        if not self.hold:
            self.answer(len(self.asked) - 1)
        return future

    def answer(self, index: int) -> None:
        request, future = self.asked[index], self.futures[index]
        error = self.error(request)
        if error is not None:
            future.set_exception(error)
            return
        words = self.say(request).split()
        for count in range(1, len(words) + 1):
            if request.on_text is not None:
                request.on_text(" ".join(words[:count]))
        future.set_result(self.transcript(request))

    def say(self, request: Request) -> str:
        return self.text(request) if self.text is not None else "오늘 meeting 있어요"

    def transcript(self, request: Request) -> Transcript:
        text = self.say(request)
        spoken, seconds = text.split(), len(request.audio) / 16_000
        words = [TimedWord(w, i * seconds / len(spoken), (i + 1) * seconds / len(spoken)) for i, w in enumerate(spoken)]
        stages = Stages(0.5, 0.25, 0.125, 0.0625)
        return Transcript(text, tuple(range(len(spoken))), "ko", -0.5, "end", stages, words if request.words else ())

    def stats(self) -> dict[str, float]:
        return {"queued": 0.0, "running": float(len(self.futures))}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


def sound(seconds: float, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    """Noise under a moving envelope, (samples,)."""
    samples = int(seconds * rate)
    noise = np.random.default_rng(seed).normal(size=samples)
    envelope = 0.1 + np.abs(np.sin(np.arange(samples) / 2_000))
    return (0.1 * noise * envelope).astype(np.float32)


def encode(audio: np.ndarray, kind: str = "FLAC", rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, rate, format=kind)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def recording() -> Callable[..., bytes]:
    """Bytes of an audio file: ``recording(seconds, kind="FLAC", rate=16000, seed=0)``."""

    def make(seconds: float = 1.0, kind: str = "FLAC", rate: int = 16_000, seed: int = 0) -> bytes:
        return encode(sound(seconds, seed, rate), kind, rate)

    return make


@pytest.fixture(scope="session")
def packed(base: WhisperBase) -> Callable[..., bytes]:
    """A packed adapter for the base. Keywords replace parts of its info, ``config`` entries of its configuration."""

    def make(
        *,
        gate: str = "self",
        rank: int = 2,
        seed: int = 0,
        scale: float = 0.01,
        change: Callable[[dict[str, np.ndarray]], Any] = lambda tensors: None,
        config: Mapping[str, Any] | None = None,
        **info: Any,
    ) -> bytes:
        settings = GatedLoraConfig(
            r=rank, lora_alpha=4.0, gate=gate, target_modules=target_pattern(SITES), init_seed=seed
        )
        generator = np.random.default_rng(seed)
        tensors = {
            name: (scale * generator.standard_normal(tuple(tensor.shape))).astype(np.float32)
            for name, tensor in fresh_adapter(base.model, settings).items()
        }
        change(tensors)
        written = {
            "r": rank,
            "lora_alpha": 4.0,
            "gate": gate,
            "target_modules": target_pattern(SITES),
            **(config or {}),
        }
        facts = {
            "base_name": base.name,
            "base_fingerprint": base.fingerprint,
            "tokenizer": base.tokenizer.digest,
            "split": "gates",
            "window": "trimmed",
            "language": "ko",
            "dtype": "float16",
            **info,
        }
        return pack(tensors, PackedInfo(config=written, **facts))

    return make


class ManualClock:
    """Seconds that pass when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@dataclass
class TokenHolders:
    """A token file with the tokens of two people."""

    path: Path
    ann: str
    bob: str

    def header(self, token: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def people(tmp_path: Path) -> TokenHolders:
    path = tmp_path / "tokens.txt"
    return TokenHolders(path, add_token(path, "ann"), add_token(path, "bob"))


@pytest.fixture
def make_app(base: WhisperBase, engine: FakeEngine) -> Callable[..., FastAPI]:
    """An app on the fake engine; ``settings`` by keyword."""

    def make(tokens: TokenFile | None = None, adapt: Any = None, **settings: Any) -> FastAPI:
        return create_app(engine, base, ServerLimits(**settings), tokens=tokens, adapt=adapt)

    return make


@pytest.fixture
def client(make_app: Callable[..., FastAPI]) -> Iterator[TestClient]:
    """Without tokens."""
    with TestClient(make_app(), base_url=URL, raise_server_exceptions=False) as client:
        yield client
