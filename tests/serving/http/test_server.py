"""The server on a real socket: OpenAI's own client, TLS, and clients that are slow, gone, or a thousand."""

import asyncio
import datetime
import http.client
import json
import os
import resource
import select
import socket
import ssl
import threading
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address

import openai
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fl.core.errors import ConfigError
from fl.serving.http.auth import TokenFile
from fl.serving.http.limits import ServerLimits
from fl.serving.http.server import Address, make_server
from fl.speech.decode import Decoder

PATH = "/v1/audio/transcriptions"


@contextmanager
def running(app, settings=None, send_buffer=0, **address):
    """The port of a server that runs in a thread; with ``send_buffer`` the system takes so many bytes of an answer from it."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        if send_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        server = make_server(app, Address(port=0, **address), settings or app.state.service.limits)
        ready = threading.Event()
        startup = server.startup

        async def announce(sockets=None):
            await startup(sockets)
            ready.set()

        server.startup = announce
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert ready.wait(60)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def read_all(connection):
    data = b""
    while piece := connection.recv(65_536):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else None, head, body


def form(audio, **fields):
    body = b"".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    )
    return body + b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + audio + b"\r\n--x--\r\n"


def request(body, length=None, connection="close"):
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: {connection}\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body


# OpenAI's client


@pytest.fixture
def official(make_app, people):
    with (
        running(make_app(TokenFile(people.path))) as port,
        openai.OpenAI(api_key=people.ann, base_url=f"http://127.0.0.1:{port}/v1", max_retries=0) as client,
    ):
        yield client


def test_the_official_client_gets_every_format(official, recording):
    def ask(**options):
        return official.audio.transcriptions.create(file=("a.flac", recording(2.0)), model="whisper-1", **options)

    assert ask().text == "오늘 meeting 있어요"
    assert ask(response_format="text") == "오늘 meeting 있어요\n"
    assert ask(response_format="srt").startswith("1\n00:00:00,000 --> 00:00:02,000\n오늘")
    assert ask(response_format="vtt").startswith("WEBVTT")
    verbose = ask(
        response_format="verbose_json", timestamp_granularities=["word", "segment"], language="ko", temperature=0
    )
    assert (verbose.duration, verbose.language, verbose.text) == (2.0, "ko", "오늘 meeting 있어요")
    assert [word.word for word in verbose.words] == ["오늘", "meeting", "있어요"]
    assert [word.language for word in verbose.words] == ["ko", "en", "ko"]
    assert verbose.segments[0].end == 2.0
    assert verbose.segments[0].avg_logprob < 0


def test_the_official_client_streams(official, recording):
    stream = official.audio.transcriptions.create(file=("a.flac", recording()), model="whisper-1", stream=True)
    events = list(stream)
    assert {event.type for event in events[:-1]} == {"transcript.text.delta"}
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == "오늘 meeting 있어요"
    assert events[-1].type == "transcript.text.done"


def test_the_official_client_sends_an_adapter_and_lists_the_model(official, engine, packed, recording):
    official.audio.transcriptions.create(
        file=("a.flac", recording()), model="whisper-1", extra_body={"adapter_handle": _put(official, packed())}
    )
    assert engine.asked[0].adapter is not None
    (model,) = official.models.list().data
    assert model.id == "random:whisper-nano"
    assert official.models.retrieve(model.id).fingerprint == model.fingerprint


def _put(client, data):
    return client.put("/adapters", cast_to=dict, content=data)["handle"]


def test_the_official_client_raises_its_own_errors(official, engine, recording):
    with pytest.raises(openai.UnprocessableEntityError, match="cannot be read as audio"):
        official.audio.transcriptions.create(file=("a.flac", b"no audio"), model="whisper-1")
    with pytest.raises(openai.AuthenticationError, match="does not know the token"):
        official.with_options(api_key="wrong").models.list()
    engine.error = lambda request: ValueError("secret") if len(engine.asked) > 1 else None
    with pytest.raises(openai.APIError, match="the server failed"):
        list(official.audio.transcriptions.create(file=("a.flac", recording(40.0)), model="whisper-1", stream=True))


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


def test_with_a_certificate_only_tls_is_spoken_and_no_old_one(make_app, certificate, recording):
    cert, key = certificate
    with running(make_app(), cert=cert, key=key) as port:
        context = ssl.create_default_context(cafile=str(cert))
        client = http.client.HTTPSConnection("127.0.0.1", port, context=context)
        client.request("POST", PATH, form(recording()), {"Content-Type": "multipart/form-data; boundary=x"})
        answer = client.getresponse()
        assert (answer.status, json.load(answer)["text"]) == (200, "오늘 meeting 있어요")
        client.close()
        context.minimum_version, context.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, ssl.TLSVersion.TLSv1_1
        with socket.create_connection(("127.0.0.1", port)) as plain, pytest.raises((ssl.SSLError, OSError)):
            context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_a_certificate_that_does_not_work_is_named(make_app, tmp_path, certificate):
    broken = tmp_path / "broken.pem"
    broken.write_text("nothing")
    with pytest.raises(ConfigError, match=r"broken\.pem"):
        make_server(make_app(), Address(cert=broken, key=certificate[1]), ServerLimits())
    with pytest.raises(ConfigError, match="together"):
        Address(cert=certificate[0])
    with pytest.raises(ConfigError, match="no such file"):
        Address(cert=tmp_path / "none", key=certificate[1])


# Revoking


def ask(port, token, path="/v1/models"):
    """The status of a GET with a token."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    client.request("GET", path, headers={"Authorization": f"Bearer {token}"})
    status = client.getresponse().status
    client.close()
    return status


def _without(name, path):
    return "".join(line for line in path.read_text().splitlines(True) if not line.startswith(name))


@pytest.mark.parametrize(
    "edit",
    [
        lambda path: path.write_text(""),
        lambda path: path.write_text("# nobody\n"),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: path.write_text("# " + "x" * 2**20),
    ],
    ids=["empty", "comment", "no-text", "deleted", "folder", "too-large"],
)
def test_a_token_file_that_holds_none_any_more_lets_nobody_in(make_app, people, edit):
    with running(make_app(TokenFile(people.path))) as port:
        assert [ask(port, people.ann), ask(port, people.bob)] == [200, 200]
        edit(people.path)
        assert [ask(port, people.ann), ask(port, people.bob)] == [401, 401]


def test_a_line_with_a_typo_lets_nobody_in_and_the_sound_lines_do(make_app, people, caplog):
    whole = people.path.read_text()
    with running(make_app(TokenFile(people.path))) as port:
        people.path.write_text("carol sha256:12\n" + _without("ann", people.path))
        assert [ask(port, people.ann), ask(port, people.bob)] == [401, 200]
        assert "tokens.txt:1: not of the form" in caplog.text
        people.path.write_text(whole.replace("ann sha256:", "ann sha256:0"))
        assert [ask(port, people.ann), ask(port, people.bob)] == [401, 200]
        people.path.write_text(whole)
        assert [ask(port, people.ann), ask(port, people.bob)] == [200, 200]


def test_an_edit_of_the_same_size_and_time_counts_too(make_app, people):
    stat, whole = people.path.stat(), people.path.read_text()
    with running(make_app(TokenFile(people.path))) as port:
        assert ask(port, people.ann) == 200
        people.path.write_text(whole.replace("ann", "#nn"))
        os.utime(people.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert [ask(port, people.ann), ask(port, people.bob)] == [401, 200]


# Clients that misbehave


@pytest.mark.parametrize("sent", [b"", b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "])
def test_headers_that_do_not_arrive_end_the_connection_with_a_reason(make_app, sent):
    with running(make_app(header_seconds=0.1)) as port, socket.create_connection(("127.0.0.1", port), 30) as client:
        client.sendall(sent)
        status, head, body = read_all(client)
        assert status == 408
        assert b"application/problem+json" in head
        assert json.loads(body)["type"] == "/problems/slow-body"


def test_headers_of_a_second_request_that_do_not_arrive_end_the_connection_too(make_app, recording):
    with running(make_app(header_seconds=0.1)) as port, socket.create_connection(("127.0.0.1", port), 30) as client:
        client.sendall(request(form(recording()), connection="keep-alive") + b"POST / HT")
        status, _, body = read_all(client)
        assert status == 200
        assert b"meeting" in body


def test_a_body_that_does_not_arrive_ends_with_a_reason(make_app, recording):
    body = form(recording())
    with running(make_app(body_seconds=0.1)) as port, socket.create_connection(("127.0.0.1", port), 30) as client:
        client.sendall(request(body[:-100], length=len(body), connection="keep-alive"))
        status, _, answer = read_all(client)
        assert status == 408
        assert json.loads(answer)["type"] == "/problems/slow-body"


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_client_that_hangs_up_in_the_middle_frees_the_engine_and_others_are_served(
    make_app, engine, recording, stream
):
    engine.hold = True
    with running(make_app()) as port:
        with socket.create_connection(("127.0.0.1", port), 30) as client:
            client.sendall(request(form(recording(), stream=stream)))
            assert engine.submitted.wait(30)
        cancelled = threading.Event()
        engine.futures[0].add_done_callback(lambda future: cancelled.set())
        assert cancelled.wait(30)
        assert engine.futures[0].cancelled()
        engine.hold = False
        with socket.create_connection(("127.0.0.1", port), 30) as client:
            client.sendall(request(form(recording())))
            assert read_all(client)[0] == 200


def test_half_a_body_and_gone_reaches_no_engine(make_app, engine, recording):
    body = form(recording())
    with running(app := make_app()) as port:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port), 30) as client:
                client.sendall(request(body[: len(body) // 2], length=len(body)))
        with socket.create_connection(("127.0.0.1", port), 30) as client:
            client.sendall(request(body))
            assert read_all(client)[0] == 200
    assert len(engine.asked) == 1
    assert (app.state.service.open_requests.held, app.state.service.body_bytes.held) == (0, 0)


def test_what_is_no_http_is_a_4xx_and_ends(make_app):
    with running(make_app()) as port:
        for garbage in (
            b"\x16\x03\x01\x02\x00 hello\r\n\r\n",
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n",
            b"\0" * 100 + b"\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", port), 30) as client:
                client.sendall(garbage)
                assert 400 <= read_all(client)[0] < 500


def test_a_thousand_connections_at_once_are_served_or_told_to_come_again(make_app, recording):
    body = request(form(recording(0.3)))

    async def one(port, opened, everybody):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        opened()
        await everybody.wait()
        writer.write(body)
        data = await reader.read()
        writer.close()
        return int(data.split()[1]), b"retry-after" in data

    async def crowd(port, count):
        everybody, there = asyncio.Event(), []

        def opened():
            there.append(1)
            if len(there) == count:
                everybody.set()

        return await asyncio.gather(*(one(port, opened, everybody) for _ in range(count)))

    with running(make_app(header_seconds=120)) as port:  # raises the limit of open files as it starts
        found = asyncio.run(crowd(port, 1000))
        with socket.create_connection(("127.0.0.1", port), 30) as client:
            client.sendall(body)
            assert read_all(client)[0] == 200
    assert {status for status, _ in found} <= {200, 429}
    assert all(again for status, again in found if status == 429)
    assert sum(status == 200 for status, _ in found) >= 1


# Clients that do not read, pipeline, or come in crowds


def get(path="/openapi.json", token=""):
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\r\n".encode()


def test_130_connections_that_do_not_read_keep_nobody_out(make_app, people):
    with running(make_app(TokenFile(people.path)), send_buffer=4096) as port, ExitStack() as stack:
        for _ in range(130):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(60)
            client.connect(("127.0.0.1", port))
            client.sendall(get("/") * 50)
            assert client.recv(1) == b"H"  # it is being answered, and no more of it is read
        assert {ask(port, people.ann) for _ in range(10)} == {200}
        assert ask(port, "") == 401


def test_an_answer_that_nobody_reads_ends_its_connection(make_app, people):
    app = make_app(TokenFile(people.path), header_seconds=0.2)
    with running(app, send_buffer=4096) as port, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(get("/"))
        ended = select.poll()
        ended.register(client, 0)  # a reset connection alone, not what there is to read
        assert ended.poll(60_000)


def test_a_second_request_before_the_first_is_answered_is_not_read(make_app):
    with running(make_app()) as port, socket.create_connection(("127.0.0.1", port), 60) as client:
        client.sendall(get("/v1/models") * 3)
        status, _, body = read_all(client)
        assert status == 200
        assert b"HTTP/1.1" not in body


def answered(client, path="/v1/models", token=""):
    """Whether the connection is still there for a request."""
    try:
        client.sendall(get(path, token))
        return client.recv(1) == b"H"
    except ConnectionError:
        return False


@pytest.mark.parametrize(
    ("source", "limits"), [("127.0.0.2", {"connections_per_address": 3}), ("127.0.0.1", {"max_connections": 3})]
)
def test_when_connections_are_taken_the_oldest_that_serves_nobody_gives_way(
    make_app, engine, people, recording, source, limits
):
    engine.hold = True
    with running(make_app(TokenFile(people.path), **limits)) as port, ExitStack() as stack:

        def connect():
            address = ("127.0.0.1", port)
            return stack.enter_context(socket.create_connection(address, 60, source_address=(source, 0)))

        bearer = f"Host: 127.0.0.1\r\nAuthorization: Bearer {people.ann}".encode()
        serving = connect()
        serving.sendall(request(form(recording())).replace(b"Host: 127.0.0.1", bearer))
        assert engine.submitted.wait(60)
        idle = [connect() for _ in range(5)]
        assert answered(idle[-1], token=people.bob)
        assert [answered(client) for client in idle[:-1]] == [False, False, False, True]
        engine.answer(0)
        assert read_all(serving)[0] == 200


# Audio that was made to cost


def claiming(audio, rate, channels, seconds):
    """A FLAC whose header (STREAMINFO: 20 bits rate, 3 channels - 1, 5 depth, 36 frames, from byte 18) claims what it does not hold."""
    packed = int.from_bytes(audio[18:26]) & (0b11111 << 36)
    packed |= rate << 44 | (channels - 1) << 41 | int(seconds * rate)
    return audio[:18] + packed.to_bytes(8) + audio[26:]


def test_audio_is_paid_for_by_its_header_and_a_dead_decoder_is_replaced(make_app, people, recording):
    app = make_app(TokenFile(people.path))
    with running(app) as port:

        def send(audio, token):
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            kind = {"Content-Type": "multipart/form-data; boundary=x", "Authorization": f"Bearer {token}"}
            client.request("POST", PATH, form(audio), kind)
            answer = client.getresponse()
            found = json.load(answer)
            client.close()
            return answer.status, found.get("detail", "")

        status, detail = send(claiming(recording(), 384_000, 8, 600), people.ann)
        assert (status, detail[:33]) == (422, "file: 384000 Hz and 8 channels; 1")
        assert send(recording(), people.ann)[0] == 200
        (decoder,) = app.state.service._decoders
        bounds = {
            kind: resource.prlimit(decoder.child.pid, kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU)
        }
        assert 0 < bounds[resource.RLIMIT_AS] < 2**30
        assert 0 < bounds[resource.RLIMIT_CPU] <= 60
        decoder.child.kill()
        decoder.child.wait()
        status, detail = send(recording(), people.ann)
        assert (status, "ended with SIGKILL" in detail) == (422, True)
        assert send(recording(), people.ann)[0] == 200
        for _ in range(2):  # 600 s of 48 kHz stereo, twice the seconds that they last: more than the minute's 1,200
            status, detail = send(claiming(recording(), 48_000, 2, 600), people.ann)
        assert (status, "1200 seconds of audio a minute" in detail) == (429, True)
        assert send(recording(), people.bob)[0] == 200
        pid = decoder.child.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_one_token_has_one_file_decoded_at_a_time(make_app, people, recording, monkeypatch):
    """Otherwise two of ann's would take both threads, and bob would wait."""
    go, entered, inside, decode = threading.Event(), threading.Semaphore(0), [], Decoder.decode

    def slow(self, data, accept, source):
        if data == recording(2.0):
            inside.append(data)
            entered.release()
            assert go.wait(60)
        return decode(self, data, accept, source)

    monkeypatch.setattr(Decoder, "decode", slow)
    with running(make_app(TokenFile(people.path))) as port, ExitStack() as stack:

        def send(audio, token):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), 60))
            bearer = f"Host: 127.0.0.1\r\nAuthorization: Bearer {token}".encode()
            client.sendall(request(form(audio)).replace(b"Host: 127.0.0.1", bearer))
            return client

        slow_ones = [send(recording(2.0), people.ann) for _ in range(3)]
        assert entered.acquire(timeout=60)
        assert read_all(send(recording(1.0), people.bob))[0] == 200
        assert len(inside) == 1
        go.set()
        assert [read_all(client)[0] for client in slow_ones] == [200, 200, 200]
