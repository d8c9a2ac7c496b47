"""What holds for every importer: archives that are not trusted, vocabularies, leakage, an out folder that is never half."""

import gzip
import io
import json
import shutil
import tarfile
import zipfile
from collections import namedtuple
from dataclasses import replace

import pytest

from fl.core.errors import ConfigError, CorpusError, VocabularyError
from fl.data.importers.archives import Archive
from fl.data.importers.build import ImportPlan, import_corpus
from fl.data.importers.gather import find_leaks
from fl.data.importers.records import Options, Record, split_name
from fl.data.importers.table import IMPORTERS
from fl.data.manifest import read_manifest

from .conftest import wav_bytes, write_text, write_wav


@pytest.fixture
def people(tmp_path):
    for name in "ab":
        write_wav(tmp_path / "people" / f"{name}.wav")
    text = "audio,text,speaker\na.wav,fix the bug,ann\nb.wav,버그 고쳐 주세요,bob\n"
    return write_text(tmp_path / "people" / "list.csv", text)


def test_a_text_that_a_base_cannot_write_is_refused_before_anything_is_written_or_left_out(people, tmp_path):
    def latin(text: str, seconds: float) -> None:
        if not text.isascii():
            raise VocabularyError("this base has no Hangul")

    copy = ImportPlan(out=tmp_path / "out", copy=True)
    with pytest.raises(CorpusError, match=r"list\.csv:3: this base has no Hangul\n--drop-bad leaves them out"):
        import_corpus("table", people, Options(), copy, check_text=latin)
    assert not (tmp_path / "out").exists()
    summary = import_corpus("table", people, Options(), replace(copy, drop_bad=True), check_text=latin)
    assert (summary.utterances, summary.left_out) == (1, {"a text that the base cannot write": 1})


def test_leaks_are_found_over_case_points_and_the_spelling_of_loanwords(tmp_path):
    def said(number, split, text, loanwords=()):
        return Record(f"m:{number}", str(number), tmp_path, text, split=split, loanwords=loanwords)

    records = [
        said(1, "train", "Coffee는 그만!", (("커피", "coffee"),)),
        said(2, "test", "커피는 그만"),
        said(3, "validation", "see you"),
        said(4, "test", "See you."),
        said(5, "train", "only here"),
        said(6, "train", "see you"),
        said(7, None, "see you"),
    ]
    assert [(record.id, other.id) for record, other in find_leaks(records)] == [("1", "2"), ("3", "4"), ("6", "4")]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00005", "train"),
        ("train_nodup", "train"),
        ("dev", "validation"),
        ("valid", "validation"),
        ("dev_clean", "validation"),
        ("devman", "test"),
        ("dev_sge", "test"),
        ("eval2000", "test"),
        ("devices", None),
        ("trains", None),
        ("main", None),
    ],
)
def test_names_of_splits(name, split):
    assert split_name(name) == split


def archive_of(path, members):
    """A zip or tar with ``members`` (name, content); the content None makes a link to /etc/passwd."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, content in members:
                info = zipfile.ZipInfo(name)
                info.external_attr = (0xA1FF if content is None else 0x81A4) << 16
                file.writestr(info, content or b"/etc/passwd")
        return path
    with tarfile.open(path, "w:gz") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content or b"")
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            file.addfile(info, io.BytesIO(content or b""))
    return path


def kaldi_members(prefix="corpus/data"):
    return [
        (f"{prefix}/wav.scp", b"u1 a.wav\n"),
        (f"{prefix}/text", b"u1 hello\n"),
        (f"{prefix}/utt2spk", b"u1 ann\n"),
        ("corpus/a.wav", wav_bytes()),
        ("a.wav", wav_bytes()),
    ]


@pytest.mark.parametrize("name", ["corpus.zip", "corpus.tar.gz"])
def test_an_archive_is_unpacked_beside_the_manifest(tmp_path, take, name):
    archive = archive_of(tmp_path / name, kaldi_members())
    _, (utterance,) = take("kaldi", archive)
    assert utterance.text == "hello"
    assert utterance.audio == tmp_path / "out" / "source" / "a.wav"


@pytest.mark.parametrize("name", ["corpus.zip", "corpus.tar.gz"])
@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("../../evil.txt", b"x"), "would be written outside"),
        (("/tmp/evil.txt", b"x"), "would be written outside"),
        (("..\\evil.txt", b"x"), "would be written outside"),
        (("corpus/link.wav", None), "is a link"),
    ],
)
def test_an_archive_that_reaches_outside_is_refused_and_leaves_nothing(tmp_path, take, name, member, message):
    archive = archive_of(tmp_path / name, [*kaldi_members(), member])
    with pytest.raises(CorpusError, match=message):
        take("kaldi", archive)
    assert list((tmp_path / "out").iterdir()) == []
    assert not (tmp_path / "evil.txt").exists()


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_a_member_that_is_no_file_is_refused(tmp_path, take, kind):
    info = tarfile.TarInfo("a.wav")
    info.type, info.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "corpus.tar", "w") as file:
        file.addfile(info)
    with pytest.raises(CorpusError, match=r"a\.wav is a link or a device"):
        take("kaldi", tmp_path / "corpus.tar")


def test_what_zipfile_raises_besides_its_own_errors_is_typed(tmp_path, take):
    data = bytearray(archive_of(tmp_path / "corpus.zip", [("a.txt", b"x")]).read_bytes())
    data[6] |= 1  # encrypted
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "corpus.zip").write_bytes(data)
    with pytest.raises(CorpusError, match=r"corpus\.zip: .*password required"):
        take("kaldi", tmp_path / "corpus.zip")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_archive_larger_than_the_disk_is_refused_before_it_fills_it(tmp_path, take):
    sparse = tarfile.TarInfo("a.wav")  # a few bytes that would become a petabyte
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = tarfile.itn(1 << 50, 12, tarfile.GNU_FORMAT)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "corpus.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(CorpusError, match=r"more than .* 4 TiB; unpack it in parts"):
        take("kaldi", tmp_path / "corpus.tar")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_gibibyte_of_the_disk_stays_free(tmp_path, monkeypatch):
    archive = archive_of(tmp_path / "corpus.tar.gz", kaldi_members())
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(0, 0, (1 << 30) + 100))
    with pytest.raises(CorpusError, match=r"0\.0 GiB are free; choose another --out"):
        list(Archive().unpack(str(archive), str(tmp_path), ""))


@pytest.mark.parametrize("name", ["corpus.zip", "corpus.tar.gz"])
@pytest.mark.parametrize(
    "members", [["a", "a/b"], ["a/b", "a"], [".", "a"], ["a", "a"], ["./a", "a"], ["a", "a/"], ["a" * 300]]
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_that_stand_for_the_same_file_are_refused_and_leave_nothing(tmp_path, take, name, members):
    archive = archive_of(tmp_path / name, [(member, b"x") for member in members])
    with pytest.raises(
        CorpusError, match=r"corpus\.(zip|tar\.gz): member '.*' (has the name of another|cannot be written)"
    ):
        take("kaldi", archive)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_header_that_needs_more_memory_than_there_is_ends_the_reader_alone(tmp_path, take):
    info = tarfile.TarInfo("a")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 6 << 30
    with gzip.open(tmp_path / "corpus.tar.gz", "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(1024))
    with pytest.raises(CorpusError, match=r"corpus\.tar\.gz: "):
        take("kaldi", tmp_path / "corpus.tar.gz")


def test_a_broken_archive_says_so(tmp_path, take):
    (tmp_path / "corpus.zip").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(CorpusError, match="cannot be unpacked"):
        take("kaldi", tmp_path / "corpus.zip")


def test_the_summary_lies_beside_the_manifest(people, take, tmp_path):
    summary, _ = take("table", people)
    kept = json.loads((tmp_path / "out" / "import.json").read_text())
    assert kept["devices_are"] == summary.devices_are == "speakers"
    assert kept["languages"] == {"en": 1, "ko": 1}
    assert kept["utterances"] == 2
    assert kept["manifest"] == str(tmp_path / "out" / "manifest.jsonl")


def test_an_import_is_not_written_over_another(people, take):
    take("table", people)
    with pytest.raises(CorpusError, match=r"manifest\.jsonl exists: choose another --out"):
        take("table", people)


def test_without_an_out_folder_nothing_is_written(people):
    before = sorted(people.parent.parent.rglob("*"))
    assert import_corpus("table", people, Options(), ImportPlan()).utterances == 2
    assert sorted(people.parent.parent.rglob("*")) == before


def test_a_full_disk_leaves_no_manifest(people, tmp_path, monkeypatch):
    import fl.data.importers.audio

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fl.data.importers.audio, "save_audio", full)
    with pytest.raises(CorpusError, match=r"list\.csv:2: .*No space left.*start again"):
        import_corpus("table", people, Options(), ImportPlan(out=tmp_path / "out", copy=True))
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


def test_ids_that_are_no_file_names_stay_inside_and_apart(tmp_path, take):
    write_wav(tmp_path / "a.wav")
    rows = ["../../x", "..__x", "x y", "x:y", "한글"]
    text = "audio,text,speaker,id\n" + "".join(f"a.wav,hello {n},../ann,{row}\n" for n, row in enumerate(rows))
    _, spoken = take("table", write_text(tmp_path / "list.csv", text), plan={"copy": True})
    paths = {utterance.audio for utterance in spoken}
    assert len(paths) == len(rows)
    assert {path.parent.parent for path in paths} == {tmp_path / "out" / "audio"}
    assert [u.id for u in read_manifest(tmp_path / "out" / "manifest.jsonl")] == rows


@pytest.mark.parametrize("copy", [True, False])
def test_silence_is_left_out_whether_it_is_copied_or_not(people, tmp_path, take, copy):
    (people.parent / "a.wav").write_bytes(wav_bytes()[:44] + bytes(16_000))
    summary, spoken = take("table", people, plan={"copy": copy})
    assert [u.id for u in spoken] == ["b"]
    assert summary.left_out == {"silence": 1}


def test_an_unknown_format_and_a_missing_source_name_what_there_is(tmp_path):
    with pytest.raises(
        ConfigError, match=r"unknown importer 'hiked': did you mean 'hike'.*known are aihub, hike, ascend"
    ):
        import_corpus("hiked", tmp_path, Options(), ImportPlan())
    with pytest.raises(CorpusError, match="no such file or folder; to get the corpus: hf download thetaone-ai/HiKE"):
        import_corpus("hike", tmp_path / "none", Options(), ImportPlan())


@pytest.mark.parametrize("name", IMPORTERS)
def test_an_empty_folder_is_a_typed_error_for_every_importer(tmp_path, name):
    from fl.core.errors import IdiolectError

    with pytest.raises(IdiolectError):
        import_corpus(name, tmp_path, Options(), ImportPlan())
