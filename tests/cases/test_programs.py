"""Programs against a running ``idiolect serve`` with tokens: real ones where they are installed, else the request that their
source sends. Each has to get the text that a plain request gets.

The client for Node is looked for where Node looks: ``npm install openai`` in any folder, and its ``node_modules`` in NODE_PATH.
"""

import asyncio
import io
import json
import shutil
import subprocess
import threading
import wave
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from queue import Queue
from types import SimpleNamespace

import httpx
import numpy as np
import openai
import pytest
import requests

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROMPT = "Kitchen lights, front door, thermostat."


def tried(program, request, answer):
    """The row of a program."""

    def mark(test):
        for column, text in (("request", request), ("answer", answer)):
            test = pytest.mark.case("programs", program, column, text)(test)
        return test

    return mark


def recording(seconds=1.5):
    """Noise under a moving envelope, as bytes of WAV."""
    samples = int(seconds * 16_000)
    noise = np.random.default_rng(0).normal(size=samples) * (0.1 + np.abs(np.sin(np.arange(samples) / 2_000)))
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, 16_000, samples, "NONE", ""))
        file.writeframes((3_000 * noise).clip(-32_768, 32_767).astype("<i2").tobytes())
    return out.getvalue()


class Site(HTTPServer):
    """A page of another origin than the server's, which posts what it found to its own."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), SiteHandler)
        self.page, self.found = b"", Queue()


class SiteHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = recording() if self.path.endswith(".wav") else self.server.page
        self.send_response(200)
        self.send_header("Content-Type", "audio/wav" if self.path.endswith(".wav") else "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.server.found.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    with Site() as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        yield site
        site.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(with_tokens, tmp_path_factory):
    """``v1`` (the address that programs are given), ``token``, ``file`` and ``text(**fields)``, which a plain request gets."""
    url, token = with_tokens
    v1, file = url + "/v1", tmp_path_factory.mktemp("programs") / "speech.wav"
    file.write_bytes(recording())

    @cache
    def text(**fields):
        headers = {"Authorization": f"Bearer {token}"}
        answer = httpx.post(
            f"{v1}/audio/transcriptions", files={"file": file.open("rb")}, data=fields, headers=headers, timeout=60
        )
        assert answer.json()["text"]
        return answer.json()["text"]

    return SimpleNamespace(v1=v1, token=token, file=file, text=text)


# OpenAI's clients


@tried(
    "openai, Python",
    "path, open file, tuple, bytes and BytesIO without a name; all formats; stream; `AsyncOpenAI`; models",
    "the transcript; its own error types",
)
def test_openai_for_python(server):
    nameless, file = io.BytesIO(recording()), server.file
    with openai.OpenAI(api_key=server.token, base_url=server.v1, max_retries=0) as client:
        create = client.audio.transcriptions.create
        with file.open("rb") as opened:
            for given in (file, opened, nameless, recording(), ("a.wav", recording()), ("a", recording(), "audio/wav")):
                assert create(file=given, model="gpt-4o-transcribe").text == server.text()
        assert create(file=file, model="whisper-1", response_format="text") == server.text() + "\n"
        assert server.text() in create(file=file, model="whisper-1", response_format="srt")
        verbose = create(
            file=file,
            model="whisper-1",
            response_format="verbose_json",
            timestamp_granularities=["word", "segment"],
            chunking_strategy="auto",
        )
        assert (verbose.text, verbose.duration, bool(verbose.words), len(verbose.segments)) == (
            server.text(),
            1.5,
            True,
            1,
        )
        *_, done = create(file=file, model="gpt-4o-mini-transcribe", stream=True, include=["logprobs"])
        assert done.text == server.text()
        assert client.models.list().data[0].id == client.models.retrieve("random:whisper-nano").id
        with pytest.raises(openai.UnprocessableEntityError, match="cannot be read as audio"):
            create(file=b"no audio", model="whisper-1")
        with pytest.raises(openai.NotFoundError, match="does not translate"):
            client.audio.translations.create(file=file, model="whisper-1")
        with pytest.raises(openai.NotFoundError, match="ends with /v1"):
            client.with_options(base_url=server.v1.removesuffix("/v1")).audio.transcriptions.create(
                file=file, model="whisper-1"
            )


NODE = """
const { OpenAI } = require("openai"), fs = require("fs");
const [baseURL, apiKey, path] = process.argv.slice(1);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const create = (fields) => client.audio.transcriptions.create({ file: fs.createReadStream(path), model: "gpt-4o-transcribe", ...fields });
(async () => {
  const found = [(await create({})).text, (await create({ language: "" })).text];
  found.push((await create({ response_format: "text" })).trim());
  const words = { response_format: "verbose_json", timestamp_granularities: ["word", "segment"] };
  const verbose = await create(words);
  found.push(verbose.words.length && verbose.segments.length && verbose.text);
  for await (const event of await create({ stream: true })) if (event.type === "transcript.text.done") found.push(event.text);
  const wrong = await create({ file: new File(["no audio"], "a.wav") }).catch((error) => error);
  found.push(`${wrong.status} ${wrong.constructor.name}`);
  for await (const model of client.models.list()) found.push(model.id);
  console.log(JSON.stringify(found));
})();
"""


@tried(
    "openai, Node",
    "a stream of a file; `verbose_json` with words; stream; models",
    "the transcript; its own error types",
)
def test_openai_for_node(server):
    node = shutil.which("node")
    if node is None or subprocess.run([node, "-e", "require('openai')"], capture_output=True).returncode:
        pytest.skip("no openai for Node: npm install openai, and NODE_PATH names its node_modules")
    command = [node, "-e", NODE, server.v1, server.token, server.file]
    *texts, error, model = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
    assert texts == [server.text()] * 5
    assert (error, model) == ("422 UnprocessableEntityError", "random:whisper-nano")


# Other programs


@tried("curl", "`-F file=@speech.wav`, from a pipe, with `Expect: 100-continue`; `-N -F stream=true`", "the transcript")
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl(server):
    def curl(*arguments, **options):
        command = ["curl", "-sS", "--fail-with-body", f"{server.v1}/audio/transcriptions", *arguments]
        command += ["-H", f"authorization: bearer {server.token}"]
        return subprocess.run(command, capture_output=True, check=True, **options).stdout.decode()

    assert json.loads(curl("-F", f"file=@{server.file}"))["text"] == server.text()
    assert json.loads(curl("-F", "file=@-;filename=a.wav", input=recording()))["text"] == server.text()
    assert json.loads(curl("-F", f"file=@{server.file}", "-H", "Expect: 100-continue"))["text"] == server.text()
    events = curl("-N", "-F", f"file=@{server.file}", "-F", "stream=true")
    assert json.loads(events.rpartition("data: ")[2])["text"] == server.text()


@tried("requests, httpx", "a form with a file; a body of unknown length (chunked)", "the transcript")
def test_requests_and_httpx(server):
    headers = {"Authorization": f"Bearer {server.token}"}
    url = server.v1 + "/audio/transcriptions"
    with server.file.open("rb") as file:
        assert requests.post(url, files={"file": file}, headers=headers).json()["text"] == server.text()
    prepared = httpx.Request("POST", url, files={"file": ("a.wav", recording())}, headers=headers)
    body = iter([prepared.read()[:1000], prepared.content[1000:]])
    headers["Content-Type"] = prepared.headers["Content-Type"]
    assert requests.post(url, data=body, headers=headers).json()["text"] == server.text()


@tried(
    "Home Assistant, `openai_conversation`",
    "as its source: `AsyncOpenAI`, `a.wav` with a header of its own, `json`, a language, a prompt",
    "the transcript",
)
def test_home_assistant(server):
    async def ask():
        async with openai.AsyncOpenAI(api_key=server.token, base_url=server.v1) as client:
            return await client.audio.transcriptions.create(
                model="gpt-4o-mini-transcribe",
                file=("a.wav", recording()),
                response_format="json",
                language="ko",
                prompt=PROMPT,
            )

    assert asyncio.run(ask()).text == server.text(language="ko", prompt=PROMPT)


@tried(
    "Open WebUI",
    "as its source: `requests`, the file by name, model and language",
    "the transcript; it shows our message",
)
def test_open_webui(server):
    def ask(token, **fields):
        return requests.post(
            url=f"{server.v1}/audio/transcriptions",
            headers={"Authorization": f"Bearer {token}"},
            files={"file": ("0b.wav", recording())},
            data={"model": "whisper-1", **fields},
        )

    assert ask(server.token, language="ko").json()["text"] == server.text(language="ko")
    assert ask(server.token).json()["text"] == server.text()
    assert "Authorization: Bearer TOKEN" in ask("").json()["error"]["message"]


@tried(
    "LibreChat",
    "as its source: a stream without a length (chunked), its own `Content-Type`, model and language",
    "the transcript",
)
def test_librechat(server):
    parts = {"file": ("audio.wav", recording()), "model": (None, "whisper-1"), "language": (None, "ko")}
    form = httpx.Request("POST", "http://x", files=parts)
    form.read()
    headers = {"Content-Type": form.headers["content-type"], "Authorization": f"Bearer {server.token}"}
    body = (form.content[start : start + 4_096] for start in range(0, len(form.content), 4_096))
    answer = httpx.post(f"{server.v1}/audio/transcriptions", content=body, headers=headers)
    assert answer.request.headers["transfer-encoding"] == "chunked"
    assert answer.json()["text"] == server.text(language="ko")


# A page in a browser

PAGE = """<script>
const ask = async (blob, name) => {
  const form = new FormData();
  form.append("file", blob, name);
  form.append("model", "whisper-1");
  const answer = await fetch("%(v1)s/audio/transcriptions", { method: "POST", body: form, headers: { Authorization: "Bearer %(token)s" } });
  return [answer.status, await answer.json()];
};
const sound = async () => %(sound)s;
(async () => {
  const found = await sound().then((given) => ask(...given)).catch((error) => [0, String(error)]);
  await fetch("/found", { method: "POST", body: JSON.stringify(found) });
})();
</script>"""


def browse(site, server, folder, sound):
    """Status and answer that a page of ``site`` reads, in Chromium with its fake microphone."""
    site.page = (PAGE % {"v1": server.v1, "token": server.token, "sound": sound}).encode()
    flags = (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "no-first-run",
        "disable-dev-shm-usage",
        f"user-data-dir={folder}",
    )
    media = ("use-fake-device-for-media-stream", "use-fake-ui-for-media-stream")
    where = f"host-resolver-rules=MAP page.localhost:80 127.0.0.1:{site.server_port}"
    command = [CHROMIUM, *(f"--{flag}" for flag in (*flags, *media, where)), "http://page.localhost"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            return site.found.get(timeout=120)
        finally:
            process.terminate()


@tried("a page in Chromium", "`fetch` from an origin of `--cors-origin`, with a token and a WAV", "the transcript")
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
def test_a_page(site, server, tmp_path):
    sound = '[await (await fetch("/speech.wav")).blob(), "speech.wav"]'
    assert browse(site, server, tmp_path, sound) == [200, {"text": server.text()}]


RECORDER = """await (async () => {
  const recorder = new MediaRecorder(await navigator.mediaDevices.getUserMedia({ audio: true }));
  const pieces = [], done = new Promise((stopped) => { recorder.onstop = stopped; });
  recorder.ondataavailable = (event) => pieces.push(event.data);
  recorder.start(250);
  setTimeout(() => recorder.stop(), 2500);
  await done;
  return [new Blob(pieces, { type: recorder.mimeType }), "recording.webm"];
})()"""


@tried(
    "a page's MediaRecorder in Chromium",
    "2.5 s of the microphone as it comes: WebM with Opus, without a length",
    "the transcript",
)
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
def test_a_recorder(site, server, tmp_path):
    status, answer = browse(site, server, tmp_path, RECORDER)
    assert (status, answer.keys()) == (200, {"text"})
    assert answer["text"]
