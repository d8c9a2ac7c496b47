"""What programs that were written for OpenAI's API send to a running ``idiolect serve``, and what they get."""

import io

import httpx
import numpy as np
import pytest
import soundfile

from fl.serving.http.auth import add_token

BASE, ALIAS = "random:whisper-nano", "gpt-4o-mini-transcribe"
APP, OTHER = "app://obsidian.md", "https://evil.example"
PATH = "/v1/audio/transcriptions"


def row(table_row, answer, *values):
    return pytest.param(*values, marks=pytest.mark.case("clients", table_row, "answer", answer))


def recording(seconds=0.6, scale=0.1):
    """Noise under a moving envelope, as bytes of FLAC."""
    samples = int(seconds * 16_000)
    noise = scale * np.random.default_rng(0).normal(size=samples) * (0.1 + np.abs(np.sin(np.arange(samples) / 2_000)))
    out = io.BytesIO()
    soundfile.write(out, noise.astype(np.float32), 16_000, format="FLAC")
    return out.getvalue()


@pytest.fixture(scope="module")
def client(serving):
    with httpx.Client(
        base_url=serving("--no-auth", "--alias", f"{ALIAS}={BASE}", "--cors-origin", APP), timeout=60
    ) as client:
        yield client


@pytest.fixture(scope="module")
def protected(serving, tmp_path_factory):
    """A server with tokens, and a client that has one."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.txt"
    headers = {"Authorization": f"bearer {add_token(path, 'phone')}"}
    url = serving("--tokens", str(path), "--any-model", "--cors-origin", APP)
    with httpx.Client(base_url=url, timeout=60, headers=headers) as client:
        yield client


def send(client, audio=None, path=PATH, headers=None, **fields):
    """A transcription; a field may be a list of values."""
    files = {"file": ("speech.flac", recording() if audio is None else audio)}
    return client.post(path, files=files, data=fields, headers=headers)


def told(answer):
    """What OpenAI's clients show of an error."""
    return answer.json()["error"]["message"]


# Languages


@pytest.fixture(scope="module")
def as_korean(client):
    korean, english = (send(client, language=code).json()["text"] for code in ("ko", "en"))
    assert korean != english
    return korean


@pytest.mark.parametrize(
    "language",
    [
        *(row(f"`language={text}`", "as `ko`", text) for text in ("ko-KR", "KO", "Korean", "ko_KR.UTF-8")),
    ],
)
def test_a_language_in_any_notation(client, as_korean, language):
    assert send(client, language=language).json()["text"] == as_korean


@pytest.mark.case("clients", "`language=klingon`", "answer", "refused: names what is a language")
def test_no_language(client):
    answer = send(client, language="klingon")
    assert (answer.status_code, told(answer)) == (
        422,
        "language 'klingon' is unknown: give a code such as 'ko', 'ko-KR' or 'Korean'",
    )


# Names of models


@pytest.mark.case("clients", f"`model={ALIAS}` after `--alias {ALIAS}=BASE`", "answer", "the base; the list shows it")
def test_an_alias(client):
    assert send(client, model=ALIAS).json() == send(client, model=BASE).json()
    assert [(m["id"], m["root"]) for m in client.get("/v1/models").json()["data"]] == [(BASE, BASE), (ALIAS, BASE)]
    assert client.get(f"/v1/models/{ALIAS}").json()["id"] == ALIAS


@pytest.mark.case("clients", "`model=whisper-large-v3`", "answer", "refused: lists the names, names `--alias`")
def test_an_unknown_model(client):
    answer = send(client, model="whisper-large-v3")
    assert (answer.status_code, told(answer)) == (
        404,
        f"model: 'whisper-large-v3' is not served, only '{BASE}', '{ALIAS}' and 'whisper-1'",
    )
    assert "--alias" in answer.json()["remedy"]


@pytest.mark.case("clients", "`model=whisper-large-v3` after `--any-model`", "answer", "the base")
def test_any_model(protected):
    assert send(protected, model="whisper-large-v3").status_code == 200
    assert protected.get("/v1/models/whisper-large-v3").json()["root"] == BASE


# Pages of other origins


def preflight(client, origin, method="POST"):
    """As a browser asks before a request with a token; it has none."""
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    return httpx.options(client.base_url.join(PATH), headers={"Origin": origin, **asked})


def allowed(answer):
    return answer.headers.get("access-control-allow-origin")


@pytest.mark.case("clients", f"a preflight of a page of `--cors-origin {APP}`", "answer", "allowed without a token")
def test_a_preflight_has_no_token(protected, client):
    for server in (protected, client):
        answer = preflight(server, APP)
        assert (answer.status_code, allowed(answer)) == (200, APP)
        assert answer.headers["access-control-allow-headers"] == "authorization,x-stainless-os"


@pytest.mark.case("clients", "a request of that page", "answer", "answered; it reads errors and streams too")
def test_a_page_of_a_named_origin_reads_every_answer(protected, client):
    headers = {"Origin": APP}
    for server in (protected, client):
        for answer, status in (
            (send(server, headers=headers), 200),
            (send(server, headers=headers, stream="true"), 200),
            (send(server, headers=headers, language="klingon"), 422),
            (server.get("/nowhere", headers=headers), 404),
        ):
            assert (answer.status_code, allowed(answer)) == (status, APP)
    assert allowed(httpx.get(protected.base_url.join("/v1/models"), headers=headers)) == APP  # 401


@pytest.mark.case("clients", "a request of a page of another origin", "answer", "not readable; without tokens refused")
def test_a_page_of_another_origin_reads_nothing(protected, client):
    for server, status in ((protected, 200), (client, 403)):
        assert allowed(preflight(server, OTHER)) is None
        answer = send(server, headers={"Origin": OTHER})
        assert (answer.status_code, allowed(answer)) == (status, None)
