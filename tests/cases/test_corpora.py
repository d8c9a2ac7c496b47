"""Transcripts as public corpora write them, imported by the command: what becomes a training text, and what is left out."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from fl.data.manifest import read_manifest
from sim.cli.app import app

RATE = 16_000
SAMPLES = np.random.default_rng(0).integers(-3000, 3000, RATE // 2).astype("<i2")
MASKED, UNHEARD, EMPTY = "left out: a masked name", "left out: unintelligible speech", "left out: no words in the text"

# corpus -> what a transcript holds -> the text, or why there is none
CASES = {
    "KsponSpeech": {
        "o/이거 b/뭐야": "이거 뭐야",
        "b/n/ 이거l/ 뭐야 n/": "이거 뭐야",
        "o/KBSb/ 3n/ 봤어": "KBS 3 봤어",
        "아/그게": "아 그게",
        "음/, 그/ 어/?": "음, 그 어?",
        "모+모르겠어": "모 모르겠어",
        "모 +모르겠어 K+ KBS": "모 모르겠어 K KBS",
        "저*기 뭐* 있어": "저기 뭐 있어",
        "u/ 그래서": UNHEARD,
        "(3개)/(세 개) 주세요": "3개 주세요",
        "(3개)?(세 개) 주세요": "3개 주세요",
        "(3개) / (세 개) 주세요": "3개 주세요",
        "((3)/(세) 개)/(세 개) 주세요": "3 개 주세요",
        "b/(1)/(일)+(1)/(일) 번": "1 1 번",
        "(음)/(응)/ (A+)/(에이 플러스)": "음 A+",
        "(3개)/세 개) 주세요": "left out: broken dual",
        "A/S 센터": "A/S 센터",
        "1/2 정도": "1/2 정도",
        "KBS/MBC and/or km/h": "KBS/MBC and/or km/h",
        "1+1 행사 C++ 언어": "1+1 행사 C++ 언어",
    },
    "AI Hub": {
        "그~ 크리스마스 @웃음": "그 크리스마스",
        "{laughing} 네 /(noise) 그래 /(bgm)": "네 그래",
        "(NO:) 네 (SN:가요)": "네 가요",
        "(데이터)/(idiom) 좀 봐": "데이터 좀 봐",
        "((아마)) 맞아": "아마 맞아",
        "(()) 오랜만에": UNHEARD,
        "((xx)) 오랜만에": UNHEARD,
        "&name1& 왔어": MASKED,
        "@이름1 씨 왔어": MASKED,
        "#@전화번호# 입니다": MASKED,
        "서울/경기 남/여": "서울 경기 남 여",
    },
    "SEAME": {
        "<noise> 今天 (ppl) okay ppb": "今天 okay",
        "the <unk> thing": UNHEARD,
        "the < unk > thing": UNHEARD,
        "the <unknown> thing": UNHEARD,
        "then <unl> lah": UNHEARD,
        "[ah] 我 不 知道 (erm)": "ah 我 不 知道 erm",
        "eat #nasi-lemak# one": "eat nasi-lemak one",
        "so ~ 我 [laugh] 的 ＳＭＳ": "so 我 的 SMS",
    },
    "Kaldi": {
        "[noise] i see <SPOKEN_NOISE>": "i see",
        "!SIL well %HESITATION yes": "well yes",
        "[laughter-yeah] [laughter] right": "yeah right",
        "a <UNK> word": UNHEARD,
        "打开 ＡＢＣ 文件": "打开 ABC 文件",
        "<NOISE>": EMPTY,
    },
    "Common Voice": {
        '"The whole sentence is quoted."': "The whole sentence is quoted.",
        '"""Good-bye,"" said the boy."': '"Good-bye," said the boy.',
        '"""All of it."""': "All of it.",
        '"One" and "two"': '"One" and "two"',
        '""': EMPTY,
        '"quotes" begin it ': '"quotes" begin it',
    },
    "ASCEND": {"然后 [UNK] 就是": UNHEARD, "我们 ｍｅｅｔｉｎｇ 吧": "我们 meeting 吧"},
}


def wav(path: Path, seconds: float = 0.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.resize(SAMPLES, int(seconds * RATE)), RATE)


def kspon(root: Path, texts: list[str]) -> tuple[str, ...]:
    lines = []
    for number, text in enumerate(texts):
        path = root / "KsponSpeech_01" / f"{number}.pcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SAMPLES.tobytes())
        lines.append(f"KsponSpeech_01/{number}.pcm :: {text}\n")
    (root / "train.trn").write_text("".join(lines))
    return "kspon", "--order", "spelling-first"


def aihub(root: Path, texts: list[str]) -> tuple[str, ...]:
    for number, text in enumerate(texts):
        wav(root / f"{number:02d}.wav")
        (root / f"{number:02d}.json").write_text(json.dumps({"form": text, "speaker_id": "S1"}, ensure_ascii=False))
    return "aihub", "--order", "spelling-first"


def seame(root: Path, texts: list[str]) -> tuple[str, ...]:
    name = "01NC01FBX_0101"
    folder = root / "data" / "conversation"
    wav(folder / "audio" / f"{name}.wav", len(texts) / 2)
    (folder / "transcript" / "phaseII").mkdir(parents=True)
    lines = [f"{name}\t{500 * n}\t{500 * n + 500}\tCS\t{text}\n" for n, text in enumerate(texts)]
    (folder / "transcript" / "phaseII" / f"{name}.txt").write_text("".join(lines))
    return ("seame",)


def kaldi(root: Path, texts: list[str]) -> tuple[str, ...]:
    for number in range(len(texts)):
        wav(root / f"{number}.wav")
    (root / "wav.scp").write_text("".join(f"{n} {n}.wav\n" for n in range(len(texts))))
    (root / "utt2spk").write_text("".join(f"{n} ann\n" for n in range(len(texts))))
    (root / "text").write_text("".join(f"{n} {text}\n" for n, text in enumerate(texts)))
    return ("kaldi",)


def common_voice(root: Path, texts: list[str]) -> tuple[str, ...]:
    for number in range(len(texts)):
        wav(root / "en" / "clips" / f"{number}.wav")
    rows = [
        "client_id\tpath\tsentence\tlocale\n",
        *(f"{'a' * 128}\t{n}.wav\t{text}\ten\n" for n, text in enumerate(texts)),
    ]
    (root / "en" / "validated.tsv").write_text("".join(rows))
    return "common-voice", "--part", "validated"


def ascend(root: Path, texts: list[str]) -> tuple[str, ...]:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    wav(root / "one.wav")
    audio = {"bytes": (root / "one.wav").read_bytes(), "path": None}
    columns = {"id": map(str, range(len(texts))), "transcription": texts, "original_speaker_id": [1] * len(texts)}
    rows = {name: list(values) for name, values in columns.items()}
    pq.write_table(pa.table({**rows, "audio": [audio] * len(texts)}), root / "train.parquet")
    return ("ascend",)


MAKERS: dict[str, Callable[[Path, list[str]], tuple[str, ...]]] = {
    "KsponSpeech": kspon,
    "AI Hub": aihub,
    "SEAME": seame,
    "Kaldi": kaldi,
    "Common Voice": common_voice,
    "ASCEND": ascend,
}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[list[str], dict[str, Any]]]:
    """Corpus -> the texts of its manifest, in the order of its cases, and the summary that the command prints."""

    @functools.cache
    def run(corpus: str) -> tuple[list[str], dict[str, Any]]:
        root, out = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("out")
        name, *options = MAKERS[corpus](root, list(CASES[corpus]))
        done = CliRunner().invoke(app, ["import", name, str(root), *options, "--drop-bad", "--json", "--out", str(out)])
        assert done.exit_code == 0, done.output
        return [utterance.text for utterance in read_manifest(out / "manifest.jsonl")], json.loads(done.stdout)

    return run


def taken(corpus: str) -> list[str]:
    return [answer for answer in CASES[corpus].values() if not answer.startswith("left out")]


@pytest.mark.parametrize(
    ("corpus", "number"),
    [
        pytest.param(corpus, n, marks=pytest.mark.case("corpora", f"{corpus}: `{raw}`", "what is done", answer))
        for corpus, answers in CASES.items()
        for n, (raw, answer) in enumerate(answers.items())
    ],
)
def test_a_transcript_becomes_what_was_said(imported, corpus: str, number: int) -> None:
    texts, summary = imported(corpus)
    answers = list(CASES[corpus].values())
    reason = answers[number].removeprefix("left out: ")
    if reason != answers[number]:
        assert summary["left_out"][reason] == answers.count(answers[number])
    else:
        place = number - sum(answer.startswith("left out") for answer in answers[:number])
        assert texts[place] == answers[number]


@pytest.mark.parametrize("corpus", CASES)
def test_every_utterance_is_taken_or_counted(imported, corpus: str) -> None:
    texts, summary = imported(corpus)
    assert texts == taken(corpus)
    assert len(texts) + sum(summary["left_out"].values()) == len(CASES[corpus])


@pytest.mark.case("corpora", "any: a sign that no table of marks knows", "what is done", "kept; counted in the summary")
def test_what_may_still_be_a_mark_is_shown(imported, tmp_path: Path) -> None:
    for number, text in enumerate(("그래 #태그", "#다른 태그", "A/S 센터 R&D", "a <b> c_d")):
        wav(tmp_path / f"{number}.wav")
        with (tmp_path / "list.csv").open("a") as file:
            file.write(("" if number else "audio,text,speaker\n") + f"{number}.wav,{text},ann\n")
    done = CliRunner().invoke(app, ["import", "table", str(tmp_path / "list.csv"), "--json"])
    assert [note.partition(", first in ")[0] for note in json.loads(done.stdout)["notes"]] == [
        "2 texts still hold '#'",
        *("1 text still holds " + repr(sign) for sign in "<>_"),
    ]
    shown = CliRunner().invoke(app, ["import", "table", str(tmp_path / "list.csv")])
    assert "2 texts still hold '#', first in" in shown.output
    assert [note[:24] for note in imported("KsponSpeech")[1]["notes"]] == ["2 texts still hold '+', "]
