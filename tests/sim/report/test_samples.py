import base64
import io
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from fl.runs.files import read_run
from sim.report.samples import MAX_SAMPLES, choose, embed_audio


@pytest.fixture(scope="module")
def transcripts(finished_run):
    return read_run(finished_run).transcripts


def test_samples_show_gains_by_spelling_failures_and_new_people(transcripts):
    chosen = choose(transcripts)
    kinds = Counter(sample.kind for sample in chosen)
    assert len(chosen) == MAX_SAMPLES
    assert kinds["spelling"] >= 5
    assert kinds["worse"] >= 1
    assert kinds["new"] >= 2
    for sample in chosen:
        if sample.kind == "worse":
            assert sample.errors("personalized") > sample.errors("global")
        if sample.kind == "spelling":
            assert sample.errors("personalized") < sample.errors("global")
            assert sample.row.loanwords


def test_samples_come_from_many_people(transcripts):
    assert len({sample.row.device for sample in choose(transcripts)}) >= 6


def test_the_choice_does_not_depend_on_the_order_of_rows(transcripts):
    names = [(sample.row.device, sample.row.utterance, sample.kind) for sample in choose(transcripts)]
    again = choose(transcripts[::-1])
    assert names == [(sample.row.device, sample.row.utterance, sample.kind) for sample in again]


def test_a_run_without_personal_models_still_has_samples(transcripts):
    chosen = choose([row for row in transcripts if row.arm == "zero-shot"])
    assert chosen
    assert {sample.kind for sample in chosen} <= {"both", "right", "new"}


def test_an_embedded_recording_sounds_like_the_file(transcripts):
    row = transcripts[0]
    address = embed_audio(row.audio, row.seconds_audio, 100_000)
    kind, _, data = address.partition(",")
    assert kind.startswith("data:audio/")
    sound, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
    assert len(sound) / rate == pytest.approx(row.seconds_audio, abs=0.15)
    loudest = np.fft.rfftfreq(len(sound), 1 / rate)[np.abs(np.fft.rfft(sound)).argmax()]
    assert loudest == pytest.approx(180, abs=5)
    assert address == embed_audio(row.audio, row.seconds_audio, 100_000)


def test_what_is_missing_broken_too_large_or_another_length_is_not_embedded(transcripts, tmp_path):
    row = transcripts[0]
    (tmp_path / "broken.wav").write_bytes(b"RIFF nonsense")
    assert embed_audio(tmp_path / "none.wav", 1.0, 100_000) is None
    assert embed_audio(tmp_path / "broken.wav", 1.0, 100_000) is None
    assert embed_audio(row.audio, row.seconds_audio, 100) is None
    soundfile.write(tmp_path / "long.wav", np.zeros(16_000 * 5), 16_000)
    assert embed_audio(tmp_path / "long.wav", replace(row, seconds_audio=1.0).seconds_audio, 100_000) is None


def test_of_a_longer_file_the_utterance_alone_is_embedded(tmp_path):
    rate = 16_000
    seconds = np.arange(rate) / rate
    parts = [0.4 * np.sin(2 * np.pi * pitch * seconds) for pitch in (200, 500, 900)]
    soundfile.write(tmp_path / "long.wav", np.concatenate(parts), rate)
    address = embed_audio(tmp_path / "long.wav", 1.0, 100_000, start=1.0)
    sound, rate = soundfile.read(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert len(sound) / rate == pytest.approx(1.0, abs=0.15)
    loudest = np.fft.rfftfreq(len(sound), 1 / rate)[np.abs(np.fft.rfft(sound)).argmax()]
    assert loudest == pytest.approx(500, abs=10)
    assert embed_audio(tmp_path / "long.wav", 1.0, 100_000, start=7.0) is None
