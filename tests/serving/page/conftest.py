"""Chromium with a fake microphone, and a stub of the server."""

import contextlib
import socket
import threading

import numpy as np
import pytest
import soundfile
import uvicorn
from fastapi import FastAPI, Request

from benchmarks.browser import CHROMIUM, MISSING, Browser, Tab
from fl.serving.page import router


class Site:
    """An app on a free port of the loopback."""

    def __init__(self, app):
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen()  # so that a browser which is quicker than the server waits
        self.origin = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})
        self.thread.start()

    def close(self):
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()


class StubSite(Site):
    """The page and a transcription endpoint that answers what the test says and keeps what it got."""

    def __init__(self, reply):
        self.reply = reply  # of the form as a dict
        self.forms = []
        app = FastAPI()
        app.include_router(router)

        @app.post("/v1/audio/transcriptions")
        async def transcriptions(request: Request):
            form = {}
            for name, value in (await request.form()).items():
                form[name] = value if isinstance(value, str) else await value.read()
            self.forms.append({**form, "headers": dict(request.headers)})
            return self.reply(form)

        super().__init__(app)

    @property
    def base(self):
        (form,) = [form for form in self.forms if "adapter" not in form]
        return form

    @property
    def personal(self):
        (form,) = [form for form in self.forms if "adapter" in form]
        return form


class PageTab(Tab):
    """A tab with the page of ``stub`` in it."""

    def __init__(self, browser, stub, path="/", **size):
        self.origin = stub.origin
        super().__init__(browser, stub.origin + path, **size)

    def open(self, path="/"):
        """Load the page, or load it anew."""
        self.go(self.origin + path)

    def transcribe(self, until="!document.querySelector('[aria-busy=true]') && document.querySelector('#base .word')"):
        self.js("document.getElementById('transcribe').click()")
        self.wait(until)

    @property
    def elsewhere(self):
        """Addresses that were asked for outside the server."""
        return [url for url in self.asked if not url.startswith(self.origin + "/")]


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Chromium with a fake microphone."""
    if CHROMIUM is None:
        pytest.skip(MISSING)
    pytest.importorskip("websockets.sync.client")
    folder = tmp_path_factory.mktemp("chromium")
    time = np.arange(4 * 48_000) / 48_000
    soundfile.write(folder / "voice.wav", (0.3 * np.sin(2 * np.pi * 1000 * time)).astype(np.float32), 48_000)
    microphone = (
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={folder / 'voice.wav'}",
    )
    made = Browser(folder, *microphone)
    yield made
    made.close()


@pytest.fixture
def serve():
    """``serve(reply)``: a stub whose endpoint answers ``reply(form)``; of an app: that app."""
    with contextlib.ExitStack() as stack:

        def start(what):
            site = Site(what) if isinstance(what, FastAPI) else StubSite(what)
            stack.callback(site.close)
            return site

        yield start


@pytest.fixture
def open_tab(browser):
    """``open_tab(stub, width=1280, height=900)``: the page in a fresh profile."""
    with contextlib.ExitStack() as stack:

        def start(stub, **options):
            tab = PageTab(browser, stub, **options)
            stack.callback(tab.close)
            return tab

        yield start


@pytest.fixture
def sentence(tmp_path):
    """1.5 s of stereo at 44.1 kHz: 1 kHz at the left, at the right 11 kHz, which 16 kHz cannot hold."""
    time = np.arange(66_150) / 44_100
    sound = 0.4 * np.sin(2 * np.pi * np.outer(time, [1_000, 11_000]))
    soundfile.write(tmp_path / "sentence.flac", sound.astype(np.float32), 44_100)
    return tmp_path / "sentence.flac"


@pytest.fixture
def packed(tmp_path):
    """An adapter file: the page does not look into it, the bytes arrive as they are."""
    (tmp_path / "me.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      packed \xff\xfe\0 adapter")
    return tmp_path / "me.safetensors"
