"""Common Voice, CSV and TSV, and our own manifests."""

import pytest

from fl.core.errors import CorpusError
from fl.data.manifest import Utterance, write_manifest

from .conftest import write_text, write_wav

HEADER = "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tage\tgender\taccents\tvariant\tlocale\tsegment"
ANN, BOB = "a" * 128, "b" * 128


def line(client, clip, sentence, locale="zh-CN"):
    return f"{client}\t{clip}\t0f\t{sentence}\t\t2\t0\t\t\t\t\t{locale}\t"


@pytest.fixture
def common_voice(tmp_path):
    folder = tmp_path / "cv-corpus-20.0" / "zh-CN"
    lists = {
        "train": [line(ANN, "1.wav", '"quotes" begin it')],
        "dev": [line(BOB, "2.wav", "你好 hello")],
        "test": [line(BOB, "3.wav", "再见")],
        "validated": [line(ANN, "1.wav", "one"), line(BOB, "2.wav", "two")],
    }
    for name, lines in lists.items():
        write_text(folder / f"{name}.tsv", "\n".join([HEADER, *lines]) + "\n")
    for number in (1, 2, 3):
        write_wav(folder / "clips" / f"{number}.wav")
    return folder


def test_common_voice_quotes_nothing_and_shortens_speakers(common_voice, take):
    summary, spoken = take("common-voice", common_voice, plan={"splits": "official"})
    assert [(u.id, u.text, u.speaker, u.split, u.lang) for u in spoken] == [
        ("1", '"quotes" begin it', "a" * 16, "train", "zh"),
        ("2", "你好 hello", "b" * 16, "validation", "zh"),
        ("3", "再见", "b" * 16, "test", "zh"),
    ]
    assert spoken[0].audio == common_voice / "clips" / "1.wav"
    assert summary.splits_are.startswith("the official one; 2 of 2 devices have nothing to train on or no test")


def test_common_voice_reads_another_list_and_finds_the_folder_of_the_language(common_voice, take):
    summary, spoken = take("common-voice", common_voice.parent, parts=("validated",))
    assert [u.text for u in spoken] == ["one", "two"]
    assert summary.splits_are.startswith("each device's own")


def test_common_voice_names_the_lists_there_are(common_voice, take):
    with pytest.raises(CorpusError, match=r"other\.tsv: no such list; there are dev, test, train, validated"):
        take("common-voice", common_voice, parts=("other",))


def test_clips_without_an_ending_are_mp3(common_voice, take):
    write_text(common_voice / "train.tsv", f"{HEADER}\n{line(ANN, '17', 'hello')}\n")
    with pytest.raises(CorpusError, match=r"train\.tsv:2: no such audio file: .*clips/17\.mp3"):
        take("common-voice", common_voice)


def csv(folder, text, name="people.csv", encoding="utf-8"):
    for clip in ("a", "b", "c"):
        write_wav(folder / "wav" / f"{clip}.wav")
    return write_text(folder / name, text, encoding)


def test_a_csv_takes_its_columns_by_name_in_any_order(tmp_path, take):
    text = 'speaker,text,audio,session,lang,start,end\nann,"hello, you",wav/a.wav,s1,en-GB,0.1,0.4\nbob,잘 가,wav\\b.wav,s2,ko,,\n'
    summary, spoken = take("table", csv(tmp_path, text))
    assert [(u.id, u.text, u.speaker, u.session, u.lang, u.start, u.end) for u in spoken] == [
        ("a", "hello, you", "ann", "s1", "en", 0.1, 0.4),
        ("b", "잘 가", "bob", "s2", "ko", None, None),
    ]
    assert summary.devices == {
        "ann": {"utterances": 1, "minutes": 0.005},
        "bob": {"utterances": 1, "minutes": pytest.approx(0.5 / 60, abs=1e-3)},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("audio,text,speaker\nwav/a.wav,hello\n", r"people\.csv:2: 2 values where the header has 3 columns"),
        ("audio,text,text\nwav/a.wav,hi,hi\n", r"people\.csv:1: column 'text' stands twice"),
        ("", r"people\.csv:1: is empty"),
        ("audio,words\nwav/a.wav,hi\n", r"no column for the text; there are audio, words; name it with --field text=COLUMN"),
        ("audio,text,speaker\nwav/a.wav,hi,ann\nwav/gone.wav,ho,ann\n", r"people\.csv:3: no such audio file: .*gone\.wav"),
        ("audio,text,speaker\nwav/a.wav,hi,ann\nwav/b.wav,ho,\n", r"people\.csv:3: utterance 'b' has no speaker"),
        ("audio,text,speaker\nwav/a.wav,hi,ann\nwav/../wav/a.wav,ho,ann\n", r"people\.csv:3: id 'a' was already used in .*:2"),
        ("audio,text,speaker\n../secret.wav,hi,ann\n", r"people\.csv:2: path '\.\./secret\.wav' leads out of"),
        ("audio,text,speaker\n..\\..\\secret.wav,hi,ann\n", r"people\.csv:2: path .* leads out of"),
        ("audio,text,speaker\n,hi,ann\n", r"people\.csv:2: column 'audio' is empty"),
        ("audio,text,speaker,start\nwav/a.wav,hi,ann,soon\n", r"people\.csv:2: 'soon' is not a number of seconds"),
        ("audio,text,speaker,split\nwav/a.wav,hi,ann,third\n", r"people\.csv:2: split 'third' is not one of"),
        ("audio,text,speaker\nwav/a.wav,h\ufffdi,ann\n", r"people\.csv:2: the line holds U\+FFFD"),
        ("audio,text,speaker\nwav/a.wav,h\x07i,ann\n", r"people\.csv:2: the transcript holds the control character U\+0007"),
        ("audio,text\nwav/a.wav,hi\n", r"people\.csv:2: no utterance names a speaker, a topic or a session"),
        ("audio,text,speaker\nwav/a.wav,...,ann\n", r"holds no usable utterances \(1 no words in the text\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_table_is_named_by_file_and_line(tmp_path, take, text, message):
    with pytest.raises(CorpusError, match=message):
        take("table", csv(tmp_path, text))
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


def test_a_file_that_is_no_audio_is_refused_or_left_out(tmp_path, take):
    path = csv(tmp_path, "audio,text,speaker\nwav/a.wav,hi,ann\nwav/b.wav,ho,ann\n")
    (tmp_path / "wav/b.wav").write_bytes(b"not audio")
    with pytest.raises(CorpusError, match=r"people\.csv:3: .*b\.wav: cannot be read as audio"):
        take("table", path)
    summary, spoken = take("table", path, plan={"drop_bad": True})
    assert [u.id for u in spoken] == ["a"]
    assert summary.left_out == {"unreadable audio": 1}


@pytest.mark.parametrize(("encoding", "named"), [("cp949", "cp949"), ("utf-16-le", "utf-16-le")])
def test_another_encoding_is_named_and_then_read(tmp_path, take, encoding, named):
    text = "audio,text,speaker\nwav/a.wav,회의 내일이야,미나\n"
    path = csv(tmp_path, text, encoding=encoding)
    with pytest.raises(CorpusError, match=rf"people\.csv:[12]: .*--encoding {named}"):
        take("table", path)
    _, (utterance,) = take("table", path, encoding=encoding)
    assert (utterance.text, utterance.speaker) == ("회의 내일이야", "미나")


def test_the_line_with_the_wrong_bytes_is_named(tmp_path, take):
    path = csv(tmp_path, "audio,text,speaker\nwav/a.wav,hello,ann\n")
    with path.open("ab") as file:
        file.write("wav/b.wav,한글,ann\n".encode("cp949"))
    with pytest.raises(CorpusError, match=r"people\.csv:3: not UTF-8; it looks like cp949"):
        take("table", path)


def test_chinese_in_gb18030_is_not_taken_for_korean(tmp_path, take):
    path = csv(tmp_path, "audio,text,speaker\nwav/a.wav,我们明天开会讨论这个项目的进展情况,李\n", encoding="gb18030")
    with pytest.raises(CorpusError, match="--encoding gb18030"):
        take("table", path)


def test_an_unknown_encoding_is_refused(tmp_path, take):
    with pytest.raises(CorpusError, match="--encoding 'cp9494' is unknown"):
        take("table", csv(tmp_path, "audio,text\n"), encoding="cp9494")


def test_absolute_paths_of_another_machine_are_found_by_name_in_a_named_folder(tmp_path, take):
    path = csv(tmp_path / "labels", "audio,text,speaker\n/mnt/disk7/clips/z.wav,hi,ann\n")
    with pytest.raises(CorpusError, match="leads out of"):
        take("table", path)
    write_wav(tmp_path / "clips" / "z.wav")
    _, (utterance,) = take("table", path, audio=tmp_path / "clips")
    assert utterance.audio == tmp_path / "clips" / "z.wav"


def test_devices_can_be_sessions_instead_of_speakers(tmp_path, take):
    path = csv(tmp_path, "audio,text,speaker,session\nwav/a.wav,hi,ann,s1\nwav/b.wav,ho,ann,s2\n")
    summary, spoken = take("table", path, plan={"devices": "session"})
    assert [u.speaker for u in spoken] == ["session:s1", "session:s2"]
    assert summary.devices_are == "pseudo-devices by session"


def test_plain_texts_are_as_they_are_scored(tmp_path, take):
    path = csv(tmp_path, 'audio,text,speaker\nwav/a.wav,"The Bug는, 내일!",ann\nwav/b.wav,"%",ann\n')
    summary, (utterance,) = take("table", path, plan={"plain": True})
    assert utterance.text == "the bug는 내일"
    assert summary.left_out == {"no words in the text": 1}


def test_a_manifest_is_imported_with_all_it_has(tmp_path, take):
    write_wav(tmp_path / "a.wav")
    before = Utterance(
        id="x/1",
        audio=tmp_path / "a.wav",
        text="coffee는 그만",
        speaker="미나",
        lang="ko",
        spans=(("coffee", "en"), ("는", "ko"), ("그만", "ko")),
        level="word",
        loanwords=(("커피", "coffee"),),
        session="s1",
    )
    write_manifest(tmp_path / "m.jsonl", [before])
    _, (after,) = take("manifest", tmp_path / "m.jsonl", plan={"copy": True})
    assert after.audio.is_relative_to(tmp_path / "out" / "audio")
    assert after.audio.name.endswith(".flac")
    assert {**vars(after), "audio": before.audio} == vars(before)
