"""Folders, files, addresses and tokens as people give them to ``idiolect device``, through the command and a server that answers."""

import json
import os
import socket
import ssl
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.stub_server import TEXT, StubServer
from clients.device.cli import main
from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.files import AdapterInfo, save_adapter
from fl.adapters.layer import fresh_adapter
from fl.bases.resolve import load_base
from fl.methods.base import Recipe
from fl.methods.files import MethodInfo, save_method
from fl.methods.recipes import attach
from fl.packed.blob import PackedInfo, pack

SAID = "오늘 meeting 있어요"
CONTROL, EMPTY = "a text with NUL, or a lone surrogate", "a text of punctuation alone, or empty"
NO_FILE = "a manifest that names no file, a folder, a name of 300 letters"
ENDINGS = "an address with `/` or `/v1` at its end, spaces around it, capitals"
TOKENS = "a token with a line end, `Bearer `, a byte order mark, in UTF-16"
NO_LINE = "a manifest with a line that is broken, or has no text"
TWICE = "one recording in two lines with two texts or speakers"
FOUND = "a name with spaces, in NFD, with a dash as `./-a.wav`"
OTHERS = (".flac", ".OGG", ".opus", ".mp3")
LITTER = "`._*`, `.DS_Store`, `__MACOSX`, `@eaDir`, `.ipynb_checkpoints`, `Thumbs.db`, `~$*`"


def folder_case(row: str, answer: str, *values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.case("folders", row, "device", answer), id=row)


def device_case(row: str, answer: str, *values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.case("devices", row, "answer", answer), id=row)


def wav(path: Path) -> Path:
    """A second of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(1).integers(-3000, 3000, 16_000).astype(np.int16)
    kind = {".flac": "FLAC", ".ogg": "OGG", ".opus": "OGG", ".mp3": "MP3"}.get(path.suffix.lower(), "WAV")
    soundfile.write(path, noise, 16_000, format=kind, subtype="OPUS" if path.suffix.lower() == ".opus" else None)
    return path


def pair(folder: Path, name: str = "a.wav", text: str = SAID, encoding: str = "utf-8", suffix: str = ".txt") -> None:
    """A recording with its text beside it."""
    wav(folder / name).with_suffix(suffix).write_bytes(text.encode(encoding))


def manifest(folder: Path, text: str = SAID, audio: str = "a.wav", encoding: str = "utf-8") -> None:
    """A manifest of one line."""
    line = json.dumps({"audio": audio, "text": text}, ensure_ascii=False) + "\n"
    (folder / "manifest.jsonl").write_bytes(line.encode(encoding, "surrogatepass"))


@dataclass
class Device:
    """``idiolect device`` on one folder, set up for a server."""

    folder: Path
    server: StubServer
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: object) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        code = main([*map(str, words), "--folder", str(self.folder)])
        return code, *self.capsys.readouterr()

    def learned(self) -> list[str]:
        """The texts that were sent for training."""
        sent = [request.form["texts"][0] for request in self.server.requests if "texts" in request.form]
        return [text for texts in sent for text in json.loads(texts)]


@pytest.fixture
def server() -> Iterator[StubServer]:
    with StubServer() as stub:
        yield stub


@pytest.fixture
def device(
    tmp_path: Path, server: StubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Device:
    for name in ("IDIOLECT_TOKEN", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    config = {"r": 2, "gate": "self"}
    info = PackedInfo("whisper-base", "whisper:512x6+6:01", "", "gates", "trimmed", "", config, "float16")
    ones = {name: np.ones(shape, np.float32) for name, shape in {"q.A": (2, 6), "q.B": (5, 2), "q.gate": (2,)}.items()}
    (tmp_path / "mine").write_bytes(pack(ones, info))
    made = Device(tmp_path / "device", server, capsys)
    assert made("init", "--server", server.url)[0] == 0
    assert made("adapter", "set", tmp_path / "mine")[0] == 0
    return made


Make = Callable[[Path], object]


def linked(folder: Path) -> None:
    pair(folder, "it is.wav")
    (folder / "it is.wav").rename(folder.with_name("elsewhere.wav"))
    (folder / "it is.wav").symlink_to(folder.with_name("elsewhere.wav"))


def littered(folder: Path) -> None:
    pair(folder)
    for name in ("._a.wav", "._a.txt", ".DS_Store", "Thumbs.db", "~$a.docx"):
        (folder / name).write_bytes(b"x")
    for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints"):
        (folder / name).mkdir()


@pytest.mark.parametrize(
    "make",
    [
        folder_case("`A.WAV` beside `A.TXT`", "read", lambda d: pair(d, "A.WAV", suffix=".TXT")),
        folder_case("`a.wav` beside `a.wav.txt`", "read", lambda d: pair(d, suffix=".wav.txt")),
        folder_case("text in UTF-8 with a byte order mark", "read", lambda d: pair(d, encoding="utf-8-sig")),
        folder_case("text in UTF-16 with a byte order mark", "read", lambda d: pair(d, encoding="utf-16")),
        folder_case("text in NFD", "read, in NFC", lambda d: pair(d, text=unicodedata.normalize("NFD", SAID))),
        folder_case(
            "U+2028, U+2029, U+0085, a form feed, line ends in a text",
            "joined by a space",
            lambda d: pair(d, text="오늘\u2028\u2029meeting\x85\x0c\r\n있어요\n"),
        ),
        folder_case(
            "a manifest with U+2028 in a text",
            "read, joined by a space",
            lambda d: (wav(d / "a.wav"), manifest(d, "오늘\u2028meeting 있어요")),
        ),
        folder_case(
            "a manifest in UTF-16, in UTF-8 with a byte order mark",
            "read",
            lambda d: (wav(d / "a.wav"), manifest(d, encoding="utf-16")),
        ),
        folder_case(
            "a manifest in UTF-16, in UTF-8 with a byte order mark",
            "read",
            lambda d: (wav(d / "a.wav"), manifest(d, encoding="utf-8-sig")),
        ),
        folder_case(
            "file names in NFD beside texts, or a manifest, in NFC",
            "found",
            lambda d: (wav(d / unicodedata.normalize("NFD", "회의.wav")), (d / "회의.txt").write_text(SAID)),
        ),
        folder_case(
            "file names in NFD beside texts, or a manifest, in NFC",
            "found",
            lambda d: (wav(d / unicodedata.normalize("NFD", "회의.wav")), manifest(d, audio="회의.wav")),
        ),
        folder_case("names with spaces, links to files", "read", linked),
        folder_case(LITTER, "passed over", littered),
        *[folder_case("`.flac`, `.OGG`, `.opus`, `.mp3`", "read", partial(pair, name=f"a{suffix}")) for suffix in OTHERS],
    ],
)  # fmt: skip
def test_what_is_read_from_a_folder(device: Device, tmp_path: Path, make: Make) -> None:
    (tmp_path / "mine speech").mkdir()
    make(tmp_path / "mine speech")
    code, out, err = device("enrol", tmp_path / "mine speech")
    assert (code, err) == (0, "")
    assert "trained on 1 utterances" in out
    assert device.learned() == [SAID]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        folder_case("`.docx`, `.wma` and their like", "left out, counted", lambda d: (d / "b.wma").write_bytes(b"x"), "b.wma (neither"),
        folder_case("a subfolder", "left out, counted", lambda d: pair(d / "minji"), "minji (a folder; give it by itself"),
        folder_case("a folder called `b.wav`", "left out, counted", lambda d: (d / "b.wav").mkdir(), "b.wav (a folder"),
        folder_case("a recording without text", "left out, counted", lambda d: wav(d / "b.wav"), "b.wav (no text beside it; write"),
        folder_case("a text without recording", "left out, counted", lambda d: (d / "b.txt").write_text("x"), "b.txt (no recording"),
        folder_case("`a.wav` and `a.flac` with one `a.txt`", "the first; the other left out, counted",
                    lambda d: wav(d / "a2.wav").rename(d / "a.webm"), "a.webm (a.wav has the same text"),
        folder_case("a recording of 0 bytes", "left out, counted: is it still being recorded?",
                    lambda d: (pair(d, "b.wav"), (d / "b.wav").write_bytes(b"")), "b.wav (is empty; is it still being recorded"),
        folder_case("a link to nothing", "left out, counted",
                    lambda d: ((d / "b.wav").symlink_to("gone"), (d / "b.txt").write_text("x")), "b.wav (no such audio file"),
        folder_case("a damaged or silent recording", "left out, counted",
                    lambda d: (pair(d, "b.wav"), soundfile.write(d / "b.wav", np.zeros(16_000), 16_000)), "b.wav (is silent"),
        folder_case(CONTROL, "left out, counted", partial(pair, name="b.wav", text="오늘\0"), "b.wav (the transcript"),
        folder_case(EMPTY, "left out, counted", partial(pair, name="b.wav", text="?!"), "b.wav (the text has no"),
        folder_case(EMPTY, "left out, counted", partial(pair, name="b.wav", text="\n"), "b.wav (the transcript is"),
    ],
)  # fmt: skip
def test_what_lies_there_and_is_not_used_is_named_and_counted(
    device: Device, tmp_path: Path, make: Make, named: str
) -> None:
    folder = tmp_path / "speech"
    pair(folder)
    make(folder)
    code, _, err = device("enrol", folder)
    assert code == 0
    assert f"1 left out: {named}" in err
    assert device.learned() == [SAID]
    found = json.loads(device("enrol", folder, "--json")[1])["left_out"]
    assert list(found) == [named.split(" ")[0]]
    code, _, err = device("enrol", folder, "--strict")
    assert (code, len(device.learned())) == (1, 2)
    assert "1 left out, and --strict allows none" in err


@pytest.mark.parametrize(
    ("text", "audio", "named"),
    [
        folder_case(NO_FILE, "left out, counted", SAID, "b.wav", "no such audio"),
        folder_case(NO_FILE, "left out, counted", SAID, ".", "is a folder"),
        folder_case(NO_FILE, "left out, counted", SAID, "b" * 300, "no such|cannot be opened"),
        folder_case(CONTROL, "left out, counted", "\ud800", "c.wav", "the transcript holds"),
        folder_case(NO_LINE, "left out, counted", None, "a.wav", "have to be texts"),
        folder_case(NO_LINE, "left out, counted", '"', "a.wav", "is no JSON object"),
        folder_case(TWICE, "the first; the other left out, counted", "전혀 다른 말", "./a.wav", "in an earlier line"),
    ],
)  # fmt: skip
def test_a_line_of_a_manifest_that_cannot_be_used_is_named_and_counted(
    device: Device, tmp_path: Path, text: str | None, audio: str, named: str
) -> None:
    wav(tmp_path / "speech" / "a.wav")
    if audio == "c.wav":
        wav(tmp_path / "speech" / "c.wav")
    lines = [{"audio": "a.wav", "text": SAID}, {"audio": audio, "text": text}]
    written = "\n".join(map(json.dumps, lines))
    (tmp_path / "speech" / "manifest.jsonl").write_text(written[:-2] if text == '"' else written)
    code, out, _ = device("enrol", tmp_path / "speech", "--json")
    (line, reason), *others = json.loads(out)["left_out"].items()
    assert (code, line, others) == (0, "manifest.jsonl:2", [])
    assert any(part in reason for part in named.split("|"))
    assert device.learned() == [SAID]


@pytest.mark.case("folders", "recordings that the folder's manifest does not name", "device", "left out, counted")
def test_what_a_manifest_does_not_name_is_counted(device: Device, tmp_path: Path) -> None:
    pair(tmp_path / "speech")
    wav(tmp_path / "speech" / "b.wav")
    manifest(tmp_path / "speech")
    assert "2 left out: a.txt (not in manifest.jsonl); b.wav (not in" in device("enrol", tmp_path / "speech")[2]
    assert device.learned() == [SAID]


@pytest.mark.case("folders", "text in CP949", "device", "read, and said in a line; `--encoding` if that is wrong")
@pytest.mark.parametrize("text", [SAID, "네", "ㅋㅋㅋ 네", "“따옴표” 있는 문장…"])
def test_korean_of_windows_is_read_and_said(device: Device, tmp_path: Path, text: str) -> None:
    pair(tmp_path / "speech", text=text, encoding="cp949")
    code, _, err = device("enrol", tmp_path / "speech")
    assert code == 0
    assert f"read as Korean in cp949, since it is not UTF-8: a.txt ({text!r}); --encoding NAME" in err
    assert "read as Korean" in device("enrol", tmp_path / "speech", "--language", "ko-KR")[2]
    assert device("enrol", tmp_path / "speech", "--encoding", "cp949")[2] == ""
    assert device.learned() == [text] * 3


@pytest.mark.case("folders", "a manifest in CP949", "device", "read, and said in a line; `--encoding` if that is wrong")
def test_a_manifest_of_windows_is_read_and_said(device: Device, tmp_path: Path) -> None:
    wav(tmp_path / "a.wav")
    manifest(tmp_path, encoding="cp949")
    assert "read as Korean in cp949" in device("enrol", tmp_path / "manifest.jsonl")[2]
    assert device.learned() == [SAID]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        folder_case("text in UTF-16 without a mark", "refused: `--encoding utf-16-le`", SAID, "utf-16-le"),
        folder_case("text in UTF-16 without a mark", "refused: `--encoding utf-16-le`", "내일회의있어요", "utf-16-le"),
        folder_case("text in GB18030, CP1252", "refused: names the likely `--encoding`", "我们明天开会讨论", "gb18030"),
        folder_case(
            "text in GB18030, CP1252", "refused: names the likely `--encoding`", "un déjà vu au café", "cp1252"
        ),
        folder_case("text in EUC-JP and others", "refused: `--encoding NAME`", "今日は会議です", "euc_jp"),
    ],
)
def test_text_in_another_encoding_names_it_and_then_takes_it(
    device: Device, tmp_path: Path, text: str, encoding: str
) -> None:
    pair(tmp_path / "speech", text=text, encoding=encoding)
    code, _, err = device("enrol", tmp_path / "speech")
    assert (code, device.learned()) == (1, [])
    assert (
        f"a.txt:1: not UTF-8; it looks like {encoding}: give --encoding {encoding}" in err or "give --encoding" in err
    )
    assert device("enrol", tmp_path / "speech", "--encoding", encoding)[0] == 0
    assert device.learned() == [text]


def test_chinese_that_would_pass_for_korean_is_not_taken_for_it_where_the_language_is_chinese(
    device: Device, tmp_path: Path
) -> None:
    pair(tmp_path / "speech", text="你好", encoding="gb18030")
    assert "read as Korean" in device("enrol", tmp_path / "speech")[2]
    code, _, err = device("enrol", tmp_path / "speech", "--language", "zh")
    assert (code, "give --encoding" in err) == (1, True)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        folder_case("a recording where a folder is meant", "refused: give its folder", "speech/a.wav", "give its folder"),
        folder_case("no folder of that name", "refused: check the name", "nowhere", "check the name"),
        folder_case("a folder with folders alone", "refused: names them", "people", "1 left out: minji (a folder; give it by itself)"),
    ],
)  # fmt: skip
def test_what_is_no_folder_of_speech_is_refused(device: Device, tmp_path: Path, source: str, named: str) -> None:
    pair(tmp_path / "speech")
    pair(tmp_path / "people" / "minji")
    code, _, err = device("enrol", tmp_path / source)
    assert (code, named in err, device.learned()) == (1, True, [])


# Files


@pytest.mark.parametrize(
    "name",
    [
        device_case(FOUND, "read", "a b.wav"),
        device_case(FOUND, "read", "회의.wav"),
        device_case(FOUND, "read", "./-a.wav"),
    ],
)
def test_a_recording_is_found(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    wav(tmp_path / unicodedata.normalize("NFD", name))
    assert device("transcribe", name) == (0, f"{TEXT}\n", "")


@pytest.mark.parametrize("command", ["transcribe", "queue"])
@pytest.mark.parametrize(
    ("make", "named"),
    [
        device_case("a folder, also one called `a.wav`", "refused: is a folder", lambda p: p.mkdir(), "is a folder"),
        device_case("a recording of 0 bytes", "refused: is it still being recorded?", lambda p: p.touch(), "being recorded"),
        device_case("a name that is not UTF-8", "refused: rename it", lambda p: p.with_name(os.fsdecode(b"\xfe.wav")), "rename it"),
        device_case("a name of 300 letters", "refused", lambda p: p.with_name("a" * 300), "no such audio file|rename it"),
        device_case("a pipe", "refused", lambda p: os.mkfifo(p), "no such audio file"),
    ],
)  # fmt: skip
def test_what_is_no_recording_is_refused(
    device: Device, tmp_path: Path, make: Callable[[Path], Path | None], named: str, command: str
) -> None:
    path = make(tmp_path / "a.wav") or tmp_path / "a.wav"
    code, out, err = device(command, path)
    assert (code, out) == (1, "")
    assert any(part in err for part in named.split("|"))
    code, out, _ = device(command, path, "--json")
    assert (code, json.loads(out)["type"]) == (1, "AudioError")


@pytest.mark.case("devices", "`adapter export` or `record --output` to a folder", "answer", "refused: give a file name")
def test_a_folder_is_no_file_to_write(device: Device, tmp_path: Path) -> None:
    for words in ((), ("--force",)):
        assert "is a folder: give the name of a file" in device("adapter", "export", tmp_path, *words)[2]


@pytest.mark.case("devices", "`adapter set` with `adapter_model.safetensors`", "answer", "refused: give the folder")
@pytest.mark.case(
    "devices", "`adapter set` with another method than low-rank", "answer", "refused: `idiolect transcribe`"
)
def test_an_adapter_that_cannot_be_packed_says_what_can_be_done(device: Device, tmp_path: Path) -> None:
    base = load_base("random:whisper-nano")
    recipe = Recipe("bitfit", 4, 8.0, "none", target_pattern(("decoder.self",)), 1)
    info = MethodInfo(base.name, base.fingerprint, "all-private", recipe)
    save_method(tmp_path / "adapter", attach(base.new_model(), recipe).state(), info)
    code, _, err = device("adapter", "set", tmp_path / "adapter")
    assert (code, "'idiolect transcribe --adapter FOLDER'" in err) == (1, True)
    code, _, err = device("adapter", "set", tmp_path / "adapter" / "adapter_model.safetensors")
    assert (code, "give the whole folder of an adapter" in err) == (1, True)


REFUSED = "a recording of over 29 s, a text that is too long for the server's base"


@pytest.mark.case("folders", REFUSED, "device", "left out, counted; the others are learned")
def test_what_a_server_cannot_learn_from_is_left_out_by_name(
    device: Device, tmp_path: Path, serving: Callable[..., str]
) -> None:
    base, folder = load_base("random:whisper-nano"), tmp_path / "speech"
    config = GatedLoraConfig(r=2, gate="self", target_modules=target_pattern(("decoder.self",)))
    state = fresh_adapter(base.new_model(), config)
    save_adapter(tmp_path / "adapter", state, AdapterInfo(base.name, base.fingerprint, "gates", config, language="ko"))
    assert device("init", "--server", serving("--no-auth"))[0] == 0
    assert device("adapter", "set", tmp_path / "adapter", "--other-base")[0] == 0
    for name, text in {"a.wav": SAID, "b.wav": SAID, "c.wav": "아 " * 300, "d.wav": "아 " * 700, "e.wav": SAID}.items():
        pair(folder, name, text)
    soundfile.write(folder / "b.wav", np.random.default_rng(1).uniform(-0.1, 0.1, 30 * 16_000), 16_000)
    code, out, err = device("enrol", folder, "--json", "--keep")
    assert (code, sorted(json.loads(out)["left_out"])) == (0, ["b.wav", "c.wav", "d.wav"])
    assert all(f": {name}.wav\n" in err for name in "bcd")
    code, _, err = device("enrol", folder, "--strict")
    assert (code, "d.wav: the server refused" in err) == (1, True)


@pytest.mark.case("devices", "a queue on a full disk", "answer", "refused: free some space; nothing is lost")
def test_a_queue_on_a_full_disk(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fl.core.files.os.fsync", full)
    code, _, err = device("queue", wav(tmp_path / "a.wav"))
    assert (code, "No space left on device" in err, "free some space" in err) == (1, True, True)
    assert device("queue")[1] == ""


# Addresses and tokens


@pytest.mark.parametrize(
    "change",
    [
        device_case(ENDINGS, "taken", "{}/"),
        device_case(ENDINGS, "taken", "{}/v1/"),
        device_case(ENDINGS, "taken", " {}\n"),
        device_case("an address of a web page, with `#`", "taken, without it", "{}/#/login"),
    ],
)
def test_an_address_as_people_copy_it(device: Device, tmp_path: Path, change: str) -> None:
    address = change.format(device.server.url.replace("http", "HTTP").replace("127.0.0.1", "LOCALHOST"))
    assert device("init", "--server", address)[0] == 0
    assert device("transcribe", wav(tmp_path / "a.wav"))[0] == 0
    assert {path.partition(" ")[2] for path in device.server.paths()} == {"/v1/adapters", "/v1/audio/transcriptions"}


@pytest.mark.parametrize(
    ("address", "named"),
    [
        device_case("an address without `https://`", "refused: gives the whole", "example.org:8000", "give https://example.org:8000"),
        device_case("`http://` to another machine", "refused: `https`, or `--allow-http`", "http://192.168.0.3", "--allow-http"),
        device_case("an address with user and password", "refused, not shown", "https://ann:hunter2@example.org", "is no address"),
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(device: Device, address: str, named: str) -> None:
    code, _, err = device("init", "--server", address)
    assert (code, named in err, "hunter2" in err) == (1, True, False)


@pytest.mark.parametrize(
    "content",
    [
        device_case(TOKENS, "taken", b"abc\r\n"),
        device_case(TOKENS, "taken", b"Bearer abc"),
        device_case(TOKENS, "taken", b"\xef\xbb\xbfabc"),
        device_case(TOKENS, "taken", "abc\n".encode("utf-16")),
    ],
)  # fmt: skip
def test_a_token_as_people_copy_it(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    (tmp_path / "token").write_bytes(content)
    (tmp_path / "token").chmod(0o600)
    device("init", "--server", device.server.url, "--token-file", tmp_path / "token")
    device("transcribe", wav(tmp_path / "a.wav"))
    if content.isascii():
        monkeypatch.setenv("IDIOLECT_TOKEN", content.decode())
        device("transcribe", tmp_path / "a.wav")
    assert {request.headers["Authorization"] for request in device.server.requests} == {"Bearer abc"}


@pytest.mark.case("devices", "an empty token file, a folder", "answer", "refused: it holds the token")
def test_a_token_file_without_a_token_is_refused(device: Device, tmp_path: Path) -> None:
    (tmp_path / "token").touch(0o600)
    for path, named in ((tmp_path / "token", "is empty: write the token"), (tmp_path, "it holds the token alone")):
        device("init", "--server", device.server.url, "--token-file", path)
        code, _, err = device("transcribe", wav(tmp_path / "a.wav"))
        assert (code, named in err) == (1, True)
    assert device.server.requests == []


def certificate(folder: Path, name: str, days: int = 1) -> Path:
    """A self-signed certificate that ends in so many days, with its key, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stub")])
    end = datetime.now(UTC) + timedelta(days=days)
    built = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1, end - timedelta(days=30), end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path = folder / f"{name}.pem"
    path.write_bytes(built.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return path


def with_tls(server: StubServer, path: Path) -> str:
    """Let the server speak TLS; its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    server.http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that does not trust it hangs up
    return f"https://localhost:{server.http.server_port}"


@pytest.mark.parametrize(
    ("days", "trusted", "named"),
    [
        device_case("a self-signed certificate", "refused: `--ca FILE`", 1, False, "of its authority with --ca"),
        device_case("a self-signed certificate with `--ca`", "taken", 1, True, ""),
        device_case("a certificate that has expired, a wrong clock", "refused: names the date", -1, True, "is this device's date right"),
    ],
)  # fmt: skip
def test_certificates(device: Device, tmp_path: Path, days: int, trusted: bool, named: str) -> None:
    path = certificate(tmp_path, "localhost", days)
    device("init", "--server", with_tls(device.server, path), *(("--ca", path) if trusted else ()))
    code, _, err = device("transcribe", wav(tmp_path / "a.wav"))
    assert (code, named in err, bool(device.server.requests)) == (int(bool(named)), True, not named)


@pytest.mark.case("devices", "`https://` to a server without TLS", "answer", "refused at once: check the port")
def test_a_server_without_tls_is_no_server_that_is_away(device: Device, tmp_path: Path) -> None:
    device("init", "--server", device.server.url.replace("http", "https"))
    code, _, err = device("transcribe", wav(tmp_path / "a.wav"))
    assert (code, "speaks no TLS there" in err) == (1, True)


@pytest.fixture
def proxy(server: StubServer) -> Iterator[tuple[str, list[str]]]:
    """A proxy that leads each tunnel to the server: its address, and the heads of the requests that it got."""
    heads: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def work() -> None:
        with suppress(OSError):
            while True:
                device, _ = listener.accept()
                head = b""
                while b"\r\n\r\n" not in head:
                    head += device.recv(1)
                heads.append(head.decode())
                behind = socket.create_connection(("127.0.0.1", server.http.server_port))
                device.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                threading.Thread(target=pump, args=(device, behind), daemon=True).start()
                threading.Thread(target=pump, args=(behind, device), daemon=True).start()

    threading.Thread(target=work, daemon=True).start()
    yield f"127.0.0.1:{listener.getsockname()[1]}", heads
    listener.close()


@pytest.mark.case(
    "devices", "`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`", "answer", "used for `https`; it sees the host alone"
)
@pytest.mark.case("devices", "an address in Korean, such as `https://음성.한국`", "answer", "taken")
def test_a_proxy_of_the_environment_leads_to_the_server_and_sees_no_more_than_its_name(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: tuple[str, list[str]]
) -> None:
    address, heads = proxy
    name = "음성.한국".encode("idna").decode()
    path = certificate(tmp_path, name)
    with_tls(device.server, path)
    device("init", "--server", "https://음성.한국", "--ca", path)
    monkeypatch.setenv("HTTPS_PROXY", f"http://{address}")
    assert device("transcribe", wav(tmp_path / "a.wav")) == (0, f"{TEXT}\n", "")
    (head,) = heads
    assert head.startswith(f"CONNECT {name}:443 ")
    for broken in ("http://127.0.0.1:none", "socks5://127.0.0.1:9", "http://ann:hunter2@127.0.0.1"):
        monkeypatch.setenv("HTTPS_PROXY", broken)
        _, _, err = device("transcribe", tmp_path / "a.wav")
        assert ("HTTPS_PROXY or ALL_PROXY" in err, "is no address" in err, "hunter2" in err) == (True, True, False)
