"""``make pictures``: what is missing is named before anything is computed, and the pictures that are kept are small."""

from pathlib import Path

import pytest

from benchmarks import pictures
from fl.core.errors import RunError

ROOT = Path(__file__).parents[1]
LIMIT = pictures.MAX_BYTES
KEPT = {f"{what}-{scheme}.webp" for what in ("report", "page") for scheme in ("light", "dark")}


def test_a_machine_without_a_browser_is_told_which_to_install(monkeypatch):
    monkeypatch.setattr(pictures, "CHROMIUM", None)
    with pytest.raises(RunError, match="apt-get install chromium"):
        pictures.require_browser()


def test_a_machine_without_korean_letters_is_told_which_font_to_install(monkeypatch, tmp_path):
    nothing = tmp_path / "fc-list"
    nothing.write_text("#!/bin/sh\n", encoding="utf-8")
    nothing.chmod(0o755)
    monkeypatch.setattr(pictures, "CHROMIUM", "/usr/bin/chromium")
    monkeypatch.setattr(pictures.shutil, "which", lambda name: str(nothing))
    with pytest.raises(RunError, match="apt-get install fonts-nanum"):
        pictures.require_browser()


class Window:
    """Pictures of a size in proportion to their quality."""

    def picture(self, quality, last):
        return bytes(quality * LIMIT // 70)


def test_the_best_quality_that_is_small_enough_is_kept(tmp_path):
    pictures.take(Window(), tmp_path / "one.webp", "main")
    assert (tmp_path / "one.webp").stat().st_size == LIMIT


def test_a_picture_that_no_quality_makes_small_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_BYTES", 10)
    with pytest.raises(RunError, match="make the window smaller"):
        pictures.take(Window(), tmp_path / "two.webp", "main")


def test_the_pictures_of_the_readme_are_there_in_both_schemes_and_small():
    folder = ROOT / pictures.PICTURES
    assert {path.name for path in folder.iterdir()} == KEPT
    for path in folder.iterdir():
        data = path.read_bytes()
        assert data[:4] + data[8:12] == b"RIFFWEBP"
        assert len(data) <= pictures.MAX_BYTES
