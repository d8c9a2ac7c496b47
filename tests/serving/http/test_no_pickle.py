"""A pickle as an upload is refused, on every route that takes a file, and never opened."""

import io
import pickle
from pathlib import Path

import pytest
import torch


class Bomb:
    """Writes ``path`` when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture(params=["pickle", "torch"])
def bomb(request, tmp_path):
    if request.param == "pickle":
        return pickle.dumps(Bomb(tmp_path / "fired"))
    file = io.BytesIO()
    torch.save(Bomb(tmp_path / "fired"), file)
    return file.getvalue()


def test_a_pickle_as_an_upload(client, bomb, recording, tmp_path):
    sound = {"file": ("a.flac", recording(0.5))}
    answers = [
        client.put("/v1/adapters", content=bomb),
        client.post("/v1/audio/transcriptions", data={"model": "whisper-1"}, files={**sound, "adapter": ("a", bomb)}),
        client.post("/v1/audio/transcriptions", data={"model": "whisper-1"}, files={"file": ("a.flac", bomb)}),
    ]
    assert [answer.status_code // 100 for answer in answers] == [4, 4, 4]
    assert "pickle" in answers[0].text
    assert not (tmp_path / "fired").exists()
