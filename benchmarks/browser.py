"""Chromium, driven by its own DevTools protocol over one WebSocket: for pictures of pages, and for tests that look at them."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fl.core.errors import RunError

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
MISSING = (
    "no Chromium on this machine: apt-get install chromium fonts-nanum, or name one in the environment as CHROMIUM"
)
WAIT_MS = 20_000  # until a page is given up; a busy machine may need long
MARGIN = 16  # pixels below what a picture ends with
AXE = os.environ.get("AXE")  # axe.min.js of the npm package axe-core
NO_AXE = "no axe-core: npm install axe-core, and name its axe.min.js in the environment as AXE"
KEYS = {"Tab": 9, "Enter": 13, " ": 32}


class Browser:
    """Chromium with a profile in ``folder``. ``call`` is one command of the protocol; events that arrive meanwhile are kept."""

    def __init__(self, folder: Path, *flags: str) -> None:
        from websockets.sync.client import connect  # of the extra dev

        if CHROMIUM is None:
            raise RunError(MISSING)
        command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert self.process.stderr is not None
        said: list[str] = []
        for line in self.process.stderr:
            said.append(line)
            if found := re.search(r"listening on (ws://\S+)", line):
                break
        else:
            raise RunError(f"{CHROMIUM} did not start: {''.join(said[-3:]).strip()}")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()  # a full pipe would stop the browser
        self.closing = contextlib.ExitStack()
        self.socket = self.closing.enter_context(connect(found[1], max_size=None))
        self.numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        """The result of one command."""
        number = next(self.numbers)
        where = {"sessionId": session} if session else {}
        self.socket.send(json.dumps({"id": number, "method": method, "params": params, **where}))
        while (message := self.receive()).get("id") != number:
            pass
        assert "error" not in message, (method, message["error"])
        return message["result"]

    def receive(self) -> dict[str, Any]:
        """The next message; an event is kept."""
        message: dict[str, Any] = json.loads(self.socket.recv(timeout=120))
        if "id" not in message:
            self.events.append(message)
        return message

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Until there was such an event."""
        while not any(map(wanted, self.events)):
            self.receive()

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(Exception):
            self.call("Browser.close")
        self.closing.close()
        self.process.wait(30)


class Tab:
    """One tab with the page at ``address``, in a profile of its own. ``free``: of its policy, so that a script may look at it."""

    def __init__(
        self,
        browser: Browser,
        address: str,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        free: bool = False,
    ) -> None:
        self.browser = browser
        self.context = browser.call("Target.createBrowserContext")["browserContextId"]
        target = browser.call("Target.createTarget", url="about:blank", browserContextId=self.context)["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM", "Accessibility"):
            self.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.call("Emulation.setDeviceMetricsOverride", **size, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        if free:
            self.call("Page.setBypassCSP", enabled=True)
        self.call("Page.setLifecycleEventsEnabled", enabled=True)
        self.go(address)

    def call(self, method: str, **params: Any) -> Any:
        """One command to this tab."""
        return self.browser.call(method, self.session, **params)

    def go(self, address: str) -> None:
        """Load a page; returns when its script has run."""
        gone = self.call("Page.navigate", url=address)
        assert "errorText" not in gone, gone["errorText"]
        wanted = {"loaderId": gone["loaderId"], "name": "load"}.items()
        self.browser.until(lambda e: e["method"] == "Page.lifecycleEvent" and wanted <= e["params"].items())

    def js(self, expression: str) -> Any:
        """The value of an expression, of a promise once it is settled."""
        given = {"expression": expression, "awaitPromise": True, "returnByValue": True, "userGesture": True}
        found = self.call("Runtime.evaluate", **given)
        assert "exceptionDetails" not in found, found["exceptionDetails"]["exception"].get("description")
        return found["result"].get("value")

    def wait(self, condition: str, limit_ms: int = WAIT_MS) -> Any:
        """Until the condition holds."""
        return self.js(
            f"""new Promise((done, fail) => {{ const from = performance.now(); const look = () => {{
            const value = {condition}; if (value) return done(value);
            if (performance.now() - from > {limit_ms}) return fail(new Error("waited for " + {json.dumps(condition)}));
            setTimeout(look, 20); }}; look(); }})"""
        )

    def text(self, selector: str) -> Any:
        """What the first such element shows."""
        return self.js(f"document.querySelector({json.dumps(selector)})?.innerText")

    def texts(self, selector: str) -> Any:
        """What all such elements show."""
        return self.js(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.innerText)")

    def press(self, key: str) -> None:
        """A key of :data:`KEYS`, down and up."""
        given = {"key": key, "code": key.replace(" ", "Space"), "windowsVirtualKeyCode": KEYS[key]}
        text = {"Enter": "\r", " ": " "}.get(key, "")
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **given)
        self.call("Input.dispatchKeyEvent", type="keyUp", **given)

    def choose(self, field: str, path: Path) -> None:
        """Choose a file in a field."""
        found = self.call("Runtime.evaluate", expression=f"document.getElementById({json.dumps(field)})")["result"]
        self.call("DOM.setFileInputFiles", objectId=found["objectId"], files=[str(path)])

    def unnamed(self) -> list[str]:
        """Roles of what a keyboard reaches and a screen reader has no name for."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        reached = [
            n for n in nodes if any(p["name"] == "focusable" and p["value"]["value"] for p in n.get("properties", ()))
        ]
        roles = [n["role"]["value"] for n in reached if not n.get("name", {}).get("value", "").strip()]
        return [role for role in roles if role != "RootWebArea"]

    def violations(self, axe: Path) -> list[str]:
        """What axe-core, the script at ``axe``, finds against WCAG 2.2 AA and its own best practice."""
        self.js(f"{axe.read_text(encoding='utf-8')};0")
        kinds = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        told = "r.violations.map((v) => `${v.id}: ${v.nodes.map((n) => n.html.slice(0, 100)).join(' | ')}`)"
        found: list[str] = self.js(f"axe.run({{runOnly: {json.dumps(kinds)}}}).then((r) => {told})")
        return found

    def picture(self, quality: int, last: str) -> bytes:
        """The page from its top to the end of the first element of the selector ``last``, as WebP."""
        end, width = self.js(
            f"[Math.ceil(document.querySelector({json.dumps(last)}).getBoundingClientRect().bottom + scrollY), innerWidth]"
        )
        clip = {"x": 0, "y": 0, "width": width, "height": end + MARGIN, "scale": 1}
        found = self.call(
            "Page.captureScreenshot", format="webp", quality=quality, clip=clip, captureBeyondViewport=True
        )
        return base64.b64decode(found["data"])

    def mine(self, method: str) -> list[dict[str, Any]]:
        """Events of one kind."""
        events = (event for event in self.browser.events if event.get("sessionId") == self.session)
        return [event["params"] for event in events if event["method"] == method]

    @property
    def complaints(self) -> list[str]:
        """Errors on the console, uncaught exceptions, whatever the policy refused. A failed request is none of the page's."""
        logged = [p["entry"]["text"] for p in self.mine("Log.entryAdded") if p["entry"]["source"] != "network"]
        shown = [p["type"] for p in self.mine("Runtime.consoleAPICalled")]
        return logged + shown + [p["exceptionDetails"]["text"] for p in self.mine("Runtime.exceptionThrown")]

    @property
    def asked(self) -> list[str]:
        """Addresses that were asked for, but for those that lie in the page itself."""
        urls = [p["request"]["url"] for p in self.mine("Network.requestWillBeSent")]
        return [url for url in urls if not url.startswith(("blob:", "data:"))]

    def close(self) -> None:
        """Close it and forget its profile."""
        self.browser.call("Target.disposeBrowserContext", browserContextId=self.context)
