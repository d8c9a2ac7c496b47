"""Recordings as phones, browsers and programs write them: 3.0 s in are 3.0 s heard, or a message that says how to convert."""

import io
import json
import re
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile

import av
import httpx
import numpy as np
import pytest
import scipy.signal
import soundfile
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from clients.device.audio import encode_file
from fl.bases.resolve import load_base
from fl.core.errors import AudioError
from fl.data.checked import usable_utterances
from fl.serving.engine.requests import Request, Stages, Transcript
from fl.serving.http.app import create_app
from fl.settings.config import make_config
from fl.speech.audio import SAMPLE_RATE, SUFFIXES, check_speech, load_audio
from fl.tasks.table import load_task
from sim.cli.app import app

BASE = "random:whisper-nano"
READERS = ("import", "run", "transcribe", "serve", "device")
SECONDS = 3.0


def voice(rate: int) -> np.ndarray:
    """Tones that come and go, below 3 kHz, so that every codec keeps their shape. (samples,)"""
    time = np.arange(int(SECONDS * rate)) / rate
    tones = [
        np.sin(2 * np.pi * pitch * time + 3 * np.sin(2 * np.pi * pitch / 100 * time)) for pitch in (220, 510, 1130)
    ]
    return (0.1 * np.sum(tones, axis=0) * (0.1 + np.abs(np.sin(2 * np.pi * 0.7 * time)))).astype(np.float32)


class Pipe:
    """A sink without seek: what a muxer sees when it writes to a pipe."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += bytes(data)
        return len(data)


@cache
def muxed(
    container: str, codec: str, rate: int, *, pipe: bool = False, bits: int = 0, options: str = "", encoder: str = ""
) -> bytes:
    """``voice`` in a file as FFmpeg writes it; options as ``a=b,c=d``."""
    sink = Pipe() if pipe else io.BytesIO()
    with NamedTemporaryFile() as file:  # a muxer that moves its index to the front opens it again
        _mux(sink if pipe or "faststart" not in options else file.name, container, codec, rate, bits, options, encoder)
        return bytes(sink.data) if isinstance(sink, Pipe) else sink.getvalue() or file.read()


def _mux(
    sink: Pipe | io.BytesIO | str, container: str, codec: str, rate: int, bits: int, options: str, encoder: str
) -> None:
    given = [dict(pair.split("=") for pair in text.split(",") if pair) for text in (options, encoder)]
    samples = (voice(rate) * 32767).astype(np.int16)
    with av.open(sink, "w", format=container, options=given[0]) as file:
        stream = file.add_stream(codec, rate=rate, options=given[1])
        stream.codec_context.layout = "mono"
        if bits:
            stream.codec_context.bit_rate = bits
        into = av.AudioResampler(format=stream.codec_context.format or "s16", layout="mono", rate=rate)
        for start in range(0, len(samples), 1024):
            part = np.ascontiguousarray(samples[None, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(part, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            for ready in into.resample(frame):
                file.mux(stream.encode(ready))
        for ready in into.resample(None):
            file.mux(stream.encode(ready))
        file.mux(stream.encode(None))


def written(kind: str, subtype: str | None = None, rate: int = 16_000, samples: np.ndarray | None = None) -> bytes:
    """As libsndfile writes it."""
    out = io.BytesIO()
    soundfile.write(out, voice(rate) if samples is None else samples, rate, format=kind, subtype=subtype)
    return out.getvalue()


def wav(samples: np.ndarray, tag: int, bits: int, size: int | None = None) -> bytes:
    """A WAV by hand: what stands in its header need not be so."""
    data = samples.tobytes()
    head = struct.pack("<IHHIIHH", 16, tag, 1, 16_000, 16_000 * bits // 8, bits // 8, bits)
    size = len(data) if size is None else size
    return (
        b"RIFF"
        + struct.pack("<I", min(2**32 - 1, 36 + size))
        + b"WAVEfmt "
        + head
        + b"data"
        + struct.pack("<I", size)
        + data
    )


def piped_wav(size: int) -> bytes:
    return wav((voice(16_000) * 32767).astype("<i2"), 1, 16, size)


def flac_of(frames: int) -> bytes:
    """A FLAC whose header says so many frames."""
    data = bytearray(written("FLAC"))
    data[21] = data[21] & 0xF0 | frames >> 32
    data[22:26] = (frames & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(data)


def loud_floats() -> bytes:
    return wav((voice(16_000) * 32767).astype("<f4"), 3, 32)


# What is read: what it is called, its suffix, its bytes.
HEARD: dict[str, tuple[str, Callable[[], bytes]]] = {
    "WAV, 8 bit unsigned": (".wav", lambda: written("WAV", "PCM_U8")),
    "WAV, 24 bit": (".wav", lambda: written("WAV", "PCM_24")),
    "WAV, 32 bit": (".wav", lambda: written("WAV", "PCM_32")),
    "WAV, float": (".wav", lambda: written("WAV", "FLOAT")),
    "WAV, A-law": (".wav", lambda: written("WAV", "ALAW", 8_000)),
    "WAV, mu-law": (".wav", lambda: written("WAV", "ULAW", 8_000)),
    "WAV, WAVE_FORMAT_EXTENSIBLE": (".wav", lambda: written("WAVEX")),
    "WAV, RF64": (".wav", lambda: written("RF64")),
    "WAV to a pipe, size 0": (".wav", lambda: piped_wav(0)),
    "WAV to a pipe, size 0xFFFFFFFF": (".wav", lambda: piped_wav(2**32 - 1)),
    "WAV, floats in the range of int16": (".wav", loud_floats),
    "FLAC": (".flac", lambda: written("FLAC")),
    "FLAC to a pipe, length 0": (".flac", lambda: muxed("flac", "flac", 16_000, pipe=True)),
    "FLAC to a pipe, length 2^36-1": (".flac", lambda: flac_of(2**36 - 1)),
    "MP3": (".mp3", lambda: muxed("mp3", "libmp3lame", 44_100, bits=64_000)),
    "MP3 to a pipe": (".mp3", lambda: muxed("mp3", "libmp3lame", 44_100, pipe=True, bits=64_000)),
    "MP3, constant rate, no Xing header": (
        ".mpga",
        lambda: muxed("mp3", "libmp3lame", 44_100, bits=64_000, options="write_xing=0"),
    ),
    "MP3, variable rate, no Xing header": (
        ".mp3",
        lambda: muxed(
            "mp3", "libmp3lame", 44_100, options="write_xing=0", encoder="q=6,global_quality=700,flags=qscale"
        ),
    ),
    "M4A, AAC (iPhone)": (".m4a", lambda: muxed("ipod", "aac", 44_100, bits=64_000)),
    "M4A, index in front": (".m4a", lambda: muxed("ipod", "aac", 44_100, bits=64_000, options="movflags=faststart")),
    "M4A, Apple Lossless": (".m4a", lambda: muxed("ipod", "alac", 44_100)),
    "MP4, AAC, in fragments (Safari)": (
        ".mp4",
        lambda: muxed("mp4", "aac", 48_000, options="movflags=frag_keyframe+empty_moov"),
    ),
    "MP4, Opus": (".mp4", lambda: muxed("mp4", "libopus", 48_000, bits=32_000)),
    "3GP, AMR (Android)": (".mp4", lambda: muxed("3gp", "libopencore_amrnb", 8_000, bits=12_200)),
    "WebM, Opus (Chrome)": (".webm", lambda: muxed("webm", "libopus", 48_000, bits=24_000)),
    "WebM, Opus, without a length": (".webm", lambda: muxed("webm", "libopus", 48_000, pipe=True, bits=24_000)),
    "OGG, Opus": (".opus", lambda: muxed("ogg", "libopus", 48_000, bits=24_000)),
    "OGG, Vorbis": (".ogg", lambda: written("OGG", "VORBIS")),
    "OGG, FLAC": (".ogg", lambda: muxed("ogg", "flac", 16_000)),
    "AAC (ADTS)": (".aac", lambda: muxed("adts", "aac", 44_100, bits=64_000)),
    "AMR": (".amr", lambda: muxed("amr", "libopencore_amrnb", 8_000, bits=12_200)),
    "MPEG program stream, MP2": (".mpeg", lambda: muxed("mpeg", "mp2", 44_100)),
}


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of HEARD as files."""
    folder = tmp_path_factory.mktemp("heard")
    for number, (suffix, made) in enumerate(HEARD.values()):
        (folder / f"{number}{suffix}").write_bytes(made())
    return folder


def files(folder: Path) -> dict[str, Path]:
    return {name: folder / f"{number}{suffix}" for number, (name, (suffix, _)) in enumerate(HEARD.items())}


def alike(heard: np.ndarray) -> float:
    """Correlation with the beginning of ``voice`` at the best shift of at most 0.1 s: what is heard is what was said."""
    most = SAMPLE_RATE // 10
    said = voice(SAMPLE_RATE)[: len(heard) - most]
    padded = np.concatenate([np.zeros(most), heard, np.zeros(most)])[: len(said) + 2 * most]
    products = scipy.signal.correlate(padded, said, "valid", method="fft")
    energy = scipy.signal.correlate(padded**2, np.ones(len(said)), "valid", method="fft")
    return float((products / np.sqrt(energy * np.sum(said**2))).max())


class Listener:
    """An engine that keeps what reached it."""

    def __init__(self) -> None:
        self.heard: list[np.ndarray] = []

    def submit(self, request: Request) -> Future[Transcript]:
        self.heard.append(request.audio)
        done: Future[Transcript] = Future()
        done.set_result(Transcript("네 yes", (1, 2), "ko", -0.5, "end", Stages(0.1, 0.1, 0.1, 0.1)))
        return done

    def stats(self) -> dict[str, float]:
        return {}


@pytest.fixture(scope="module")
def listener() -> Listener:
    return Listener()


@pytest.fixture(scope="module")
def client(listener: Listener) -> Iterator[TestClient]:
    with TestClient(create_app(listener, load_base(BASE)), base_url="http://127.0.0.1") as client:
        yield client


def served(client: TestClient, path: Path) -> httpx.Response:
    return client.post(
        "/v1/audio/transcriptions", files={"file": (path.name, path.read_bytes())}, data={"language": "ko"}
    )


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def imported(folder: Path, paths: Sequence[Path], *options: str) -> tuple[Result, dict[str, Path]]:
    """``idiolect import table --copy`` of recordings, and the file that was written for each by its name."""
    folder.mkdir()
    rows = [f"{path},recording {path.stem},ann" for path in paths]
    (folder / "list.csv").write_text("\n".join(["audio,text,speaker", *rows]) + "\n", encoding="utf-8")
    done = command(
        "import",
        "table",
        folder / "list.csv",
        "--audio",
        paths[0].parent,
        "--copy",
        "--out",
        folder / "out",
        "--json",
        *options,
    )
    manifest = folder / "out" / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()] if manifest.exists() else []
    return done, {line["text"].split()[-1]: manifest.parent / line["audio"] for line in lines}


def trained_on(folder: Path, paths: Sequence[Path]) -> dict[str, float]:
    """Seconds of each recording as the examples of a run have them."""
    folder.mkdir()
    rows = [
        {
            "audio": str(path),
            "text": f"recording {path.stem}",
            "speaker": speaker,
            "id": f"{path.stem}-{speaker}",
            "lang": "en",
        }
        for path in paths
        for speaker in ("ann", "bob")
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"base": BASE, "manifest": str(folder / "manifest.jsonl"), "new_people": 0, "language": "en"}
    device = load_task(make_config(settings)).device("ann")
    examples = [e for split in ("train", "validation", "test") for e in device.split(split)]
    return {example.target.split()[-1]: float(example.details["seconds_audio"]) for example in examples}


@pytest.fixture(scope="module")
def written_by_import(people: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    done, found = imported(tmp_path_factory.mktemp("import") / "a", sorted(people.iterdir()))
    assert done.exit_code == 0, done.output
    return found


@pytest.fixture(scope="module")
def heard_by_run(people: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    return trained_on(tmp_path_factory.mktemp("run") / "a", sorted(people.iterdir()))


def in_all(row: str, answer: str, readers: Sequence[str] = READERS) -> list[pytest.MarkDecorator]:
    return [pytest.mark.case("audio", row, reader, answer) for reader in readers]


@pytest.mark.parametrize("name", [pytest.param(name, marks=in_all(name, "3.0 s")) for name in HEARD])
def test_three_seconds_are_heard_as_they_were_said(
    name: str,
    people: Path,
    written_by_import: dict[str, Path],
    heard_by_run: dict[str, float],
    client: TestClient,
    listener: Listener,
) -> None:
    path = files(people)[name]
    listener.heard.clear()
    assert served(client, path).status_code == 200
    done = command("transcribe", path, "--base", BASE, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["pieces"][-1]["end"] == pytest.approx(SECONDS, abs=0.1)
    assert heard_by_run[path.stem] == pytest.approx(SECONDS, abs=0.1)
    upload, _ = soundfile.read(io.BytesIO(encode_file(path).content), dtype="float32")
    copy, _ = soundfile.read(written_by_import[path.stem], dtype="float32")
    for heard in (load_audio(path), np.concatenate(listener.heard), upload, copy):
        assert len(heard) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.1)
        assert alike(heard) > 0.8  # of AMR; of no sound it is 0
        assert np.abs(heard).max() == pytest.approx(np.abs(voice(SAMPLE_RATE)).max(), rel=0.2)


# What is odd, and what becomes of it


def mixture(*channels: np.ndarray) -> Callable[[], bytes]:
    return lambda: written("WAV", "PCM_16", samples=np.stack(channels, axis=1))


SAID = voice(16_000)
ODD: dict[str, tuple[str, str, Callable[[], bytes], np.ndarray]] = {  # answer, remark, file, what is heard
    "WAV, floats in the range of int24": (
        "3.0 s, divided by 8,388,608",
        "float samples in the range of integers; divided by 8,388,608",
        lambda: wav((SAID * 2**23).astype("<f4"), 3, 32),
        SAID,
    ),
    "stereo, one channel silent": (
        "3.0 s of the other",
        "a channel is silent; the others were used",
        mixture(SAID, 0 * SAID),
        SAID,
    ),
    "stereo, one channel inverted": (
        "3.0 s of one of them",
        "one channel is the other one inverted; one was used",
        mixture(SAID, -0.9 * SAID),
        SAID,
    ),
    "clipped": (
        "3.0 s",
        "more than 1 % of the samples are at full scale, so it is clipped",
        mixture((20 * SAID).clip(-1, 1)),
        (20 * SAID).clip(-1, 1),
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[
                *in_all(name, f"{ODD[name][0]}, said", ("import", "run", "transcribe")),
                *in_all(name, ODD[name][0], ("serve", "device")),
            ],
        )
        for name in ODD
    ],
)
def test_what_is_odd_is_mended_and_said(name: str, tmp_path: Path, client: TestClient, listener: Listener) -> None:
    _, remark, made, expected = ODD[name]
    path = tmp_path / "recordings" / "a.wav"
    path.parent.mkdir()
    path.write_bytes(made())
    done, copies = imported(tmp_path / "a", [path])
    assert json.loads(done.stdout)["notes"] == [
        f"1 of 1 recordings: {remark}; first in {tmp_path / 'a' / 'list.csv'}:2"
    ]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps({"audio": str(path), "text": "hi", "speaker": "ann"}) + "\n")
    notes = usable_utterances(manifest, lambda text, seconds: None)[2]  # which a run prints
    assert notes == (f"1 of 1 recordings: {remark}; first in {manifest}:1",)
    told = command("transcribe", path, "--base", BASE, "--json")
    assert f"{path}: {remark}" in told.stderr
    listener.heard.clear()
    assert served(client, path).status_code == 200
    upload, _ = soundfile.read(io.BytesIO(encode_file(path).content), dtype="float32")
    copy, _ = soundfile.read(copies["a"], dtype="float32")
    for heard in (load_audio(path), np.concatenate(listener.heard), upload, copy):
        assert np.abs(heard - expected).max() < 1e-3


# What is refused, and how to convert it


def constant() -> bytes:
    return written("WAV", "PCM_16", samples=np.full(48_000, 0.25))


def not_finite() -> bytes:
    return written("WAV", "FLOAT", samples=np.where(np.arange(48_000) == 9, np.nan, SAID))


CUT, CONVERT = r"is cut off after 1\.\d of 3\.0 s", r"cannot be read as audio .*ffmpeg -i FILE out\.flac"
HOURS = "FLAC that claims four hours"  # an import leaves it out as longer than 29 s
REFUSED: dict[str, tuple[str, str, str, Callable[[], bytes]]] = {  # answer, message, suffix, file
    "WAV, cut": ("refused: cut off", CUT, ".wav", lambda: written("WAV")[:48_000]),
    "WAV, RF64, cut": ("refused: cut off", CUT, ".wav", lambda: written("RF64")[:48_000]),
    "FLAC, cut": ("refused: damaged", CONVERT, ".flac", lambda: written("FLAC")[: len(written("FLAC")) // 2]),
    HOURS: (
        "refused: cut off",
        r"is cut off after 3\.0 of 14,400\.0 s|and at most 600 s are taken|14,400 s is too long|1 longer than 29 s",
        ".flac",
        lambda: flac_of(4 * 3600 * 16_000),
    ),
    "M4A, cut before its index": ("refused: damaged", CONVERT, ".m4a", lambda: HEARD["M4A, AAC (iPhone)"][1]()[:9_000]),
    "M4A, cut after its index": (
        "refused: cut off",
        r"cannot be read as audio .cut off",
        ".m4a",
        lambda: muxed("ipod", "aac", 44_100, bits=64_000, options="movflags=faststart")[:18_000],
    ),
    "constant": ("refused: one value", "is one constant value throughout", ".wav", constant),
    "not finite": ("refused: not finite", "not finite|no finite", ".wav", not_finite),
    "WMA": ("refused: convert with ffmpeg", CONVERT, ".wma", lambda: muxed("asf", "wmav2", 44_100, bits=64_000)),
    "CAF": ("refused: convert with ffmpeg", CONVERT, ".caf", lambda: written("CAF")),
    "MP4 with AC-3": (
        "refused: convert with ffmpeg",
        CONVERT,
        ".mp4",
        lambda: muxed("mp4", "ac3", 48_000, bits=96_000),
    ),
    "playlist (HLS) called .mp3": (
        "refused: no audio",
        CONVERT,
        ".mp3",
        lambda: b"#EXTM3U\n#EXTINF:3,\nfile:///etc/passwd\n",
    ),
    "list of files (concat) called .m4a": (
        "refused: no audio",
        CONVERT,
        ".m4a",
        lambda: b"ffconcat version 1.0\nfile '/etc/passwd'\n",
    ),
    "text called .wav": ("refused: no audio", CONVERT, ".wav", lambda: "안녕하세요\n".encode("utf-16")),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=in_all(name, REFUSED[name][0], READERS[name == HOURS :])) for name in REFUSED]
)
def test_what_cannot_be_heard_is_refused_by_name(name: str, tmp_path: Path, client: TestClient) -> None:
    _, message, suffix, made = REFUSED[name]
    path = tmp_path / "recordings" / f"a{suffix}"
    path.parent.mkdir()
    path.write_bytes(made())
    done, copies = imported(tmp_path / "a", [path])
    assert (done.exit_code, copies) == (1, {})
    assert re.search(message, str(done.exception))
    with pytest.raises(AudioError, match=message):
        check_speech(load_audio(path), str(path))  # as a run
    told = command("transcribe", path, "--base", BASE)
    assert told.exit_code == 1
    assert re.search(message, str(told.exception))
    answer = served(client, path)
    assert answer.status_code in (413, 422)
    assert re.search(message, answer.json()["detail"])
    with pytest.raises(AudioError, match=message):
        encode_file(path)


# What is cut where no header says how much there was: all that is there


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=in_all(f"{name}, cut in half", "what is there", ("run", "serve", "device")))
        for name in ("OGG, Opus", "MP3", "AAC (ADTS)", "AMR", "WebM, Opus (Chrome)", "MP4, AAC, in fragments (Safari)")
    ],
)
def test_of_what_is_cut_without_a_length_all_is_heard(
    name: str, tmp_path: Path, client: TestClient, listener: Listener
) -> None:
    whole = HEARD[name][1]()
    path = tmp_path / "a.bin"
    path.write_bytes(whole[: len(whole) // 2])
    listener.heard.clear()
    assert served(client, path).status_code == 200
    upload, _ = soundfile.read(io.BytesIO(encode_file(path).content), dtype="float32")
    for heard in (load_audio(path), np.concatenate(listener.heard), upload):
        assert 0.9 < len(heard) / SAMPLE_RATE < 1.7  # a page of OGG lasts a second
        assert alike(heard) > 0.8


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=in_all(f"{name}, two in one file", "6.0 s", ("run", "serve", "device")))
        for name in ("OGG, Opus", "MP3, variable rate, no Xing header", "WebM, Opus (Chrome)")
    ],
)
def test_of_recordings_that_were_joined_both_are_heard(
    name: str, tmp_path: Path, client: TestClient, listener: Listener
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(2 * HEARD[name][1]())
    listener.heard.clear()
    assert served(client, path).status_code == 200
    upload, _ = soundfile.read(io.BytesIO(encode_file(path).content), dtype="float32")
    for heard in (load_audio(path), np.concatenate(listener.heard), upload):
        assert len(heard) / SAMPLE_RATE == pytest.approx(2 * SECONDS, abs=0.2)
        assert min(alike(heard[: 3 * SAMPLE_RATE]), alike(heard[-3 * SAMPLE_RATE :])) > 0.8


def test_a_range_of_a_file_that_cannot_be_sought_is_the_range(people: Path) -> None:
    for name in (
        "MP3, variable rate, no Xing header",
        "WebM, Opus (Chrome)",
        "FLAC to a pipe, length 0",
        "M4A, AAC (iPhone)",
    ):
        path = files(people)[name]
        whole, part = load_audio(path), load_audio(path, 1.0, 2.5)
        assert len(part) == pytest.approx(1.5 * SAMPLE_RATE, abs=2)
        assert np.abs(part[200:-200] - whole[SAMPLE_RATE + 200 : SAMPLE_RATE * 5 // 2 - 200]).max() < 0.01


@pytest.mark.parametrize(
    "reader",
    [
        pytest.param(each, marks=in_all("MP4 with a picture and two sounds", "3.0 s of the first", [each]))
        for each in ("run", "serve", "device")
    ],
)
def test_of_a_video_the_first_sound_is_heard(
    reader: str, tmp_path: Path, client: TestClient, listener: Listener
) -> None:
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as file:
        picture = file.add_stream("mpeg4", rate=10)
        picture.width = picture.height = 64
        streams = [file.add_stream("aac", rate=16_000, layout="mono") for _ in range(2)]
        for _ in range(30):
            image = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            file.mux(picture.encode(image))
        file.mux(picture.encode(None))
        for stream, samples in zip(streams, (SAID, 0 * SAID), strict=True):
            for start in range(0, len(samples), 1024):
                frame = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 16_000, start, Fraction(1, 16_000)
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
    path = tmp_path / "a.mp4"
    path.write_bytes(sink.getvalue())
    listener.heard.clear()
    if reader == "serve":
        assert served(client, path).status_code == 200
        heard = np.concatenate(listener.heard)
    elif reader == "run":
        heard = load_audio(path)
    else:
        heard, _ = soundfile.read(io.BytesIO(encode_file(path).content), dtype="float32")
    assert len(heard) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.1)
    assert alike(heard) > 0.95


@pytest.mark.case("audio", "M4A where PyAV is not installed", "device", "refused: pip install av")
def test_a_device_without_ffmpeg_says_what_to_install(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.delitem(sys.modules, "fl.speech.ffmpeg", raising=False)
    assert encode_file(files(people)["WAV, 24 bit"]).seconds == SECONDS
    assert encode_file(files(people)["FLAC to a pipe, length 0"]).seconds == SECONDS
    with pytest.raises(AudioError, match=r"\.m4a: .*FFmpeg.*pip install av"):
        encode_file(files(people)["M4A, AAC (iPhone)"])


def test_every_suffix_is_tried() -> None:
    assert set(SUFFIXES) == {suffix for suffix, _ in HEARD.values()}
