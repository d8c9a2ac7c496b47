"""The page on the server that it is made for, with an engine that says what it is told.

In a real browser; skipped without Chromium (Debian: chromium; fonts-nanum for Hangul).
"""

from concurrent.futures import Future

import numpy as np
import pytest

from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.layer import fresh_adapter
from fl.bases.resolve import load_base
from fl.packed.blob import PackedInfo, pack
from fl.serving.engine.requests import Stages, Transcript
from fl.serving.http.app import create_app
from fl.serving.http.auth import TokenFile, add_token

SITES = target_pattern(("decoder.self",))


class TwoTextEngine:
    """Hears one text without an adapter and another with one."""

    def __init__(self):
        self.asked = []

    def check_adapter(self, adapter):
        pass

    def submit(self, request):
        self.asked.append(request)
        text = "오늘 미팅이 있어" if request.adapter is None else "오늘 meeting이 있어"
        if request.on_text is not None:
            request.on_text(text[:3])
        future = Future()
        future.set_result(Transcript(text, (1, 2, 3), "ko", -0.5, "end", Stages(0.001, 0.002, 0.003, 0.004)))
        return future

    def stats(self):
        return {}

    def close(self):
        pass


@pytest.fixture(scope="module")
def base():
    return load_base("random:whisper-nano")


@pytest.fixture
def adapter_file(base, tmp_path):
    """``adapter_file(**info)``: an adapter for the base, or for what ``info`` says."""

    def make(**info):
        config = GatedLoraConfig(r=2, lora_alpha=4.0, gate="self", target_modules=SITES, init_seed=0)
        tensors = {
            name: np.full(tuple(t.shape), 0.01, np.float32) for name, t in fresh_adapter(base.model, config).items()
        }
        facts = {"base_name": base.name, "base_fingerprint": base.fingerprint, "tokenizer": base.tokenizer.digest}
        facts |= {"split": "gates", "window": "trimmed", "language": "ko", "dtype": "float16", **info}
        written = {"r": 2, "lora_alpha": 4.0, "gate": "self", "target_modules": SITES}
        (tmp_path / "me.safetensors").write_bytes(pack(tensors, PackedInfo(config=written, **facts)))
        return tmp_path / "me.safetensors"

    return make


@pytest.fixture
def fill(sentence):
    """``fill(tab, adapter)``: choose both files."""

    def choose(tab, adapter):
        tab.choose("audio-file", sentence)
        tab.choose("adapter-file", adapter)
        tab.wait("document.getElementById('audio-facts').innerText.includes('1.5 s')")
        tab.wait("!document.getElementById('adapter-remove').hidden")

    return choose


def test_the_server_gives_what_the_page_shows(base, serve, open_tab, fill, adapter_file):
    engine = TwoTextEngine()
    tab = open_tab(serve(create_app(engine, base)))
    fill(tab, adapter_file())
    tab.transcribe()
    assert tab.texts("#base .differs") == ["미팅이"]
    assert tab.texts("#personal .differs") == ["meeting이"]
    pieces = tab.js("[...document.querySelectorAll('#personal .word')].map((e) => [e.innerText, e.lang])")
    assert pieces == [["오늘", "ko"], ["meeting", "en"], ["이", "ko"], ["있어", "ko"]]
    rows = [row.split("\t")[0].strip() for row in tab.texts(".times tr")]
    assert rows[1:8] == ["Upload", "Checks", "Queue", "Features", "Encode", "Decode", "Network and rest"]
    assert sorted(request.adapter is None for request in engine.asked) == [False, True]
    assert all(len(request.audio) == pytest.approx(24_000, abs=2) for request in engine.asked)
    assert tab.complaints == []


def test_an_adapter_of_another_base_is_named_at_the_adapter(base, serve, open_tab, fill, adapter_file):
    tab = open_tab(serve(create_app(TwoTextEngine(), base)))
    fill(tab, adapter_file(base_fingerprint="whisper:1x1+1:0000"))
    tab.transcribe()
    assert "belongs to another base" in tab.text("#adapter-error")
    assert " ".join(tab.text("#base .said").split()) == "오늘 미팅이 있어"


def test_a_server_with_tokens_shows_the_page_and_asks_for_one(base, serve, open_tab, fill, adapter_file, tmp_path):
    token = add_token(tmp_path / "tokens.txt", "ann")
    tab = open_tab(serve(create_app(TwoTextEngine(), base, tokens=TokenFile(tmp_path / "tokens.txt"))))
    fill(tab, adapter_file())
    tab.transcribe("!document.getElementById('token-error').hidden")
    assert tab.text("#token-error").startswith("No valid token")
    tab.js(f"document.getElementById('token').value = {token!r}")
    tab.transcribe()
    assert tab.js("document.getElementById('token-error').hidden")
    assert tab.texts("#personal .differs") == ["meeting이"]
