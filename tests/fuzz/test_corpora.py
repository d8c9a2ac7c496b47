"""Files of a corpus that are damaged or crafted: sound, archives, tables and lists give what is in them or a typed error."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from fl.core.apart import Apart
from fl.core.errors import AudioError, CorpusError, IdiolectError
from fl.data.importers.archives import unpack
from fl.data.importers.records import Options, Record
from fl.data.importers.table import IMPORTERS
from fl.data.manifest import read_manifest

from .conftest import damaged, fuzz

SOUND = np.random.default_rng(0).uniform(-0.3, 0.3, 4_000).astype(np.float32)


FFMPEG = {
    "M4A": ("ipod", "aac"),
    "WEBM": ("webm", "libopus"),
    "AAC": ("adts", "aac"),
    "AMR": ("amr", "libopencore_amrnb"),
}


def sound_of(kind: str) -> bytes:
    file = io.BytesIO()
    if kind in FFMPEG:
        container, codec = FFMPEG[kind]
        rate = {"libopus": 48_000, "libopencore_amrnb": 8_000}.get(codec, 16_000)
        with av.open(file, "w", format=container, options={"movflags": "empty_moov+frag_keyframe"}) as out:
            stream = out.add_stream(codec, rate=rate, layout="mono")
            frame = av.AudioFrame.from_ndarray((SOUND[None] * 32767).astype(np.int16), format="s16", layout="mono")
            frame.sample_rate = rate
            into = av.AudioResampler(stream.format, "mono", rate, stream.codec_context.frame_size or 160)
            for part in (*into.resample(frame), *into.resample(None), None):
                out.mux(stream.encode(part))
        return file.getvalue()
    soundfile.write(file, SOUND, 16_000, format=kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", *FFMPEG])
def test_sound_is_samples_or_an_error_and_never_ends_the_process(tmp_path, kind):
    whole, head_bytes = sound_of(kind), 1_200 if kind in FFMPEG else 200  # where what is of interest to a parser lies
    with Apart(f"{__package__}.targets:Loader", AudioError) as loader:

        @fuzz
        @given(damaged(whole[:head_bytes]), st.booleans())
        def check(head, alone):
            path = tmp_path / f"a.{kind.lower()}"
            path.write_bytes(head if alone else head + whole[head_bytes:])
            found = loader.one(path, "load", str(path))  # a death or an error of another type would be raised
            assert found == -1 or 0 < found < 4 * 3600 * 16_000

        check()


def zipped(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members:
            archive.writestr(name or "?", content)
    return file.getvalue()


def tarred(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


members = st.lists(
    st.tuples(
        st.sampled_from(
            ["a", "a/b", "./a", ".", "..", "../a", "/a", "a/../../b", "C:\\a", "a\\..\\..\\b", "A", "a/", "", "b" * 300]
        )
        | st.text(max_size=5).filter(lambda name: name.isprintable() and name.isascii()),
        st.binary(max_size=20),
    ),
    max_size=5,
)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("ending", "make"), [(".zip", zipped), (".tar", tarred)])
def test_an_archive_is_unpacked_inside_its_folder_or_leaves_nothing(tmp_path, ending, make):
    number = 0

    @fuzz
    @given(members, st.data())
    def check(listed, data):
        nonlocal number
        number += 1
        here = tmp_path / str(number)
        here.mkdir()
        archive = here / f"corpus{ending}"
        content = make(listed)
        archive.write_bytes(data.draw(damaged(content)) if data.draw(st.booleans()) else content)
        refused = ""
        try:
            unpack(archive, here / "out" / "source")
        except CorpusError as error:
            refused = str(error)
        assert (archive.name in refused) == bool(refused)
        assert [path.name for path in (here / "out").iterdir()] == ([] if refused else ["source"])
        assert {path.name for path in here.iterdir()} == {archive.name, "out"}
        assert not any(path.is_symlink() for path in here.rglob("*"))

    check()


ROWS = [{"id": f"u{n}", "text": f"word {n} 고쳐", "speaker": "ann", "audio": {"bytes": b"RIFF" * 9, "path": f"{n}.wav"}}
        for n in range(9)]  # fmt: skip


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_table_is_rows_or_an_error(tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table, file = pa.Table.from_pylist(ROWS), io.BytesIO()
    if kind == "parquet":
        parquet.write_table(table, file)
    else:
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    path = tmp_path / f"train.{kind}"
    with Apart("fl.data.importers.tables:Tables", CorpusError) as tables:

        @fuzz
        @given(damaged(file.getvalue(), 2))
        def check(data):
            path.write_bytes(data)
            try:
                _, *batches = tables.ask(path, "read", str(path))
                rows = [row for batch in batches for row in batch]
            except CorpusError as error:
                rows, refused = [], str(error)
            else:
                refused = str(path)
            assert str(path) in refused
            assert all(isinstance(row, dict) for row in rows)

        check()


LISTS = {
    "table": ("list.csv", "audio,text,speaker,start,end\na.wav,fix the bug,ann,0,1\nb.wav,고쳐 주세요,bob,,\n"),
    "huggingface": ("metadata.jsonl", '{"file_name": "a.wav", "text": "fix", "speaker": "ann", "start": 0.5}\n' * 2),
    "common-voice": ("train.tsv", "client_id\tpath\tsentence\tlocale\n00ff\ta.mp3\tfix the bug\tko\n"),
    "kaldi": ("text", "u1 fix the bug\nu2 고쳐 주세요\n"),
    "kspon": ("train.trn", "a/b.pcm :: 이거 (bug)/(버그) 고쳐\n"),
    "aihub": ("a.json", json.dumps({"speaker": [{"id": "ann"}], "utterance": [{"form": "fix", "speaker_id": "ann", "start": 1}]})),
    "manifest": ("m.jsonl", '{"audio": "a.wav", "text": "fix", "speaker": "ann", "spans": [["fix", "en"]], "end": 2.5}\n'),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_transcripts_is_findings_or_an_error(tmp_path, name):
    path = tmp_path / LISTS[name][0]
    for other, text in {"wav.scp": "u1 a.wav\nu2 b.wav\n", "utt2spk": "u1 ann\nu2 bob\n"}.items():
        (tmp_path / other).write_text(text)
    (tmp_path / "b.pcm").write_bytes(bytes(100))
    source = path if name in ("table", "manifest") else tmp_path
    options = (
        Options(parts=("train",), order="spelling-first") if name == "common-voice" else Options(order="spelling-first")
    )

    @fuzz
    @given(damaged(LISTS[name][1].encode()))
    def check(data):
        path.write_bytes(data)
        try:
            found = list(IMPORTERS[name].read(source, options))
        except IdiolectError:
            return
        assert all(item.audio is not None for item in found if isinstance(item, Record))

    check()


@fuzz
@given(st.dictionaries(st.sampled_from(["audio", "text", "speaker", "start", "end", "spans", "level", "split", "loanwords", "id"]),
                       st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
                                    lambda inner: st.lists(inner, max_size=3), max_leaves=5)))  # fmt: skip
def test_a_manifest_line_with_anything_in_any_place_is_an_utterance_or_an_error(tmp_path_factory, row):
    path: Path = tmp_path_factory.mktemp("m") / "m.jsonl"
    path.write_text(json.dumps({"audio": "a.wav", "text": "fix", "speaker": "ann", **row}))
    try:
        (utterance,) = read_manifest(path)
    except IdiolectError:
        return
    assert utterance.audio.is_absolute()
    assert utterance.text
    assert utterance.speaker
