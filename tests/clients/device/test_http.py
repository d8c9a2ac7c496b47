"""Speaking to a server that is slow, busy, wrong, or not there."""

import json
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from benchmarks.stub_server import HANG_UP, Reply, problem
from clients.device.http import Connection, RetryPolicy, ServerAddress
from clients.device.messages import (
    FormPart,
    RefusedError,
    RequestBody,
    ServerAnswer,
    UnreachableError,
    parse_retry_after,
)
from fl.core.errors import ConfigError, IdiolectError

BODY = RequestBody((b"ab", b"cd"), "text/plain")
GOOD = Reply(body=b'{"text": "good"}')


@pytest.fixture
def connection(server, retry):
    return Connection(ServerAddress(server.url, timeout=5.0), retry)


def post(connection, path="/x", key="k1"):
    return connection.call("POST", path, BODY, ServerAnswer.json, key=key)


def test_a_good_answer_takes_one_request(server, connection):
    server.script.append(GOOD)
    assert post(connection) == {"text": "good"}
    assert server.requests[0].body == b"abcd"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again_with_the_same_key_and_body(server, connection, waits, status):
    server.script.extend([problem(status, "busy"), problem(status, "busy"), GOOD])
    assert post(connection) == {"text": "good"}
    assert [(r.headers["Idempotency-Key"], r.body) for r in server.requests] == [("k1", b"abcd")] * 3
    assert waits == [0.5, 1.0]


@pytest.mark.parametrize(
    "trouble",
    [HANG_UP, Reply(body=b'{"text": "go', cut=3), Reply(body=b"x" * 200_000, cut=100_000)],
    ids=["hangs up", "cuts the answer", "cuts a long answer"],
)
def test_an_answer_that_breaks_off_is_asked_for_again(server, connection, waits, trouble):
    server.script.extend([trouble, GOOD])
    assert post(connection) == {"text": "good"}
    assert len(waits) == 1


def test_a_connection_is_used_again_and_one_that_went_stale_costs_no_wait(server, connection, waits):
    server.script.extend([GOOD, HANG_UP, GOOD])
    assert post(connection) == post(connection) == {"text": "good"}
    assert waits == []


def test_waits_grow_to_a_cap_and_are_drawn_from_all_that_is_below():
    bounds = []
    retry = RetryPolicy(base=1.0, cap=5.0, uniform=lambda low, high: bounds.append((low, high)) or 0.25 * high)
    assert [retry.wait(attempt, None) for attempt in (1, 2, 3, 4, 5)] == [0.25, 0.5, 1.0, 1.25, 1.25]
    assert bounds == [(0.0, 1.0), (0.0, 2.0), (0.0, 4.0), (0.0, 5.0), (0.0, 5.0)]
    assert retry.wait(1, 7.0) == 7.25  # never before the server said


def test_retry_after_is_honoured(server, connection, waits):
    server.script.extend([problem(429, "busy", Retry_After="7"), GOOD])
    post(connection)
    assert waits == [7.5]


def test_a_server_that_asks_for_more_time_than_there_is_is_not_waited_for(server, connection, waits):
    server.script.append(problem(429, "rate-limited", "this token has used its 240 requests", Retry_After="3600"))
    with pytest.raises(UnreachableError, match="this token has used its 240 requests"):
        post(connection)
    assert waits == []


def test_attempts_end_with_a_typed_error_that_says_why(server, connection, waits):
    server.script.extend([problem(503, "closing", "the server is shutting down")] * 3)
    with pytest.raises(UnreachableError, match=r"after 3 attempts.*shutting down"):
        post(connection)
    assert len(server.requests) == 3
    assert len(waits) == 2


def test_nobody_at_the_address_is_a_typed_error(retry):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(UnreachableError, match="ConnectionRefusedError"):
        post(Connection(ServerAddress(url), retry))


def test_a_server_that_never_answers_times_out(retry):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UnreachableError, match="TimeoutError"):
            post(Connection(ServerAddress(url, timeout=0.05), retry))


@pytest.mark.parametrize("status", [301, 302, 400, 401, 403, 404, 413, 422])
def test_what_will_not_change_is_refused_at_once_with_the_servers_reason(server, connection, status):
    server.script.append(problem(status, "some-slug", "because of this", Location="http://127.0.0.1:1/"))
    with pytest.raises(RefusedError, match=rf"{status} some-slug\): because of this") as caught:
        post(connection)
    assert (caught.value.status, caught.value.slug) == (status, "some-slug")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>not found</html>", b"[]", b'{"type": 5, "detail": {"a": 1}}', b"\xff\xfe", b"[" * 60_000],
    ids=["empty", "html", "list", "odd", "bytes", "deep"],
)
def test_a_refusal_without_a_problem_document_is_one_all_the_same(server, connection, body):
    server.script.append(Reply(404, body))
    with pytest.raises(RefusedError, match="404"):
        post(connection)


def test_what_a_server_says_cannot_steer_a_terminal_or_flood_it(server, connection):
    server.script.append(problem(422, "unservable", "\x1b[2J\x07" + "x" * 5000))
    with pytest.raises(RefusedError) as caught:
        post(connection)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_after_a_refusal_the_next_request_is_answered(server, connection):
    server.script.extend([problem(404, "unknown-handle"), GOOD])
    with pytest.raises(RefusedError):
        post(connection)
    assert post(connection) == {"text": "good"}


@pytest.mark.parametrize("body", [b"no json", b"[1]", b"", b"\xff", b"[" * 100_000], ids=str)
def test_a_good_status_with_something_else_than_json_is_refused(server, connection, body):
    server.script.append(Reply(body=body[:50_000]))
    with pytest.raises(RefusedError, match="right address"):
        post(connection)


def test_an_answer_beyond_the_limit_is_not_read(server, connection):
    server.script.append(Reply(body=bytes(1_000_000)))
    with pytest.raises(RefusedError, match="more than 1,000 bytes"):
        connection.call("POST", "/x", BODY, lambda answer: answer.content(1000))


def test_a_server_that_drips_is_given_up_when_time_is_over(server, waits):
    now = iter(range(0, 10_000, 40))
    connection = Connection(ServerAddress(server.url), RetryPolicy(clock=lambda: float(next(now))))
    server.script.append(Reply(body=bytes(1_000_000)))
    with pytest.raises(UnreachableError, match="too slowly"):
        post(connection)


def test_the_answer_of_a_server_that_refuses_before_it_has_read_is_read(retry):
    """It answers 413 and stops reading while a large body is still on its way."""
    answer = json.dumps({"type": "/problems/too-large", "detail": "32 MiB at most"}).encode()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def refuse():
            with suppress(OSError), listening.accept()[0] as peer:
                peer.recv(1000)
                peer.sendall(
                    b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
                    % (len(answer), answer)
                )

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        connection = Connection(ServerAddress(url, timeout=5.0), replace(retry, attempts=1))
        with pytest.raises(RefusedError, match="32 MiB at most"):
            connection.call("POST", "/x", RequestBody((bytes(1 << 20),) * 64, "text/plain"), ServerAnswer.json)
        thread.join(10)


# Secrets


def test_the_token_goes_into_its_header_and_nowhere_else(server, retry, caplog):
    token = "secret-token-7391"
    connection = Connection(ServerAddress(server.url, token), retry)
    server.script.extend([problem(401, "unauthorized")])
    with pytest.raises(RefusedError) as caught:
        post(connection)
    assert server.requests[0].headers["Authorization"] == f"Bearer {token}"
    assert token not in f"{caught.value!r} {connection.server!r} {caplog.text} {server.requests[0].path}"


@pytest.mark.parametrize("token", ["a b", "a\r\nHost: evil", "비밀", "a\0"])
def test_a_token_that_cannot_be_one_is_refused_without_showing_it(token):
    with pytest.raises(ConfigError) as caught:
        ServerAddress("https://example.org", token)
    assert token not in str(caught.value)


def test_a_redirect_is_not_followed_with_the_token(server, retry):
    server.script.append(Reply(307, b"", headers={"Location": f"{server.url}/elsewhere"}))
    with pytest.raises(RefusedError, match="307"):
        post(Connection(ServerAddress(server.url, "token"), retry))
    assert len(server.requests) == 1


# TLS


@pytest.fixture
def certificate(tmp_path):
    """A self-signed certificate for 127.0.0.1 and its key, as files."""
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stub")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "cert.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return tmp_path / "cert.pem", tmp_path / "key.pem"


@pytest.fixture
def tls_server(server, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    server.http.handle_error = lambda *_: None  # a client that does not trust it hangs up
    return server


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once_and_nothing_is_sent(tls_server, retry, waits):
    connection = Connection(ServerAddress(tls_server.url.replace("http", "https"), "token"), retry)
    with pytest.raises(RefusedError, match=r"not trusted.*--ca"):
        post(connection)
    assert waits == []
    assert tls_server.requests == []


def test_with_its_authority_the_server_is_trusted_for_its_name_alone(tls_server, retry, certificate):
    url = tls_server.url.replace("http", "https")
    tls_server.script.append(GOOD)
    assert post(Connection(ServerAddress(url, ca=str(certificate[0])), retry)) == {"text": "good"}
    with pytest.raises(RefusedError, match="not trusted"):
        post(Connection(ServerAddress(url.replace("127.0.0.1", "localhost"), ca=str(certificate[0])), retry))


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_file_without_certificates_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "ca.pem").write_bytes(content)
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        Connection(ServerAddress("https://example.org", ca=str(tmp_path / "ca.pem")))


# Small parts


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 5.0),
        (" 12 ", 12.0),
        ("Thu, 01 Jan 1970 00:01:00 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("5.5", None),
        ("٥", None),
        ("9" * 100, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text, seconds):
    assert parse_retry_after(text, now=40.0) == seconds


def test_a_form_holds_what_was_put_in_whatever_is_in_it():
    from benchmarks.stub_server import _parse_form

    nasty = b'--x\r\nContent-Disposition: form-data; name="evil"\r\n\r\n' + bytes(range(256))
    body = RequestBody.form(
        [
            *FormPart.texts(language="ko", stream=""),
            FormPart("file", nasty, "audio.flac", "audio/flac"),
            *FormPart.texts(texts="말"),
        ]
    )
    form = _parse_form(body.content_type, b"".join(body.parts))
    assert form == {"language": [b"ko"], "file": [nasty], "texts": ["말".encode()]}


def test_every_error_is_one_that_the_command_line_prints():
    assert issubclass(UnreachableError, IdiolectError)
    assert issubclass(RefusedError, IdiolectError)
