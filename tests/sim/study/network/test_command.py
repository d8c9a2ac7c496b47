"""The network study: what is sent and timed, where asking a server stops being faster, and its command."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import python_multipart
import typer
from click.testing import Result
from typer.testing import CliRunner

from clients.device.audio import encode_samples
from clients.device.messages import UnreachableError
from fl.core.errors import AdapterError, IdiolectError
from fl.packed.blob import PackedInfo, pack
from fl.speech.audio import save_audio
from sim.study.network.command import DEVICES, network, parse_devices
from sim.study.network.latency import MODES, AskingDevice, LatencyProbe
from sim.study.network.links import LinkProfile, NetworkError, transfer_seconds
from sim.study.network.local import ProcessCost, process_cost, served
from sim.study.network.proxy import LOOPBACK, proxied
from sim.study.network.report import END, START
from sim.study.network.study import NetworkStudy, run_study

QUICK = LinkProfile("quick", rate_up=1e9, rate_down=1e9, rtt=0.002)
ADAPTER = pack(
    {"base_model.model.layer.gated_lora_A": np.random.default_rng(0).standard_normal((64, 800)).astype(np.float32)},
    PackedInfo("whisper-base", "whisper:512x6+6:0123", "", "gates", "trimmed", "ko", {"r": 64}),
)


class Stub(BaseHTTPRequestHandler):
    """Says what a server of transcriptions would, and remembers what was asked of it."""

    asked: list[dict[str, bytes]]
    busy = False

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        self.asked.append({"put": self._body()})
        self._answer(200, "application/json", b'{"handle": "h-1"}')

    def do_POST(self) -> None:
        form: dict[str, bytes] = {}
        parser_headers = {"Content-Type": self.headers["Content-Type"].encode()}
        python_multipart.parse_form(
            {**parser_headers, "Content-Length": self.headers["Content-Length"].encode()},
            self.rfile,
            lambda field: form.__setitem__(field.field_name.decode(), field.value),
            lambda file: form.__setitem__(
                file.field_name.decode(), (file.file_object.seek(0), file.file_object.read())[1]
            ),
        )
        self.asked.append(form)
        if self.busy:
            self._answer(503, "application/problem+json", b'{"title": "busy"}')
        elif form.get("stream") == b"true":
            events = [
                {"type": "transcript.text.delta", "delta": "hello"},
                {"type": "transcript.text.done", "text": "hello there"},
            ]
            lines = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
            self._answer(200, "text/event-stream", lines.encode())
        else:
            self._answer(200, "application/json", b'{"text": "hello there"}')


@contextmanager
def stub_server() -> Iterator[tuple[int, list[dict[str, bytes]]]]:
    asked: list[dict[str, bytes]] = []
    server = ThreadingHTTPServer((LOOPBACK, 0), type("Asked", (Stub,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1]), asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.fixture(scope="module")
def audio() -> np.ndarray[Any, np.dtype[np.float32]]:
    rng = np.random.default_rng(0)
    return (0.1 * rng.standard_normal(16_000)).astype(np.float32)


# One request


@pytest.fixture
def device(tmp_path: Path) -> AskingDevice:
    return AskingDevice(tmp_path / "device", ADAPTER)


def test_a_request_carries_the_adapter_or_its_handle_and_the_audio_to_the_byte(device: AskingDevice, audio):
    upload = encode_samples(audio, "opus")
    with stub_server() as (port, asked):
        answer = device.ask(port, upload)
        handle = device.put(port)
        device.ask(port, upload, handle=handle)
    assert (answer.text, answer.first_word) == ("hello there", answer.seconds)
    each, put, held = asked
    assert (each["file"], each["adapter"]) == (upload.content, ADAPTER)
    assert put == {"put": ADAPTER}
    assert (held["file"], held["adapter_handle"]) == (upload.content, b"h-1")
    assert "adapter" not in held


def test_each_request_opens_a_connection_of_its_own(device: AskingDevice, audio):
    with stub_server() as (target, _), proxied(QUICK, LOOPBACK, target) as (port, traffic):
        for _ in range(3):
            device.ask(port, encode_samples(audio), handle="h-1")
    assert traffic.connections == 3


def test_the_first_word_of_a_stream_comes_before_its_end(device: AskingDevice, audio):
    with stub_server() as (port, asked):
        answer = device.ask(port, encode_samples(audio), handle="h-1", stream=True)
    assert asked[0]["stream"] == b"true"
    assert answer.text == "hello there"
    assert 0 < answer.first_word < answer.seconds


def test_what_fails_is_not_tried_again(device: AskingDevice, audio):
    with stub_server() as (port, asked):
        Stub.busy = True
        try:
            with pytest.raises(UnreachableError):
                device.ask(port, encode_samples(audio), handle="h-1")
        finally:
            Stub.busy = False
    assert len(asked) == 1
    with pytest.raises(UnreachableError):
        device.ask(port, encode_samples(audio), handle="h-1")  # nobody is there any more


def test_what_is_no_adapter_is_refused_before_anything_is_measured(tmp_path: Path):
    with pytest.raises(AdapterError):
        AskingDevice(tmp_path, b"no adapter")


# The study


@pytest.fixture
def study(audio, device: AskingDevice) -> Iterator[Callable[..., NetworkStudy]]:
    with stub_server() as (port, _):

        def make(local_seconds: float = 5.0, **changes: Any) -> NetworkStudy:
            probe = LatencyProbe(port, device, audio, repeats=2, seed=0)
            conditions: dict[str, Any] = {
                "base": "random:whisper-nano",
                "audio_seconds": 1.0,
                "adapter_bytes": len(ADAPTER),
                "precision": "float16",
                "repeats": 2,
                "seed": 0,
                "devices": {"laptop": 1.0, "slow": 8.0},
                "reference": "lte",
                "machine": {"processor": "a processor", "cores": 2, "python": "3.11"},
            } | changes
            local, asking = (
                ProcessCost((local_seconds, local_seconds), 700 * 2**20),
                ProcessCost((0.1, 0.1), 50 * 2**20),
            )
            return run_study(probe, local, asking, [QUICK], conditions)

        yield make


def test_every_mode_is_measured_over_every_link_and_without_one(study):
    found = study(local_seconds=1e-9)  # no link is fast enough: nothing is measured at a threshold
    assert [(row.profile, row.mode) for row in found.latencies] == [("quick", mode.name) for mode in MODES]
    assert [row.mode for row in found.direct] == [mode.name for mode in MODES]
    assert all(len(row.seconds) == 2 for row in (*found.latencies, *found.direct))
    assert all(row.rtt is None and row.rate_up is None for row in found.thresholds)
    assert found.confirmed == ()


def test_bytes_are_counted_where_they_pass_and_a_handle_saves_the_adapter(study):
    by_mode = {row.mode: row for row in study(local_seconds=1e-9).latencies}
    each, held = by_mode["adapter each time, FLAC"], by_mode["handle, FLAC"]
    assert 0 <= each.bytes_up - held.bytes_up - len(ADAPTER) < 300  # the part's head and tail
    assert by_mode["handle, Opus"].bytes_up < held.bytes_up
    assert 0 < held.bytes_down < 2_000
    model = transfer_seconds(QUICK, held.bytes_up, held.bytes_down)
    assert all(row.modelled > model * 0.5 for row in by_mode.values())


def test_a_streamed_request_has_no_threshold_of_its_own(study):
    found = study(local_seconds=1e-9)
    assert {row.mode for row in found.thresholds} == {mode.name for mode in MODES if not mode.stream}
    assert {row.device for row in found.thresholds} == {"laptop", "slow"}


def test_two_thresholds_are_measured_through_a_link_that_takes_what_the_server_leaves(study):
    found = study(local_seconds=0.4, devices={"laptop": 1.0})
    of_rtt, of_rate = found.confirmed
    assert of_rtt.profile.startswith("lte,rtt=")
    assert of_rate.profile.startswith("lte,rate_up=")
    direct = {row.mode: median(row.seconds) for row in found.direct}
    for row in (of_rtt, of_rate):
        assert row.local_seconds == 0.4
        # The link was there (less its jitter); how much later a machine is, no test may depend on.
        assert min(row.seconds) > 0.7 * (0.4 - direct[row.mode])


# The processes of the study


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="this system does not tell the memory of a process")
def test_a_device_that_only_asks_is_a_small_process(audio, tmp_path: Path):
    save_audio(tmp_path / "audio.wav", audio)
    (tmp_path / "adapter").write_bytes(ADAPTER)
    with stub_server() as (port, asked):
        cost = process_cost("ask", port, tmp_path / "audio.wav", tmp_path / "adapter", 2)
    assert [sorted(form) for form in asked] == [["adapter", "file", "response_format"]] * 2
    assert len(cost.seconds) == 2
    assert 10 * 2**20 < cost.peak_bytes < 150 * 2**20  # torch alone would be more


def test_a_process_that_fails_says_why(tmp_path: Path):
    with pytest.raises(NetworkError, match=r"ask failed: .*No such file.*missing"):
        process_cost("ask", 1, tmp_path / "missing", tmp_path / "missing", 1)


HEALTHY = """
import http.server, sys
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()
    def log_message(self, *_):
        pass
assert "--no-auth" in sys.argv and sys.argv[sys.argv.index("--host") + 1] == "127.0.0.1"
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Healthy).serve_forever()
"""


def test_a_server_is_started_on_loopback_and_gone_afterwards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sim.study.network.local.SERVE", ("-c", HEALTHY))
    with served("whisper-base") as port:
        socket.create_connection((LOOPBACK, port), timeout=60).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOOPBACK, port), timeout=60)


def test_a_server_that_does_not_start_is_an_error_with_the_command_to_try(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sim.study.network.local.SERVE", ("-c", "import sys; sys.exit(3)"))
    with pytest.raises(NetworkError, match=r"status 3.*--base whisper-base"), served("whisper-base"):
        pass


# The command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, audio, tmp_path: Path) -> Callable[..., Result]:
    """``idiolect study network`` on an adapter that is packed already, with a base whose cost is known."""
    monkeypatch.setattr("fl.adapters.files.load_adapter", lambda _: (None, SimpleNamespace(base_name="whisper-base")))
    monkeypatch.setattr("fl.packed.folder.pack_folder", lambda *_: ADAPTER)
    costs = {"hold": ProcessCost((1e-9,), 2**30), "ask": ProcessCost((0.1,), 2**25)}
    monkeypatch.setattr("sim.study.network.command.process_cost", lambda what, *_: costs[what])
    save_audio(tmp_path / "audio.wav", audio)
    app = typer.Typer()
    app.command()(network)

    def run(*options: str) -> Result:
        words = [str(tmp_path / "audio.wav"), "--adapter", str(tmp_path), "--repeats", "1", *options]
        return CliRunner().invoke(app, words)

    return run


LINK = "rate_up=1e9,rate_down=1e9,rtt=0.001"


def test_the_command_measures_prints_json_and_writes_its_section(command, tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(f"{START}{END}", encoding="utf-8")
    with stub_server() as (port, _):
        done = command("--server", f"127.0.0.1:{port}", "--profiles", LINK, "--json", "--write", str(page))
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert {row["profile"] for row in document["latencies"]} == {LINK}
    assert document["conditions"]["devices"] == dict(DEVICES)
    assert document["conditions"]["adapter_bytes"] == len(ADAPTER)
    assert document["conditions"]["machine"]["cores"]
    assert "whisper-base" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--server", "example.org:80"), "give 127.0.0.1:PORT"),
        (("--server", "127.0.0.1"), "give 127.0.0.1:PORT"),
        (("--profiles", "lte;pigeon"), "'pigeon' is not known"),
        (("--devices", "phone"), "name=slowdown"),
        (("--write", "/nowhere/page.md"), "needs the comments"),
    ],
)
def test_bad_options_are_refused_in_words(command, options, message):
    error = command(*options).exception
    assert isinstance(error, IdiolectError)
    assert message in str(error)


def test_devices_are_names_with_slowdowns():
    assert parse_devices("phone=3, watch=20.5") == {"phone": 3.0, "watch": 20.5}


@pytest.mark.parametrize(
    "text", ["", "phone", "phone=", "phone=fast", "phone=0", "phone=-1", "phone=inf", "=3", "phone=nan"]
)
def test_a_device_without_a_sound_slowdown_is_refused(text: str):
    with pytest.raises(NetworkError, match="name=slowdown"):
        parse_devices(text)
