"""Bytes that claim to be audio: what is speech becomes samples, the rest costs nothing and is named."""

import io
import struct
import tracemalloc
from functools import cache

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from fl.core.errors import AudioError, IdiolectError
from fl.serving.http.audio import decode_audio as decode_with
from fl.serving.http.problems import ProblemError
from fl.speech.audio import load_audio, speech_parts
from fl.speech.decode import Decoder


@cache
def decoder():
    """One process for all tests of this module."""
    return Decoder(2**25, 600.0)


def decode_audio(data, max_seconds, charge=lambda seconds: None):
    return decode_with(decoder(), data, max_seconds, charge)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_every_format_and_rate_is_what_the_loader_of_files_makes_of_it(recording, tmp_path, kind, rate):
    data = recording(1.3, kind, rate)
    path = tmp_path / f"x.{kind.lower()}"
    path.write_bytes(data)
    expected, found = load_audio(path), decode_audio(data, 10.0)
    assert found.dtype == np.float32
    assert abs(len(found) - len(expected)) <= 1
    shortest = min(len(found), len(expected))
    np.testing.assert_allclose(found[:shortest], expected[:shortest], atol=2e-4)


def test_channels_are_averaged():
    buffer = io.BytesIO()
    both = np.stack([np.sin(np.arange(16_000) / 7), np.sin(np.arange(16_000) / 3)], axis=1).astype(np.float32)
    soundfile.write(buffer, both, 16_000, format="WAV", subtype="FLOAT")
    np.testing.assert_allclose(decode_audio(buffer.getvalue(), 10.0), both.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"RIFF", b"fLaC" + bytes(40), b"\x80\x04\x95pickle", b"PK\x03\x04" + bytes(100), bytes(5000)],
)
def test_what_is_no_audio_is_refused(data):
    with pytest.raises(AudioError, match=r"^file: "):
        decode_audio(data, 10.0)


def test_audio_that_is_cut_off_silent_short_or_not_finite_is_refused(recording):
    whole = recording(2.0)
    with pytest.raises(AudioError, match=r"cut off|cannot be read"):
        decode_audio(whole[: len(whole) // 2], 10.0)
    with pytest.raises(AudioError, match="too short"):
        decode_audio(recording(0.1), 10.0)
    for samples, reason in ((np.zeros(16_000), "silent"), (np.full(16_000, np.nan), "finite")):
        buffer = io.BytesIO()
        soundfile.write(buffer, samples.astype(np.float32), 16_000, format="WAV", subtype="FLOAT")
        with pytest.raises(AudioError, match=reason):
            decode_audio(buffer.getvalue(), 10.0)


def wav(seconds, rate=8_000):
    data = bytes(int(seconds * rate))
    head = (
        b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, rate, 1, 8)
    )
    return head + b"data" + struct.pack("<I", len(data)) + data


def test_three_hours_are_refused_by_what_the_header_says():
    data = wav(3 * 3600)
    tracemalloc.start()
    with pytest.raises(ProblemError, match=r"10,800\.0 s of audio") as raised:
        decode_audio(data, 600.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert raised.value.slug == "audio-too-long"
    assert peak < 2 * 2**20 + len(data)  # the copy of what was sent, and no samples


def test_a_tiny_flac_that_holds_an_hour_is_refused_before_it_is_unfolded():
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(16_000 * 3600, np.int16), 16_000, format="FLAC")
    bomb = buffer.getvalue()
    assert len(bomb) < 2**20
    lying = bytearray(bomb)  # STREAMINFO: 36 bits of total samples at byte 21.5; zero is "unknown"
    lying[21] &= 0xF0
    lying[22:26] = bytes(4)
    for data in (bomb, bytes(lying)):
        tracemalloc.start()
        with pytest.raises(IdiolectError):
            decode_audio(data, 60.0)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 16 * 2**20  # an hour of float32 is 220 MiB


@given(data=st.data())
def test_a_mutated_file_is_audio_or_a_typed_error(recording, data):
    kind = data.draw(st.sampled_from(["WAV", "FLAC", "OGG", "MP3"]))
    content = bytearray(recording(0.4, kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(200, len(content) - 1)))] = data.draw(st.integers(0, 255))
    try:
        found = decode_audio(bytes(content[: data.draw(st.integers(0, len(content)))]), 5.0)
    except IdiolectError:
        return
    assert found.ndim == 1
    assert 0.2 * 16_000 <= len(found) <= 5.1 * 16_000


def test_parts_without_sound_are_left_out():
    audio = np.concatenate([0.1 * np.ones(16_000 * 20), np.zeros(16_000 * 40), 0.1 * np.ones(16_000 * 5)]).astype(
        np.float32
    )
    ranges = speech_parts(audio)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == len(audio)
    assert sum(end - start for start, end in ranges) < len(audio)
    assert all(end - start <= 29 * 16_000 for start, end in ranges)


# What is decoded costs, and may end, only itself


def flac(seconds, rate, channels):
    buffer = io.BytesIO()
    samples = np.zeros((int(seconds * rate), channels), np.int16)
    samples[::7] = 3000
    soundfile.write(buffer, samples, rate, format="FLAC")
    return buffer.getvalue()


@pytest.mark.parametrize(("rate", "channels"), [(96_000, 1), (384_000, 8), (48_000, 3)])
def test_more_than_48_khz_or_two_channels_are_refused_by_the_header(rate, channels):
    charged = []
    with pytest.raises(AudioError, match=f"{rate} Hz and {channels} channels"):
        decode_audio(flac(0.5, rate, channels), 10.0, charged.append)
    assert charged == []


@pytest.mark.parametrize(
    ("rate", "channels", "seconds"), [(16_000, 1, 2.0), (48_000, 1, 2.0), (16_000, 2, 2.0), (48_000, 2, 4.0)]
)
def test_what_the_header_claims_is_paid_before_it_is_decoded(rate, channels, seconds):
    charged = []
    whole = flac(2.0, rate, channels)
    with pytest.raises(AudioError, match=r"cut off|cannot be read"):
        decode_audio(whole[: len(whole) // 2], 10.0, charged.append)
    assert charged == [seconds]


def mp3(seconds, channels=1):
    """Without a Xing header, so that nothing says its length."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp3", options={"write_xing": "0"}) as file:
        stream = file.add_stream("libmp3lame", rate=16_000, layout="stereo" if channels == 2 else "mono")
        tone = (0.3 * np.sin(np.arange(int(seconds * 16_000)) / 7)).astype(np.float32)
        for start in range(0, len(tone), 1152):
            part = np.repeat(tone[None, start : start + 1152], channels, axis=0)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format="fltp", layout=stream.layout.name)
            frame.sample_rate, frame.pts = 16_000, start
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 2])
def test_where_no_header_says_the_length_each_second_is_paid_when_it_is_decoded(channels):
    charged = []
    audio = decode_audio(mp3(4.0, channels), 10.0, charged.append)
    assert len(charged) >= 3
    assert sum(charged) == pytest.approx(len(audio) / 16_000, abs=0.01) == pytest.approx(4.0, abs=0.15)


@pytest.mark.parametrize("channels", [1, 2])
def test_an_hour_without_a_length_is_refused_when_the_bound_is_reached(channels):
    charged = []
    with pytest.raises(ProblemError, match=r"file: 1[01]\.\d s of audio, and at most 10 s") as raised:
        decode_audio(mp3(60.0, channels), 10.0, charged.append)
    assert raised.value.slug == "audio-too-long"
    assert sum(charged) <= 10.0
    assert decode_audio(mp3(1.0), 10.0).size


def test_who_cannot_pay_for_the_first_second_hears_nothing_of_a_file_without_a_length():
    def charge(seconds):
        raise ProblemError("rate-limited", "no seconds are left")

    with pytest.raises(ProblemError, match="no seconds are left"):
        decode_audio(mp3(60.0), 600.0, charge)


def test_a_process_that_dies_costs_one_file_and_is_replaced(recording):
    audio = decode_audio(recording(), 10.0)
    decoder().child.kill()
    decoder().child.wait()
    with pytest.raises(AudioError, match="the process that read it ended with SIGKILL"):
        decode_audio(recording(), 10.0)
    assert np.array_equal(decode_audio(recording(), 10.0), audio)


def test_a_file_that_costs_more_than_it_may_ends_its_process_alone(recording):
    """The bound of memory is below what the file needs, that of time below what it takes."""
    small = Decoder(2**10, 600.0)
    with pytest.raises(AudioError):
        decode_with(small, bytes(2**29), 10.0, lambda seconds: None)
    assert len(decode_with(small, recording(), 10.0, lambda seconds: None)) == 16_000
    small.close()
