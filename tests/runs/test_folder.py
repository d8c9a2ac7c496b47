"""The settings that a run folder keeps: a run that resumes on another machine computes as it began."""

import logging
from pathlib import Path

import pytest

from fl.core.errors import RunError
from fl.runs.folder import run_folder
from fl.settings.config import make_config


def test_a_run_keeps_the_precision_that_it_began_with_and_says_where_it_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config({"output": str(tmp_path), "compute": "cpu"})
    assert config.base.precision == "auto"
    monkeypatch.setattr("fl.core.compute.has_matrix_tiles", lambda: True)
    with caplog.at_level(logging.WARNING):
        assert run_folder(config, 1).base.precision == "bf16"
        assert not caplog.messages
        monkeypatch.setattr("fl.core.compute.has_matrix_tiles", lambda: False)
        assert run_folder(config, 1).base.precision == "bf16"
        assert "is slow here" in caplog.text
    with pytest.raises(RunError, match=r"base\.precision was 'bf16', is 'float32'"):
        run_folder(config.changed({"precision": "float32"}), 1)


def test_a_folder_of_another_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    config = make_config({"output": str(tmp_path), "compute": "cpu"})
    run_folder(config, 1)
    path = tmp_path / "config.toml"
    path.write_text(path.read_text().replace("local-steps", "steps-of-old"))
    with pytest.raises(RunError, match=r"another version .*steps-of-old.*: give another output, or remove the folder"):
        run_folder(config, 1)
