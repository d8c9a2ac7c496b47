"""A server that answers a thin client as the real one does, without decoding anything, and can be told to fail. Without torch.

with StubServer() as server:
    server.script.append(Reply(503, headers={"Retry-After": "2"}))
    ...
    assert [request.path for request in server.requests] == [...]
"""

from __future__ import annotations

import base64
import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from fl.packed.blob import digest, pack, unpack

WORDS = ("오늘", "meeting", "은", "몇", "시에", "시작해요")
TEXT = " ".join(WORDS)


@dataclass(frozen=True)
class StubRequest:
    """What arrived: ``form`` holds the contents of each field, in order; ``body`` is there where it was no form."""

    method: str
    path: str
    headers: Mapping[str, str]
    form: Mapping[str, list[bytes]]
    body: bytes

    def text(self, name: str) -> str:
        """A field's only text, empty without it."""
        return b"".join(self.form.get(name, [])).decode()


@dataclass(frozen=True)
class Reply:
    """An answer. With ``cut`` the connection ends after that many bytes of ``body``, though more were announced."""

    status: int = 200
    body: bytes = b"{}"
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None


HANG_UP = Reply(status=0)  # no answer at all


def problem(status: int, slug: str, detail: str = "", **headers: str) -> Reply:
    """An answer of RFC 9457."""
    document = {"type": f"/problems/{slug}", "title": slug, "status": status, "detail": detail or slug}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps(document).encode(), "application/problem+json", named)


def events(*documents: Mapping[str, object]) -> Reply:
    """Server-sent events."""
    lines = [f"event: {d['type']}\ndata: {json.dumps(d, ensure_ascii=False)}\n\n" for d in documents]
    return Reply(body=b": hello\n\n" + "".join(lines).encode(), content_type="text/event-stream")


class StubServer:
    """On a free port of the loopback address. ``script`` holds answers that come before the usual ones, one a request."""

    def __init__(self) -> None:
        self.requests: list[StubRequest] = []
        self.script: deque[Reply | Callable[[StubRequest], Reply]] = deque()
        self.handles: dict[str, bytes] = {}
        self.keeps_handles = True
        self.heard: dict[str, int] = {}  # how often each idempotency key was transcribed
        stub = self

        class Handler(_Handler):
            server_stub = stub

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self._thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self) -> StubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.shutdown()
        self.http.server_close()
        self._thread.join()

    def paths(self) -> list[str]:
        """``METHOD path`` of what arrived."""
        return [f"{request.method} {request.path}" for request in self.requests]

    def answer(self, request: StubRequest) -> Reply:
        """The usual answer, or the next of the script."""
        self.requests.append(request)
        if self.script:
            scripted = self.script.popleft()
            return scripted if isinstance(scripted, Reply) else scripted(request)
        usual = {
            ("PUT", "/v1/adapters"): self._put,
            ("POST", "/v1/audio/transcriptions"): self._transcribe,
            ("POST", "/v1/adapt"): self._adapt,
        }.get((request.method, request.path))
        return usual(request) if usual else problem(404, "not-found")

    def _put(self, request: StubRequest) -> Reply:
        if not self.keeps_handles:
            return problem(404, "not-found")
        handle = f"handle-{len(self.handles)}-{digest(request.body)[:8]}"
        self.handles[handle] = request.body
        return Reply(body=json.dumps({"handle": handle, "expires_in": 3600.0, "bytes": len(request.body)}).encode())

    def _transcribe(self, request: StubRequest) -> Reply:
        handle, key = request.text("adapter_handle"), request.headers.get("Idempotency-Key", "")
        if handle and handle not in self.handles:
            return problem(404, "unknown-handle", "no adapter of this token has that handle")
        self.heard[key] = self.heard.get(key, 0) + 1
        if request.text("stream"):
            deltas = [{"type": "transcript.text.delta", "delta": (" " if i else "") + w} for i, w in enumerate(WORDS)]
            return events(*deltas, {"type": "transcript.text.done", "text": TEXT})
        kind = request.text("response_format") or "json"
        if kind.endswith("json"):
            return Reply(body=json.dumps({"text": TEXT}, ensure_ascii=False).encode())
        return Reply(body=f"{TEXT}\n".encode(), content_type="text/plain")

    def _adapt(self, request: StubRequest) -> Reply:
        tensors, info = unpack(request.form["adapter"][0])
        trained = {name: values * 0.5 if name.endswith("_B") else values for name, values in tensors.items()}
        data = pack(trained, replace(info, split="fedsa"))
        document = {
            "kept": True,
            "adapter": base64.b64encode(data).decode(),
            "steps": 3,
            "seconds": 0.1,
            "unseen": [],
        }
        return Reply(body=json.dumps(document).encode())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_stub: StubServer

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        headers = dict(self.headers.items())
        form = _parse_form(self.headers.get("Content-Type", ""), body)
        reply = self.server_stub.answer(StubRequest(self.command, self.path, headers, form, b"" if form else body))
        if reply.status == 0:
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in {"Content-Type": reply.content_type, **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body if reply.cut is None else reply.body[: reply.cut])
        self.close_connection |= reply.cut is not None

    do_GET = do_PUT = do_POST = _handle  # noqa: N815 - the names of http.server

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _parse_form(content_type: str, body: bytes) -> dict[str, list[bytes]]:
    if not content_type.startswith("multipart/form-data; boundary="):
        return {}
    boundary = content_type.partition("boundary=")[2].encode()
    form: dict[str, list[bytes]] = {}
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary)[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = head.partition(b'name="')[2].partition(b'"')[0].decode()
        form.setdefault(name, []).append(content)
    return form
