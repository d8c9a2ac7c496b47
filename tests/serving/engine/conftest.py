"""A tiny random Whisper, adapters that change what it says, and what it says with each of them alone."""

from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.files import AdapterInfo
from fl.adapters.layer import fresh_adapter
from fl.adapters.stacked import Slot, StackedAdapters, StackedModel
from fl.bases.resolve import load_base
from fl.bases.whisper.base import WhisperBase
from fl.bases.whisper.decoding import Hypothesis
from fl.serving.engine.engine import BatchEngine, EngineSettings
from fl.serving.engine.requests import Request, ServedAdapter, Transcript
from fl.settings.names import SITES
from fl.speech.features import heard_frames

ALL_SITES = tuple(SITES)


@pytest.fixture(scope="session")
def nano() -> WhisperBase:
    return load_base("random:whisper-nano")


@pytest.fixture(scope="session")
def speech() -> Callable[..., np.ndarray]:
    def make(seconds: float, seed: int = 0) -> np.ndarray:
        samples = int(seconds * 16_000)
        noise = np.random.default_rng(seed).normal(size=samples)
        envelope = 0.1 + np.abs(np.sin(np.arange(samples) / 2_000 * (1 + seed % 3)))
        return (0.1 * noise * envelope).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def served(nano: WhisperBase) -> Callable[..., ServedAdapter]:
    """A maker of adapters whose B and gates are far from zero, so that two of them never say the same."""

    def make(
        seed: int,
        gate: str = "self",
        rank: int = 4,
        sites: tuple[str, ...] = ALL_SITES,
        language: str = "ko",
        window: str = "trimmed",
        scale: float = 0.3,
    ) -> ServedAdapter:
        config = GatedLoraConfig(
            r=rank, lora_alpha=2.0 * rank, gate=gate, target_modules=target_pattern(sites), init_seed=seed
        )
        generator = torch.Generator().manual_seed(seed)
        fresh = fresh_adapter(nano.new_model(), config)
        tensors = {
            name: tensor if name.endswith("_A") else scale * torch.randn(tensor.shape, generator=generator)
            for name, tensor in fresh.items()
        }
        info = AdapterInfo(nano.name, nano.fingerprint, "gates", config, window=window, language=language)
        return ServedAdapter(tensors, Slot.of(config), info, f"digest-{seed}")

    return make


@pytest.fixture(scope="session")
def alone(nano: WhisperBase) -> Callable[[Request], tuple[str, Hypothesis]]:
    """The reference: one request at a time through the base's own decoding, with a stack of one adapter."""

    def transcribe(request: Request) -> tuple[str, Hypothesis]:
        adapter = request.adapter
        window = "full" if adapter is None or adapter.info.window == "full" else "trimmed"
        language = request.language or (adapter.info.language if adapter else "")
        batch = nano.collate([nano.features(request.audio, window)], None, window, language or None)
        host = StackedModel(nano.new_model(), target_pattern(ALL_SITES))
        heard = [heard_frames(len(request.audio))]
        options = {"beams": request.beams, "max_new_tokens": request.max_new_tokens, "heard": heard}
        options["prompt"] = nano.tokenizer.decode(request.prompt[1:])
        if adapter is None:
            found = nano.transcribe(host.model, batch, **options)
        else:
            stack = StackedAdapters.from_states([adapter.slot], [adapter.tensors])
            with host.rows(stack, [0]) as model:
                found = nano.transcribe(model, batch, **options)
        return nano.tokenizer.decode(found[0].tokens), found[0]

    return transcribe


@pytest.fixture
def engine(nano: WhisperBase) -> Callable[..., BatchEngine]:
    """Engines without a thread: the test turns the wheel, so nothing depends on time."""

    def make(**settings: object) -> BatchEngine:
        return BatchEngine(nano, EngineSettings(**settings), start=False)  # type: ignore[arg-type]

    return make


@pytest.fixture
def finish() -> Callable[[BatchEngine, list[Future[Transcript]]], list[Transcript]]:
    """Turn the wheel until nothing is left."""

    def run(engine: BatchEngine, futures: list[Future[Transcript]]) -> list[Transcript]:
        while engine.turn():
            pass
        return [future.result(timeout=0) for future in futures]

    return run


@pytest.fixture
def same(alone) -> Callable[[Transcript, Request], None]:
    """Assert that a transcript is what the request gets alone."""

    def check(found: Transcript, request: Request) -> None:
        text, hypothesis = alone(request)
        assert found.tokens == hypothesis.tokens
        assert found.text == text
        assert found.reason == hypothesis.reason
        assert found.log_prob == pytest.approx(hypothesis.log_prob, abs=1e-3)

    return check
