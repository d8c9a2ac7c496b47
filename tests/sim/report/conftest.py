"""A small run as it lies on disk: eight people who took part, two who did not, seven arms, Korean with English words.

The errors are made, not measured: every arm confuses syllables at its own rate, and those that cannot know a person's
spelling habit write loanwords the other way. All is a function of the seed.
"""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile

from fl.core.rng import derive_random

# Words in braces are loanwords, written by each person's habit; bars separate a particle from its word.
SENTENCES = (
    ("word", "오늘 아침에 {커피:coffee}|를 두 잔 마셨어"),
    ("word", "내일 {미팅:meeting}|이 몇 시에 있어"),
    ("word", "이번 {버그:bug}|는 내가 고쳤어"),
    ("word", "새 {프로젝트:project}|가 다음 주에 시작해"),
    ("word", "{컴퓨터:computer}|가 너무 느려서 답답해"),
    ("phrase", "나는 after work 에 {헬스:health} 하러 가"),
    ("phrase", "그 사람 really nice guy 라고 들었어"),
    ("phrase", "{리포트:report}|는 by tomorrow morning 까지 보내 줘"),
    ("phrase", "어제 산 new black shoes 가 너무 작아"),
    ("sentence", "시간이 없어 let us talk about it later"),
    ("sentence", "I will call you back 지금은 바빠"),
    ("sentence", "{커피:coffee} 마실래 it is on me today"),
)
NOISE = {  # share of syllables that an arm gets wrong, share of loanwords that it spells as the person does
    "zero-shot": (0.26, 0.4),
    "local": (0.13, 0.8),
    "global": (0.09, 0.5),
    "global+finetune": (0.085, 0.65),
    "personalized": (0.05, 0.93),
    "neutral": (0.085, 0.5),
    "centralized": (0.07, 0.6),
}
NEW_PEOPLE_ARMS = ("zero-shot", "global", "neutral", "centralized")
CONFUSIONS = dict(zip("에이가는어해를시서사아", "애히카은오헤을씨써싸야", strict=True))
ROUNDS = 8
HARMED = 7  # the device that personalization makes worse


@dataclass(frozen=True)
class Sentence:
    """One reference with its annotation, written by one person's habit."""

    level: str
    text: str
    spans: list[list[str]]
    loanwords: list[list[str]]


def build_sentence(level: str, template: str, latin: bool) -> Sentence:
    """The template with loanwords in Latin or in Hangul."""
    words, spans, loanwords = [], [], []
    for word in template.split():
        text = ""
        for part in word.split("|"):
            if part.startswith("{"):
                korean, _, english = part.strip("{}").partition(":")
                loanwords.append([korean, english])
                part = english if latin else korean
            text += part
            spans.append([part, "en" if part.isascii() else "ko"])
        words.append(text)
    return Sentence(level, " ".join(words), spans, loanwords)


def corrupt(sentence: Sentence, arm: str, latin: bool, random: Random, *, spoiled: bool = False) -> str:
    """What the arm makes of a sentence: confused and lost syllables, doubled words, the other spelling."""
    error, habit = NOISE[arm] if not spoiled else (0.16, 0.3)
    text = sentence.text
    for korean, english in sentence.loanwords:
        if random.random() > habit:
            text = text.replace(english, korean) if latin else text.replace(korean, english)
    written = []
    for char in text:
        chance = random.random()
        if chance > error or (char.isascii() and random.random() < 0.75):
            written.append(char)
        elif chance > 0.35 * error:
            written.append(CONFUSIONS.get(char, char) if not char.isascii() else "e" if char != " " else " ")
        elif chance > 0.15 * error:
            written.append(char + char if char != " " else "")
    return "".join(written)


def write_tone(path: Path, seconds: float, pitch_hz: float) -> None:
    """A soft tone with a slow swell as 16 kHz WAV."""
    time = np.arange(round(16_000 * seconds)) / 16_000
    swell = 0.2 * np.sin(np.pi * time / seconds) ** 2
    soundfile.write(path, (swell * np.sin(2 * math.pi * pitch_hz * time)).astype(np.float32), 16_000)


def write_run(folder: Path, seed: int = 0, devices: int = 8, new_people: int = 2) -> Path:
    """A finished run in ``folder``."""
    (folder / "audio").mkdir(parents=True)
    transcripts = []
    for index in range(devices + new_people):
        transcripts += device_transcripts(folder, seed, index, new=index >= devices)
    results = [row for index in range(devices) for row in device_curve(seed, index)]
    write_rows(folder / "transcripts.jsonl", transcripts)
    write_rows(folder / "results.jsonl", results)
    (folder / "costs.json").write_text(json.dumps(costs(seed, devices)), encoding="utf-8")
    (folder / "config.toml").write_text(f'seed = {seed}\n[model]\nbase = "whisper-base"\nrank = 8\n', encoding="utf-8")
    return folder


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def device_name(index: int, new: bool) -> str:
    return f"new-{index:02d}" if new else f"speaker-{index:02d}"


def device_transcripts(folder: Path, seed: int, index: int, new: bool) -> list[dict]:
    latin, rows = index % 2 == 0, []
    for number, (level, template) in enumerate(SENTENCES):
        sentence = build_sentence(level, template, latin)
        audio = folder / "audio" / f"{index}-{number}.wav"
        write_tone(audio, 0.6 + 0.05 * number, 180 + 20 * index + 10 * number)
        for arm in NEW_PEOPLE_ARMS if new else NOISE:
            random = derive_random(seed, index, number, arm)
            row = {"schema": 1, "arm": arm, "device": device_name(index, new), "new_person": new}
            row |= {"utterance": f"u{index}-{number:02d}", "audio": str(audio), "reference": sentence.text}
            row |= {
                "hypothesis": corrupt(sentence, arm, latin, random, spoiled=arm == "personalized" and index == HARMED),
                "spans": sentence.spans,
            }
            row |= {"loanwords": sentence.loanwords, "level": level, "seconds_audio": 0.6 + 0.05 * number}
            rows.append(row)
    return rows


def device_curve(seed: int, index: int) -> list[dict]:
    """Validation rows: the trained arms over all rounds, zero-shot at the start, fine-tuning at the end."""
    rows = []
    for arm in NOISE:
        rounds = [0] if arm == "zero-shot" else [ROUNDS] if arm == "global+finetune" else range(ROUNDS + 1)
        start, end = 0.62, 2.2 * NOISE[arm][0] + 0.02
        for number in rounds:
            wobble = 0.02 * derive_random(seed, index, number, arm, "curve").random()
            rate = start if arm == "zero-shot" else end + (start - end) * math.exp(-0.5 * number) + wobble
            counts = {"substitutions": round(170 * rate), "deletions": 12, "insertions": 8, "reference": 200}
            metrics = dict.fromkeys(("wer", "cer", "mer"), counts)
            row = {"schema": 1, "arm": arm, "round": number, "device": device_name(index, False), "new_person": False}
            row |= {"split": "validation", "metrics": metrics, "train_loss": None if number == 0 else 2.0 / number}
            row |= {"examples": 20, "steps": 5, "bytes_up": 900_000, "bytes_down": 900_000}
            rows.append(row | {"seconds_train": 1.5, "seconds_evaluate": 0.8})
    return rows


def costs(seed: int, devices: int) -> dict:
    return {
        "base": "whisper-base",
        "base_bytes": 290_403_936,
        "base_parameters": 72_593_920,
        "adapter_bytes": 2_520_000,
        "adapter_parameters": 630_000,
        "shared_bytes": 2_359_296,
        "private_bytes": 160_704,
        "bytes_up_per_device_round": 2_361_000,
        "bytes_down_per_device_round": 2_360_500,
        "seconds": {arm: 20.0 + 13.0 * order for order, arm in enumerate(NOISE)},
        "rounds": ROUNDS,
        "local_steps": 5,
        "batch_size": 4,
        "devices": devices,
        "machine": {"processor": "x86_64", "cores": 2, "memory_gib": 8.0},
        "versions": {"python": "3.11.9", "torch": "2.13.0", "flwr": "1.41.0"},
        "seed": seed,
    }


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """A run folder that tests only read."""
    return write_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="session")
def other_seed(tmp_path_factory) -> Path:
    """The same experiment with another seed."""
    return write_run(tmp_path_factory.mktemp("runs") / "demo-1", seed=1)


@pytest.fixture
def run_copy(finished_run, tmp_path) -> Path:
    """A copy of the run that a test may damage."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def edit_rows():
    """``edit_rows(path, change)``: rewrites a JSONL file with ``change(row)`` applied to each row, ``None`` drops it."""

    def edit(path, change):
        rows = [change(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        write_rows(path, [row for row in rows if row is not None])

    return edit
