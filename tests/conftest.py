"""For all tests: none depends on timing, so no example of a property has a deadline. And speech that is noise, for whole runs."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from fl.core.registry import Registry
from fl.data.manifest import Utterance, write_manifest
from fl.speech.audio import save_audio

# New examples at each run at a desk; the same ones on a build server, whose failures must be somebody's change.
settings.register_profile("idiolect", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("idiolect")

WORDS = ["나는", "커피를", "마셨어", "meeting", "있어", "deadline", "오늘", "내일", "bug", "고쳤어"]
NoiseManifest = Callable[..., Path]


@pytest.fixture(autouse=True, scope="session")
def float32_by_default() -> Iterator[None]:
    """What tests compare are float32's numbers, also on a processor that is faster in bf16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fl.core.compute.has_matrix_tiles", lambda: False)
        yield


@pytest.fixture(scope="session")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests' own."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IDIOLECT_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def noise_manifest(tmp_path_factory: pytest.TempPathFactory) -> NoiseManifest:
    """``noise_manifest(speakers, each)``: a manifest of recordings of noise, 0.6 to 1.2 s, of four words each.

    No text comes twice, so that none is dropped as a leak. Utterance ``n`` of speaker ``s`` is ``s-n``, counted from 0.
    """

    def make(speakers: Sequence[str], each: int, *, lang: str | None = "ko") -> Path:
        folder = tmp_path_factory.mktemp("speech")
        rng = np.random.default_rng(0)
        texts = list(permutations(WORDS, 4))
        chosen = iter(rng.choice(len(texts), len(speakers) * each, replace=False))
        utterances = []
        for place, speaker in enumerate(speakers):
            for number in range(each):
                path = folder / f"{place}-{number}.wav"
                noise = 0.1 * rng.standard_normal(int(16_000 * rng.uniform(0.6, 1.2)))
                save_audio(path, noise.clip(-1, 1).astype(np.float32))
                spoken = texts[next(chosen)]
                spans = tuple((word, "en" if word.isascii() else "ko") for word in spoken)
                utterances.append(
                    Utterance(
                        f"{place}-{number}", path, " ".join(spoken), speaker, lang=lang, spans=spans, level="word"
                    )
                )
        write_manifest(folder / "manifest.jsonl", utterances)
        return folder / "manifest.jsonl"

    return make


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``other_package(registry, source, name="NAME", ...)``: another distribution whose module registers things by entry points."""
    touched: list[Registry] = []

    def install(registry: Registry, source: str, **things: str) -> None:
        module = f"other_{registry.kind}s"
        folder, info = tmp_path / "site", tmp_path / "site" / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        points = [f"{name.replace('_', '-')} = {module}:{thing}" for name, thing in things.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{registry.group}]", *points]))
        monkeypatch.syspath_prepend(folder)
        sys.modules.pop(module, None)  # that of another test
        touched.append(registry)
        vars(registry).pop("_all", None)

    yield install
    for registry in touched:
        vars(registry).pop("_all", None)
