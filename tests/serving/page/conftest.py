"""Chromium with a fake microphone, driven by its own DevTools protocol over one WebSocket, and a stub of the server."""

import contextlib
import itertools
import json
import re
import shutil
import socket
import subprocess
import threading

import numpy as np
import pytest
import soundfile
import uvicorn
from fastapi import FastAPI, Request

from fl.serving.page import router

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)
WAIT_MS = 20_000  # until the page is given up; a busy machine may need long


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


class Browser:
    """Chromium. ``call`` is one command of the protocol; events that arrive meanwhile are kept."""

    def __init__(self, folder, connect):
        voice = folder / "voice.wav"
        time = np.arange(4 * 48_000) / 48_000
        soundfile.write(voice, (0.3 * np.sin(2 * np.pi * 1000 * time)).astype(np.float32), 48_000)
        command = [
            CHROMIUM,
            *FLAGS,
            f"--use-file-for-fake-audio-capture={voice}",
            f"--user-data-dir={folder / 'profile'}",
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        address = next(
            found[1] for line in self.process.stderr if (found := re.search(r"listening on (ws://\S+)", line))
        )
        threading.Thread(target=self.process.stderr.read, daemon=True).start()  # a full pipe would stop the browser
        self.socket = connect(address, max_size=None)
        self.numbers = itertools.count(1)
        self.events = []

    def call(self, method, session=None, **params):
        number = next(self.numbers)
        self.socket.send(
            json.dumps(
                {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
            )
        )
        while (message := self.receive()).get("id") != number:
            pass
        assert "error" not in message, (method, message["error"])
        return message["result"]

    def receive(self):
        message = json.loads(self.socket.recv(timeout=120))
        if "id" not in message:
            self.events.append(message)
        return message

    def until(self, wanted):
        """Until there was such an event."""
        while not any(map(wanted, self.events)):
            self.receive()

    def close(self):
        with contextlib.suppress(Exception):
            self.call("Browser.close")
        self.socket.close()
        self.process.wait(30)


class Tab:
    """One tab with the page of ``stub`` in it, in a profile of its own."""

    def __init__(self, browser, stub, width=1280, height=900, path="/"):
        self.browser, self.stub = browser, stub
        self.context = browser.call("Target.createBrowserContext")["browserContextId"]
        target = browser.call("Target.createTarget", url="about:blank", browserContextId=self.context)["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.setLifecycleEventsEnabled", enabled=True)
        self.open(path)

    def call(self, method, **params):
        return self.browser.call(method, self.session, **params)

    def open(self, path="/"):
        """Load the page, or load it anew; returns when its script has run."""
        gone = self.call("Page.navigate", url=self.stub.origin + path)
        assert "errorText" not in gone, gone["errorText"]
        wanted = {"loaderId": gone["loaderId"], "name": "load"}.items()
        self.browser.until(lambda e: e["method"] == "Page.lifecycleEvent" and wanted <= e["params"].items())

    def js(self, expression):
        """The value of an expression, of a promise once it is settled."""
        given = {"expression": expression, "awaitPromise": True, "returnByValue": True, "userGesture": True}
        found = self.call("Runtime.evaluate", **given)
        assert "exceptionDetails" not in found, found["exceptionDetails"]["exception"].get("description")
        return found["result"].get("value")

    def wait(self, condition):
        """Until the condition holds."""
        return self.js(
            f"""new Promise((done, fail) => {{ const from = performance.now(); const look = () => {{
            const value = {condition}; if (value) return done(value);
            if (performance.now() - from > {WAIT_MS}) return fail(new Error("waited for " + {json.dumps(condition)}));
            setTimeout(look, 20); }}; look(); }})"""
        )

    def text(self, selector):
        return self.js(f"document.querySelector({json.dumps(selector)})?.innerText")

    def texts(self, selector):
        return self.js(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.innerText)")

    def press(self, key):
        given = {"key": key, "code": key, "windowsVirtualKeyCode": {"Tab": 9, "Enter": 13}[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", text="\r" if key == "Enter" else "", **given)
        self.call("Input.dispatchKeyEvent", type="keyUp", **given)

    def choose(self, field, path):
        found = self.call("Runtime.evaluate", expression=f"document.getElementById({json.dumps(field)})")["result"]
        self.call("DOM.setFileInputFiles", objectId=found["objectId"], files=[str(path)])

    def transcribe(self, until="!document.querySelector('[aria-busy=true]') && document.querySelector('#base .word')"):
        self.js("document.getElementById('transcribe').click()")
        self.wait(until)

    def mine(self, method):
        return [
            event["params"]
            for event in self.browser.events
            if event.get("sessionId") == self.session and event["method"] == method
        ]

    @property
    def complaints(self):
        """Errors on the console, uncaught exceptions, whatever the policy refused. A failed request is none of ours."""
        logged = [p["entry"]["text"] for p in self.mine("Log.entryAdded") if p["entry"]["source"] != "network"]
        shown = [p["type"] for p in self.mine("Runtime.consoleAPICalled")]
        return logged + shown + [p["exceptionDetails"]["text"] for p in self.mine("Runtime.exceptionThrown")]

    @property
    def elsewhere(self):
        """Addresses that were asked for outside the server."""
        asked = [p["request"]["url"] for p in self.mine("Network.requestWillBeSent")]
        return [url for url in asked if not url.startswith((self.stub.origin + "/", "blob:", "data:"))]

    def close(self):
        self.browser.call("Target.disposeBrowserContext", browserContextId=self.context)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    connect = pytest.importorskip("websockets.sync.client").connect
    made = Browser(tmp_path_factory.mktemp("chromium"), connect)
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
            tab = Tab(browser, stub, **options)
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
