"""The whole way on real weights; through Flower's own command: tests/sim/test_other_package.py."""

import json
from pathlib import Path

import pytest

from fl.runs.files import read_run
from fl.settings.config import make_config
from fl.speech.transcribe import transcribe_file
from sim.backends.run import run_simulation
from sim.report.summary import summarize

pytestmark = pytest.mark.slow


def test_speech_of_two_people_becomes_personal_recognizers_on_the_pretrained_base(tmp_path):
    config = make_config(
        {
            "devices": 2,
            "new-people": 1,
            "sentences": 14,
            "new-people-tests": 2,
            "rounds": 3,
            "local-steps": 4,
            "arms": "personalized,neutral",
            "evaluate-every": 3,
            "output": str(tmp_path / "run"),
        }
    )
    folder = run_simulation(config, serial=True)
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    losses = {r: [x["train_loss"] for x in rows if x["round"] == r and x["train_loss"] is not None] for r in (1, 3)}
    assert sum(losses[3]) < 0.8 * sum(losses[1]), "three rounds on real speech must teach something"

    summary = summarize([read_run(folder)])
    assert set(summary["arms"]) == {"personalized", "neutral"}
    assert summary["new_people"]["neutral"]["mer"]["reference"] > 0
    up, shared = summary["costs"]["bytes_up_per_device_round"], summary["costs"]["shared_bytes"]
    assert shared < up < 1.02 * shared, "the shared tensors and their array headers go up, the gates do not"

    transcripts = map(json.loads, (folder / "transcripts.jsonl").read_text(encoding="utf-8").splitlines())
    transcript = next(row for row in transcripts if row["arm"] == "personalized")
    adapter = folder / "devices" / "personalized" / transcript["device"] / "adapter"
    again = transcribe_file(Path(transcript["audio"]), "", adapter)
    assert " ".join(piece.text for piece in again) == transcript["hypothesis"]
