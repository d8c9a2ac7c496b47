"""Exactly the audio containers that are documented are read, by whatever reads audio."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from clients.device.audio import encode_file
from fl.core.errors import AudioError
from fl.speech.audio import load_audio
from fl.speech.sound import open_sound
from sim.cli.app import app

ROOT = Path(__file__).parents[2]
DOCUMENTED = {"WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3"}  # WAVEX is a WAV whose header says more
CONVERTED = {"NIST": ".sph", "AIFF": ".aiff", "AU": ".au"}  # by an import, to FLAC
# Sound Designer II keeps its header in a file of its own: libsndfile makes "._" in the working folder where it writes one.
ALL = sorted(soundfile.available_formats().keys() - {"SD2"})


def sound(kind: str) -> bytes:
    out = io.BytesIO()
    samples = (0.3 * np.sin(np.arange(16_000) / 7)).astype(np.float32)
    for subtype in (None, *soundfile.available_subtypes(kind)):
        try:
            soundfile.write(out, samples, 16_000, format=kind, subtype=subtype)
        except (soundfile.SoundFileError, ValueError, TypeError, RuntimeError):
            out = io.BytesIO()
        else:
            return out.getvalue()
    return pytest.skip(f"this libsndfile writes no {kind}")


@pytest.mark.parametrize("kind", ALL)
def test_a_run_and_a_device_read_what_is_documented(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "speech.wav"
    path.write_bytes(sound(kind))
    for read in (load_audio, encode_file):
        if kind in DOCUMENTED:
            read(path)
        else:
            with pytest.raises(AudioError, match="use WAV, FLAC"):
                read(path)


@pytest.mark.parametrize("kind", ALL)
def test_an_import_converts_what_a_run_does_not_read(kind: str, tmp_path: Path) -> None:
    suffix = CONVERTED.get(kind, ".wav")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / f"a{suffix}").write_bytes(sound(kind))
    (corpus / "list.csv").write_text(f"audio,text,speaker\na{suffix},안녕 hello,ann\n", encoding="utf-8")
    done = CliRunner().invoke(app, ["import", "table", str(corpus / "list.csv"), "--out", str(tmp_path / "out")])
    if kind in DOCUMENTED | CONVERTED.keys():
        assert done.exit_code == 0, done.output
        written = list((tmp_path / "out").rglob("*.flac"))
        assert len(written) == (kind in CONVERTED)
        for path in written:
            load_audio(path)
    else:
        assert done.exit_code == 1


def test_a_resource_fork_in_the_working_folder_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libsndfile, which guesses, takes an MP3 in memory for Sound Designer II where it finds one."""
    fork = tmp_path / "fork"
    fork.mkdir()
    monkeypatch.chdir(fork)
    with contextlib.suppress(soundfile.SoundFileError):
        soundfile.write(io.BytesIO(), np.zeros(1_600, np.float32), 16_000, format="SD2", subtype="PCM_16")
    if not (fork / "._").exists():
        pytest.skip("this libsndfile leaves no resource fork")
    with open_sound(io.BytesIO(sound("MP3")), "a") as opened:
        assert sum(map(len, opened.blocks())) >= 16_000


def test_nothing_else_opens_a_sound() -> None:
    opens = re.compile(r"(soundfile\.(SoundFile|read|info|blocks)|with _Forward|av\.open)\(")
    found = {
        path.relative_to(ROOT).as_posix(): len(opens.findall(path.read_text(encoding="utf-8")))
        for package in ("fl", "clients", "strategies", "sim")
        for path in (ROOT / package).rglob("*.py")
    }
    assert {name: count for name, count in found.items() if count} == {
        "fl/speech/sound.py": 1,  # WAV and FLAC
        "fl/speech/ffmpeg.py": 1,  # all else
        "clients/device/audio.py": 1,  # the file that an upload is written to
    }
