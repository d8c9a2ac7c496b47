"""A reader sees the old file or the new one, never half of one."""

import errno
import os
import re
import stat
from pathlib import Path

import pytest

from fl.core.files import PRIVATE, PUBLIC, new_folder, write_atomically, write_together

ROOT = Path(__file__).parents[1]
MAY_WRITE = (  # by themselves
    *("fl/core/files.py", "fl/runs/results.py"),  # the functions, and appending to a file that they made
    *("fl/data/synthetic/population.py", "sim/study/network/command.py"),  # inside a folder that is for nobody else
    *("fl/bases/", "fl/tasks/images/base.py", "sim/pretrain/", "sim/cli/generate.py"),  # for everybody
    "clients/device/queue.py",  # an empty lock
    "fl/data/importers/archives.py",
)


@pytest.fixture
def failing(monkeypatch):
    """Let the n-th call of a function of ``os`` fail as a full disk does."""

    def arrange(name, nth=1):
        real, calls = getattr(os, name), []

        def call(*arguments, **named):
            calls.append(arguments)
            if len(calls) == nth:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **named)

        monkeypatch.setattr(os, name, call)

    return arrange


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_file_is_written_with_its_folders(tmp_path):
    write_atomically(tmp_path / "a" / "b" / "state.bin", b"\x00new\xff")
    assert contents(tmp_path / "a" / "b") == {"state.bin": b"\x00new\xff"}


def test_an_old_file_is_replaced_whole(tmp_path):
    path = tmp_path / "state.bin"
    write_atomically(path, b"a long old content")
    write_atomically(path, b"new")
    assert contents(tmp_path) == {"state.bin": b"new"}


@pytest.mark.parametrize("call", ["fsync", "replace", "fchmod"])
def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path, failing, call):
    path = tmp_path / "state.bin"
    write_atomically(path, b"old")
    failing(call)
    with pytest.raises(OSError, match="No space left") as error:
        write_atomically(path, b"new")
    assert error.value.errno == errno.ENOSPC
    assert contents(tmp_path) == {"state.bin": b"old"}


def test_a_disk_that_was_full_from_the_start_leaves_nothing(tmp_path, failing):
    failing("fsync")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "state.bin", b"new")
    assert contents(tmp_path) == {}


def test_an_interrupted_write_leaves_no_litter_either(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "state.bin", b"new")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_files_that_belong_together_are_replaced_together_or_not_at_all(tmp_path, failing, nth):
    old = {"a": b"old a", "b": b"old b", "c": b"old c"}
    write_together(tmp_path, old)
    failing("fsync", nth)
    with pytest.raises(OSError, match="No space left"):
        write_together(tmp_path, {"a": b"1", "b": b"2", "c": b"3"})
    assert contents(tmp_path) == old


def test_the_bytes_reach_the_disk_before_the_name_and_the_name_after(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace

    def traced_fsync(descriptor):
        order.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def traced_replace(*arguments):
        order.append("rename")
        replace(*arguments)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "replace", traced_replace)
    write_together(tmp_path, {"a": b"1", "b": b"2"})
    assert order == ["file", "file", "rename", "rename", "folder"]


@pytest.mark.parametrize(
    ("mode", "bits", "folder"),
    [({}, 0o600, 0o700), ({"mode": PRIVATE}, 0o600, 0o700), ({"mode": PUBLIC}, 0o644, 0o755)],
)
def test_files_and_folders_are_for_their_owner_alone_unless_they_are_meant_for_everybody(tmp_path, mode, bits, folder):
    write_atomically(tmp_path / "a" / "b" / "x", b"x", **mode)
    with new_folder(tmp_path / "c" / "d", **mode):
        pass
    found = {p.relative_to(tmp_path).as_posix(): stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    assert found == {"a": folder, "a/b": folder, "a/b/x": bits, "c": folder, "c/d": folder}


def test_nothing_is_written_past_these_functions():
    """What holds speech, texts, gates or tokens is private because nothing else makes files and folders."""
    writes = re.compile(r"\.mkdir\(|\.write_(text|bytes)\(|open\([^)\n]*[\"'][wxa]b?\+?[\"']|os\.makedirs")
    for package in ("fl", "clients", "strategies", "sim"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            found = writes.search(path.read_text(encoding="utf-8"))
            assert not found or name.startswith(MAY_WRITE), f"{name}: {found[0]}; use fl.core.files"
