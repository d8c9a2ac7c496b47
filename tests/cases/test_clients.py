"""What programs that were written for OpenAI's API send to a running ``idiolect serve``, and what they get."""

import io
import json

import httpx
import numpy as np
import pytest
import soundfile

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
def protected(with_tokens):
    """A client of a server with tokens that has one."""
    url, token = with_tokens
    with httpx.Client(base_url=url, timeout=60, headers={"Authorization": f"bearer {token}"}) as client:
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


# Nothing was said


FORMATS = [
    ({}, {"text": ""}),
    ({"response_format": "text"}, "\n"),
    ({"response_format": "srt"}, ""),
    ({"response_format": "vtt"}, "WEBVTT\n\n"),
    ({"response_format": "verbose_json"}, {"text": "", "duration": 2.0, "segments": [], "words": []}),
    ({"stream": "true"}, {"type": "transcript.text.done", "text": "", "duration": 2.0}),
]


@pytest.mark.case(
    "clients",
    "silence, in every `response_format` and as a stream",
    "answer",
    "200, empty, `X-Idiolect-Empty: silence`",
)
@pytest.mark.parametrize("scale", [0.0, 1e-4])
@pytest.mark.parametrize(("fields", "wanted"), FORMATS, ids=str)
def test_silence_is_an_empty_text(client, fields, wanted, scale):
    answer = send(client, recording(2.0, scale), **fields)
    assert (answer.status_code, answer.headers.get("x-idiolect-empty")) == (200, "silence")
    if isinstance(wanted, str):
        assert answer.text == wanted
    else:
        assert wanted.items() <= json.loads(answer.text.partition("data: ")[2] or answer.text).items()
    assert "x-idiolect-empty" not in send(client, **fields).headers


@pytest.mark.case("clients", "a recording of 0.1 s", "answer", "400 `audio-too-short`, as OpenAI's")
def test_too_short(client):
    answer = send(client, recording(0.1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "audio-too-short")
    assert told(answer) == "file: 0.10 s is too short; speech has at least 0.2 s"


@pytest.mark.parametrize(
    ("audio", "reason"),
    [
        row("an empty file", "refused: record it again", b"", "file: is empty; record it again"),
        row("a file that is no audio", "refused: names what is read", b"no audio" * 100, "cannot be read as audio"),
    ],
)
def test_a_broken_file_stays_an_error(client, audio, reason):
    answer = send(client, audio)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unusable-audio")
    assert reason in told(answer)


# Fields


@pytest.mark.case(
    "clients",
    "`language=`, `prompt=`, `temperature=`, `response_format=`, `model=`, `stream=`",
    "answer",
    "as not given",
)
@pytest.mark.parametrize("value", ["", " "])
def test_empty_fields_are_as_not_given(client, value):
    names = ("language", "prompt", "temperature", "response_format", "model", "stream", "timestamp_granularities[]")
    for name in (*names, "beams", "adapter_handle"):
        assert send(client, **{name: value}).json() == send(client).json(), name
    nothing_chosen = [("file", ("a.flac", recording())), ("adapter", ("", b"", "application/octet-stream"))]
    assert client.post(PATH, files=nothing_chosen).json() == send(client).json()


WORD, BOTH = {"words"}, {"words", "segments"}


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        row("`timestamp_granularities[]=word`", "words", {"timestamp_granularities[]": "word"}, WORD),
        row("the same without brackets, or with an index", "words", {"timestamp_granularities": "word"}, WORD),
        row("the same without brackets, or with an index", "words", {"timestamp_granularities[0]": ["word"]}, WORD),
        row("several `timestamp_granularities[]`", "each", {"timestamp_granularities[]": ["word", "segment"]}, BOTH),
        row(
            '`timestamp_granularities=["word", "segment"]`, `word,segment`',
            "each",
            {"timestamp_granularities": '["word", "segment"]'},
            BOTH,
        ),
        row(
            '`timestamp_granularities=["word", "segment"]`, `word,segment`',
            "each",
            {"timestamp_granularities": "segment, word"},
            BOTH,
        ),
        row("`timestamp_granularities=[]`", "as not given: both", {"timestamp_granularities": "[]"}, BOTH),
    ],
)
def test_granularities_in_any_notation(client, fields, wanted):
    found = send(client, response_format="verbose_json", **fields).json()
    assert found.keys() & BOTH == wanted


@pytest.mark.case("clients", "`timestamp_granularities=syllable`", "answer", "refused: names what is allowed")
def test_no_granularity(client):
    answer = send(client, timestamp_granularities="syllable")
    assert answer.status_code == 422
    assert "'word' or 'segment'" in told(answer)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        *(row("`stream=false`, `False`, `0`", "one document", v, "application/json") for v in ("false", "False", "0")),
        *(row("`stream=true`, `True`, `1`", "events", v, "text/event-stream") for v in ("true", "True", "1")),
    ],
)
def test_stream_as_text(client, value, kind):
    assert send(client, stream=value).headers["content-type"].startswith(kind)


@pytest.mark.case(
    "clients",
    "`chunking_strategy`, `include[]`, `known_speaker_names[]`, `user` and others; parameters in the query",
    "answer",
    "not used, named in `X-Idiolect-Ignored`",
)
def test_fields_that_are_not_known_are_named(client):
    extra = {
        "chunking_strategy": "auto",
        "include[]": "logprobs",
        "known_speaker_names[]": ["a", "b"],
        "a b\u2028": "x",
    }
    answer = send(client, path=PATH + "?api-version=2024-06-01", **extra)
    assert answer.json() == send(client).json()
    assert answer.headers["x-idiolect-ignored"] == "?, api-version, chunking_strategy, include, known_speaker_names"
    assert "x-idiolect-ignored" not in send(client, prompt="x", temperature="0", model="whisper-1").headers


@pytest.mark.case("clients", "audio in a part without a file name", "answer", "refused: says what is missing")
def test_audio_without_a_file_name(client):
    answer = client.post(PATH, files={"file": (None, recording())})
    assert (answer.status_code, told(answer)) == (422, "file: is a text; send it as a part with a file name")


@pytest.mark.case("clients", "JSON, or the audio alone, as the body", "answer", "refused: a form is expected")
@pytest.mark.parametrize("kind", ["application/json", "audio/flac", "application/x-www-form-urlencoded"])
def test_a_body_that_is_no_form(client, kind):
    answer = client.post(PATH, content=recording(), headers={"Content-Type": kind})
    assert (answer.status_code, told(answer)) == (400, f"the body is {kind}; multipart/form-data is expected")


@pytest.mark.case(
    "clients", "a form whose `Content-Type` was set by hand, without its boundary", "answer", "refused: says so"
)
def test_a_form_without_a_boundary(client):
    answer = client.post(PATH, content=recording(), headers={"Content-Type": "multipart/form-data"})
    assert (answer.status_code, told(answer)) == (400, "the body is no multipart form: Missing boundary in multipart.")


@pytest.mark.case("clients", "`response_format=diarized_json`", "answer", "refused: names the formats")
def test_a_format_that_there_is_not(client):
    answer = send(client, response_format="diarized_json")
    assert answer.status_code == 422
    assert "'json', 'text', 'verbose_json', 'srt' or 'vtt'" in told(answer)


# Addresses


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        row("`/v1/audio/transcriptions/`, `/v1//audio/transcriptions`", "answered", PATH + "/", 200),
        row("`/v1/audio/transcriptions/`, `/v1//audio/transcriptions`", "answered", "/v1//audio/transcriptions", 200),
        *(
            row("the same without `/v1`, or with two", "refused: says how the address ends", path, "that ends with /v1")
            for path in ("/audio/transcriptions", "/v1/v1/audio/transcriptions", f"{PATH}/audio/transcriptions")
        ),
        row(
            "`/v1/audio/translations`", "refused: names transcriptions", "/v1/audio/translations", "does not translate"
        ),
    ],
)
def test_addresses(client, path, wanted):
    answer = send(client, path=path)
    if isinstance(wanted, int):
        assert answer.json() == send(client).json()
    else:
        assert answer.status_code == 404
        assert wanted in told(answer)


@pytest.mark.case(
    "clients", "`GET` and `HEAD` of `/health`, `/healthz`, `/v1/models`", "answer", "answered; health without a token"
)
def test_probes(protected):
    for path in ("/health", "/healthz", "/v1/models", f"/v1/models/{BASE}", "/v1/models/"):
        for method in ("GET", "HEAD"):
            answer = protected.request(method, path)
            assert (answer.status_code, bool(answer.content)) == (200, method == "GET")
            if "health" in path:
                assert httpx.request(method, protected.base_url.join(path)).status_code == 200


@pytest.mark.case("clients", "`Authorization: bearer TOKEN`", "answer", "taken")
def test_a_scheme_in_small_letters(protected):
    assert protected.headers["authorization"].startswith("bearer ")
    assert send(protected).status_code == 200


@pytest.mark.case("clients", "the token as `api-key` or `x-api-key`", "answer", "refused: names the header")
@pytest.mark.parametrize("header", ["api-key", "x-api-key"])
def test_a_token_in_another_header(protected, header):
    token = protected.headers["authorization"].removeprefix("bearer ")
    answer = httpx.get(protected.base_url.join("/v1/models"), headers={header: token})
    assert (answer.status_code, "Authorization: Bearer TOKEN" in told(answer)) == (401, True)
