"""Names as people read them, and what systems leave in folders."""

import unicodedata
from pathlib import Path

import pytest

from fl.core.paths import Names, files_below, find, is_litter, readable

NFC, NFD = (unicodedata.normalize(form, "김민지") for form in ("NFC", "NFD"))


@pytest.mark.parametrize("written", [NFD, f"\ufeff{NFC}", f"{NFC} ", f"\u200b{NFC}\u00a0", NFC])
def test_what_looks_the_same_is_the_same(written: str) -> None:
    assert readable(written) == NFC


@pytest.mark.parametrize("other", ["minji", "Ｍinji", "Minji2", "Min ji"])
def test_what_is_seen_stays_apart(other: str) -> None:
    assert readable(other) != readable("Minji")


@pytest.mark.parametrize("real", [NFC, NFD, f"{NFC}\u200b"])
@pytest.mark.parametrize("wanted", [NFC, NFD])
def test_a_file_is_found_by_its_name_however_it_and_its_folder_are_written(
    tmp_path: Path, real: str, wanted: str
) -> None:
    path = tmp_path / real / f"{real}.WAV"
    path.parent.mkdir()
    path.touch()
    assert find(tmp_path / wanted / f"{wanted}.wav").samefile(path)


def test_of_two_names_that_are_read_the_same_the_exact_one_is_meant_and_else_none(tmp_path: Path) -> None:
    for name in (NFC, NFD):
        (tmp_path / name).write_text(name)
    assert [find(tmp_path / name).read_text() for name in (NFC, NFD)] == [NFC, NFD]
    assert not find(tmp_path / f"{NFC} ").exists()
    assert find(tmp_path / ("x" * 300)) == tmp_path / ("x" * 300)


def test_a_folder_is_listed_once_however_many_of_its_files_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    listed = []
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or real(path))
    names = Names()
    assert not any(names.find(tmp_path / f"{number}.wav").exists() for number in range(50))
    assert listed == [tmp_path]


def test_litter_is_no_file_of_a_folder(tmp_path: Path) -> None:
    litter = ["._a.wav", ".DS_Store", "Thumbs.db", "desktop.ini", "~$list.xlsx"]
    litter += [f"{folder}/a.wav" for folder in ("__MACOSX", ".ipynb_checkpoints", "@eaDir")]
    for name in [*litter, "a.wav", "b/B.WAV", "b/list.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path, "*.wav")] == ["a.wav", "b/B.WAV"]
    assert not is_litter("a..wav")


def test_files_come_in_the_order_of_their_paths_and_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    for name in ("set/b.txt", "set/a/z.txt", "set/a.txt", "set/a/b/c.txt", "set/c d/x.txt", "other/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "other")
    found = list(files_below(tmp_path / "set"))
    assert found == sorted(path for path in (tmp_path / "set").rglob("*") if path.is_file())
    assert len(found) == 5
    assert list(files_below(found[0])) == []
