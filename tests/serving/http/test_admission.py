"""Who may ask, how often, how much and how slowly: decided before a body is read, and answered as a problem document."""

import asyncio
import hashlib
import json
import logging
import os
import re

import pytest
from starlette.testclient import TestClient

from fl.core.errors import ConfigError
from fl.serving.engine.requests import BusyError
from fl.serving.http.auth import TokenFile, add_token, bearer_of, parse_tokens
from fl.serving.http.limits import RateLimit, ServerLimits
from fl.serving.http.problems import KINDS, ProblemError
from fl.speech.decode import Decoder

PATH, URL = "/v1/audio/transcriptions", "http://127.0.0.1"


# Tokens


def test_a_token_is_random_and_its_file_holds_only_its_hash(people):
    text = people.path.read_text()
    assert people.ann not in text
    assert f"ann sha256:{hashlib.sha256(people.ann.encode()).hexdigest()}" in text
    assert people.path.stat().st_mode & 0o777 == 0o600
    assert people.ann != people.bob
    assert len(people.ann) == len("idl_") + 43  # 256 bits in base64


def test_a_token_names_its_owner_and_nothing_like_it_does(people):
    tokens = TokenFile(people.path)
    assert (tokens.owner(people.ann), tokens.owner(people.bob)) == ("ann", "bob")
    for wrong in ("", people.ann[:-1], people.ann + "x", people.ann.upper(), "ann", "é", "\udc80", "x" * 10_000):
        assert tokens.owner(wrong) is None
    assert tokens.owner(hashlib.sha256(people.ann.encode()).hexdigest()) is None  # the file's content opens nothing


def test_every_hash_is_compared_in_constant_time_and_no_match_ends_the_search(people, monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: bool(compared.append((a, b))) or a == b)
    assert TokenFile(people.path).owner(people.ann) == "ann"
    assert len(compared) == 2


def test_a_token_that_is_removed_from_the_file_is_refused_at_once(people):
    tokens = TokenFile(people.path)
    kept = [line for line in people.path.read_text().splitlines() if not line.startswith("ann ")]
    people.path.write_text("\n".join(kept))
    assert tokens.owner(people.ann) is None
    assert tokens.owner(people.bob) == "bob"
    people.path.write_text("half a li")
    assert tokens.owner(people.bob) is None


@pytest.mark.parametrize(
    "line",
    [
        "ann",
        "ann sha256:12",
        "ann sha256:" + "g" * 64,
        "a b sha256:" + "0" * 64,
        "idl_secret-token",
        "ä sha256:" + "0" * 64,
    ],
)
def test_a_line_that_is_none_is_named_by_number_and_never_quoted(line):
    names, (fault,) = parse_tokens(f"# comment\u2028of names\n{line}\nbob sha256:{'1' * 64}\n".encode(), "tokens")
    assert names == {"1" * 64: "bob"}
    assert fault.startswith("tokens:2: ")
    assert line not in fault


def test_names_and_tokens_stand_once_and_a_file_without_any_is_refused(tmp_path, people):
    with pytest.raises(ConfigError, match="already"):
        add_token(people.path, "ann")
    with pytest.raises(ConfigError, match="not allowed"):
        add_token(people.path, "ann smith\nbob")
    names, (fault,) = parse_tokens(f"a sha256:{'0' * 64}\nb sha256:{'0' * 64}\n".encode(), "x")
    assert names == {"0" * 64: "a"}
    assert "x:2: " in fault
    assert "twice" in fault
    empty = tmp_path / "empty"
    empty.write_text("# nobody\n")
    for path in (empty, tmp_path / "missing"):
        with pytest.raises(ConfigError, match="idiolect token"):
            TokenFile(path)


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer x", "x"),
        ("bearer  x ", "x"),
        ("Basic x", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("", None),
        ("x", None),
    ],
)
def test_a_header_has_a_token_or_none(header, token):
    assert bearer_of(header) == token


@pytest.mark.parametrize("header", [None, "Basic YTpi", "Bearer", "Bearer wrong", "Bearer idl_" + "A" * 43])
def test_without_a_valid_token_no_route_but_the_public_ones_answers(make_app, engine, people, recording, header):
    headers = {} if header is None else {"Authorization": header}
    with TestClient(make_app(TokenFile(people.path)), base_url="https://speech.example") as client:
        for method, path in (
            ("POST", PATH),
            ("PUT", "/v1/adapters"),
            ("GET", "/v1/models"),
            ("GET", "/metrics"),
            ("GET", "/nowhere"),
        ):
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["type"] == "/problems/unauthorized"
            assert answer.headers["www-authenticate"].startswith("Bearer")
        for path in ("/healthz", "/openapi.json", "/", "/problems/busy"):
            assert client.get(path, headers=headers).status_code == 200
        files = {"file": ("a.flac", recording())}
        assert client.post(PATH, files=files, headers=people.header(people.ann)).status_code == 200
    assert len(engine.asked) == 1


def test_without_tokens_only_this_machine_is_answered_under_its_own_name(client):
    for headers in (
        {"host": "speech.example"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"host": "[broken"},
    ):
        answer = client.get("/v1/models", headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (403, "/problems/forbidden-origin")
    for headers in ({"host": "localhost:8000"}, {"host": "[::1]:8000", "origin": "http://[::1]:8000"}):
        assert client.get("/v1/models", headers=headers).status_code == 200


# Rates


def test_a_rate_lets_a_minutes_worth_through_and_fills_again(clock):
    rate = RateLimit("requests", 60, clock)
    for _ in range(60):
        rate.take("ann")
    with pytest.raises(ProblemError, match="60 requests a minute") as raised:
        rate.take("ann")
    assert (raised.value.slug, raised.value.response().headers["retry-after"]) == ("rate-limited", "1")
    rate.take("bob")
    clock.now += 1.0
    rate.take("ann")
    with pytest.raises(ProblemError):
        rate.take("ann")


def test_what_costs_more_than_is_left_is_let_through_once_and_paid_off_later(clock):
    rate = RateLimit("seconds of audio", 60, clock)
    rate.take("ann", 50)
    rate.take("ann", 100)  # ten are left; now 90 are owed
    with pytest.raises(ProblemError) as raised:
        rate.take("ann", 5)
    assert int(raised.value.response().headers["retry-after"]) >= 90
    clock.now += 92
    rate.take("ann", 5)


def test_zero_is_no_limit():
    rate = RateLimit("requests", 0)
    for _ in range(1000):
        rate.take("ann")


def test_each_token_has_its_own_rates_over_http(make_app, engine, people, recording):
    app = make_app(TokenFile(people.path), requests_per_minute=2, audio_seconds_per_minute=3)
    files = {"file": ("a.flac", recording(2.0))}
    with TestClient(app, base_url=URL) as client:
        ann, bob = people.header(people.ann), people.header(people.bob)
        statuses = [client.post(PATH, files=files, headers=ann).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert client.post(PATH, files={"file": ("a.flac", recording(4.0))}, headers=bob).status_code == 200
        answer = client.post(PATH, files=files, headers=bob)
        assert (answer.status_code, answer.json()["type"]) == (429, "/problems/rate-limited")
        assert "seconds of audio" in answer.json()["detail"]
        assert int(answer.headers["retry-after"]) >= 1
    assert len(engine.asked) == 3


def test_an_exhausted_budget_pays_for_no_decoding(make_app, engine, people, recording, monkeypatch):
    app = make_app(TokenFile(people.path), audio_seconds_per_minute=3)
    with TestClient(app, base_url=URL) as client:
        ann, bob = people.header(people.ann), people.header(people.bob)
        assert client.post(PATH, files={"file": ("a.flac", recording(4.0))}, headers=ann).status_code == 200
        with monkeypatch.context() as patch:
            patch.setattr(Decoder, "decode", lambda *_: pytest.fail("something was decoded"))
            assert client.post(PATH, files={"file": ("a.flac", recording(4.0))}, headers=ann).status_code == 429
        assert client.post(PATH, files={"file": ("a.flac", recording(2.0))}, headers=bob).status_code == 200
    assert len(engine.asked) == 2


# Sizes


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_read(make_app):
    with TestClient(make_app(max_body_bytes=1000), base_url=URL) as client:
        answer = client.post(PATH, content=b"x" * 1001)
        assert (answer.status_code, answer.json()["type"]) == (413, "/problems/too-large")
        answer = client.post(PATH, headers={"content-length": "9" * 40}, content=b"")
        assert answer.status_code == 413


def test_a_body_that_does_not_say_its_size_is_refused_where_it_becomes_too_large(make_app):
    def chunks():
        yield b"--x\r\n"
        yield b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(20):
            yield b"y" * 100

    with TestClient(make_app(max_body_bytes=1000), base_url=URL) as client:
        answer = client.post(PATH, content=chunks(), headers={"content-type": "multipart/form-data; boundary=x"})
        assert (answer.status_code, answer.json()["type"]) == (413, "/problems/too-large")
        assert client.app.state.service.body_bytes.held == 0


def test_audio_beyond_the_limit_is_refused(make_app, engine, recording):
    with TestClient(make_app(max_audio_seconds=2), base_url=URL) as client:
        answer = client.post(PATH, files={"file": ("a.flac", recording(3.0))})
        assert (answer.status_code, answer.json()["type"]) == (413, "/problems/audio-too-long")
    assert engine.asked == []


# Time and room, on the bare ASGI app


async def call(app, messages, path=PATH, method="POST", headers=()):
    """The status, headers and document of one request whose body comes from ``messages`` (and then hangs)."""
    queue, sent = list(messages), []

    async def receive():
        if queue:
            return queue.pop(0)
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost"), *headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    if not sent:
        return 0, {}, None
    body = b"".join(m.get("body", b"") for m in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(body) if body else None


FORM = (b"content-type", b"multipart/form-data; boundary=x")
PIECE = {
    "type": "http.request",
    "body": b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nab',
    "more_body": True,
}


def test_a_body_that_does_not_arrive_is_given_up(make_app):
    app = make_app(body_seconds=0.01)
    status, headers, document = asyncio.run(call(app, [PIECE], headers=[FORM]))
    assert (status, document["type"]) == (408, "/problems/slow-body")
    assert headers[b"connection"] == b"close"
    assert (app.state.service.open_requests.held, app.state.service.body_bytes.held) == (0, 0)


def test_when_as_many_requests_are_open_as_may_be_the_next_is_told_to_come_again(make_app):
    app = make_app(max_open_requests=2)

    async def crowd():
        waiting = [asyncio.create_task(call(app, [PIECE], headers=[FORM])) for _ in range(2)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        refused = await call(app, [PIECE], headers=[FORM])
        healthy = await call(app, [], path="/healthz", method="GET")
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return refused, healthy, await call(app, [{"type": "http.request"}], headers=[FORM])

    (status, headers, document), healthy, after = asyncio.run(crowd())
    assert (status, document["type"], headers[b"retry-after"]) == (429, "/problems/busy", b"1")
    assert healthy[0] == 200
    assert after[0] == 422  # let in again, and refused for its empty body
    assert app.state.service.open_requests.held == 0


def test_all_bodies_together_are_bounded(make_app):
    app = make_app(max_buffered_bytes=100)
    large = {**PIECE, "body": PIECE["body"] + b"y" * 100}
    status, _, document = asyncio.run(call(app, [large], headers=[FORM]))
    assert (status, document["type"]) == (429, "/problems/busy")
    assert app.state.service.body_bytes.held == 0


def test_a_client_that_hangs_up_while_it_sends_leaves_nothing_behind(make_app, engine):
    app = make_app()
    assert asyncio.run(call(app, [PIECE, {"type": "http.disconnect"}], headers=[FORM])) == (0, {}, None)
    assert (engine.asked, app.state.service.open_requests.held, app.state.service.body_bytes.held) == ([], 0, 0)


@pytest.mark.parametrize("stream", [b"true", b"false"])
def test_when_the_client_hangs_up_the_engine_is_told(make_app, engine, recording, stream):
    engine.hold = True
    app = make_app()
    parts = b'--x\r\nContent-Disposition: form-data; name="stream"\r\n\r\n' + stream + b"\r\n"
    parts += PIECE["body"][:-2] + recording() + b"\r\n--x--\r\n"

    async def run():
        gone = asyncio.Event()
        queue = [{"type": "http.request", "body": parts}]

        async def receive():
            if queue:
                return queue.pop(0)
            await gone.wait()
            return {"type": "http.disconnect"}

        sent = []

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": PATH,
            "raw_path": PATH.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"localhost"), FORM],
            "client": None,
            "server": None,
        }
        task = asyncio.create_task(app(scope, receive, send))
        while not engine.futures:
            await asyncio.sleep(0.001)
        gone.set()
        await task
        return sent

    assert asyncio.run(run()) == []
    assert all(future.cancelled() for future in engine.futures)
    assert app.state.service.open_requests.held == 0


def test_an_answer_that_is_never_ready_ends_with_the_deadline(make_app, engine, recording, monkeypatch):
    engine.hold = True
    monkeypatch.setattr(ServerLimits, "answer_seconds", lambda self, path: 0.05)
    with TestClient(make_app(), base_url=URL) as client:
        answer = client.post(PATH, files={"file": ("a.flac", recording())})
    assert (answer.status_code, answer.json()["type"]) == (408, "/problems/deadline")
    assert all(future.cancelled() for future in engine.futures)


# Problems


def test_unknown_paths_and_methods_are_problems_too(client):
    assert client.get("/nowhere").json()["type"] == "/problems/not-found"
    answer = client.get(PATH)
    assert (answer.status_code, answer.json()["type"], answer.headers["allow"]) == (
        405,
        "/problems/method-not-allowed",
        "POST",
    )


def test_each_kind_of_problem_is_explained_where_its_type_points(client):
    for slug, kind in KINDS.items():
        found = client.get(f"/problems/{slug}").json()
        assert (found["status"], found["title"], found["remedy"]) == (kind.status, kind.title, kind.remedy)
    assert client.get("/problems/none").status_code == 404


def test_only_faults_of_the_server_have_a_status_of_500_and_more():
    assert {slug for slug, kind in KINDS.items() if kind.status >= 500} == {"internal", "closing"}


# What is said about a request afterwards

SECRETS = ("marker-name", "marker-text", "marker-prompt", "marker-trans", "marker-query", "marker-fault")


class LoudError(Exception):
    """Quotes what a person said, as exceptions of libraries do."""


def test_no_log_and_no_metric_holds_what_a_person_sent_or_said_or_who_it_was(
    make_app, engine, people, packed, recording, caplog, capfd
):
    engine.text = lambda request: "marker-trans 비밀"
    fields = {"prompt": "marker-prompt", "model": "marker-text"}
    with (
        caplog.at_level(logging.DEBUG),
        TestClient(make_app(TokenFile(people.path)), base_url=URL, raise_server_exceptions=False) as client,
    ):
        headers = people.header(people.ann)

        def post(data=(), audio=None):
            files = {"file": ("marker-name.flac", recording() if audio is None else audio)}
            return client.post(f"{PATH}?x=marker-query", files=files, data=dict(data), headers=headers)

        assert post().status_code == 200
        assert post({"response_format": "verbose_json"}).status_code == 200
        assert post({"stream": "true"}).status_code == 200
        assert post(fields).status_code == 404
        assert post({"language": "marker-text"}).status_code == 422
        assert post(audio=b"marker-text").status_code == 422
        handle = client.put("/v1/adapters", content=packed(base_name="marker-text"), headers=headers).json()["handle"]
        assert client.get(f"/v1/adapters/{handle}", headers=headers).status_code == 200
        client.get("/v1/models", headers={"Authorization": "Bearer marker-text"})
        client.get("/marker-query", headers=headers)
        for stream in ("false", "true"):
            engine.error = lambda request: LoudError("marker-fault: marker-trans")
            answer = post({"stream": stream})
            assert "marker" not in answer.text
            assert answer.status_code == 500
        engine.error = lambda request: None
        engine.refuse = LoudError("marker-fault")
        assert post().status_code == 500
        engine.refuse = BusyError("full", 1.0)
        assert post().status_code == 429
        metrics = client.get("/metrics", headers=headers).text
    shown = capfd.readouterr()
    ours = "\n".join(
        r.getMessage() + (r.exc_text or "") for r in caplog.records if r.name.startswith(("fl.", "uvicorn"))
    )
    formatted = "\n".join(caplog.handler.format(r) for r in caplog.records if not r.name.startswith("httpx"))
    for text in (ours, formatted, shown.out, shown.err, metrics):
        for secret in (*SECRETS, people.ann, people.bob, handle, "비밀"):
            assert secret not in text
    assert not re.search(r"\bann\b", ours + metrics)
    assert "POST /v1/audio/transcriptions 200" in ours
    assert "LoudError at " in ours  # where it came from is there
    assert 'idiolect_requests_total{route="/v1/adapters/{handle}",status="200"}' in metrics
    assert 'idiolect_problems_total{kind="busy"} 1.0' in metrics
    assert 'idiolect_stage_seconds_sum{stage="queue"}' in metrics
    assert "idiolect_engine_queued 0.0" in metrics
    assert "idiolect_handles 1.0" in metrics


def test_nothing_that_was_sent_touches_a_disk(make_app, engine, recording, monkeypatch, tmp_path):
    """Starlette's own parser would spool a recording of 2 MB to a temporary file."""
    monkeypatch.setattr("tempfile._get_default_tempdir", lambda: pytest.fail("a temporary file was made"))
    monkeypatch.setattr("tempfile.NamedTemporaryFile", lambda *a, **k: pytest.fail("a temporary file was made"))
    monkeypatch.setattr("tempfile.TemporaryFile", lambda *a, **k: pytest.fail("a temporary file was made"))
    monkeypatch.setattr(os, "open", lambda *a, **k: pytest.fail("a file was opened"))
    with TestClient(make_app(), base_url=URL) as client:
        audio = recording(80.0, "WAV")
        assert len(audio) > 2**21
        assert client.post(PATH, files={"file": ("a.wav", audio)}).status_code == 200


@pytest.mark.parametrize("name", ["max_body_bytes", "threads", "requests_per_minute"])
def test_a_limit_that_makes_no_sense_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=name):
        ServerLimits(**{name: -1})
