"""Disks that are full, lie, lose and forget: of store, checkpoint, ledger and results nothing is ever wrong in silence."""

import ast
import contextlib
import errno
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from benchmarks.reliability import InjectionRow, store
from clients.store import DeviceStore
from fl.core import files
from fl.core.errors import IdiolectError, RunError, StoreError
from fl.metrics import Counts
from fl.privacy.accounting import ALL, RDP, Scheme
from fl.privacy.ledger import Budget, Ledger
from fl.runs.results import ResultsFile, make_row
from strategies.checkpoint import BEFORE, Checkpoint, checkpoint_path, load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[2]
BASE = "whisper:64x2+2:0123"
SHAPES = {"layer.gated_lora_gate_weight": (2, 3)}
STORED = ("clients/store.py", "strategies/checkpoint.py", "fl/privacy/ledger.py", "fl/runs/results.py")


class Kept:
    """The four durable things of a run below one folder; :meth:`write` brings them to a round, :meth:`read` says what is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = DeviceStore(folder / "devices", BASE)

    def ledger(self) -> Ledger:
        return Ledger(self.folder / "ledger.jsonl", Scheme(100, 100, ALL, accountant=RDP), Budget(10.0, 1e-5))

    def steps(self, number: int) -> dict[str, Callable[[], object]]:
        value = number / 3

        def rows() -> None:
            results = ResultsFile(self.folder)
            results.add(
                make_row("global", number, "validation", "ann", {"wer": Counts(number, 2, 3, 10)}, {}, new_person=False)
            )
            results.flush()

        def checkpoint() -> None:
            arrays = ArrayRecord({"A": Array(np.full(4, value, np.float32))})
            save_checkpoint(
                self.folder / "checkpoints", "global", Checkpoint(number, arrays, {"m": np.full(2, value)}), BASE
            )

        return {
            "ledger": lambda: self.ledger().charge(number, 2.0 + number, "global"),
            "store": lambda: self.store.save("personalized", "ann", number, {n: torch.full(s, value) for n, s in SHAPES.items()}),
            "results": rows,
            "checkpoint": checkpoint,
        }  # fmt: skip

    def write(self, number: int) -> None:
        for step in self.steps(number).values():
            step()

    def readers(self) -> dict[str, Callable[[], Any]]:
        def checkpoint() -> Any:
            found = load_checkpoint(self.folder / "checkpoints", "global", BASE)
            return found and (found.round, found.arrays["A"].numpy().tolist(), found.state["m"].tolist())

        def state() -> Any:
            found = self.store.load("personalized", "ann", SHAPES, before=99)
            return found and {name: tensor.tolist() for name, tensor in found.items()}

        return {
            "ledger": lambda: self.ledger().charges,
            "store": state,
            "results": lambda: ResultsFile(self.folder).rows(),
            "checkpoint": checkpoint,
        }

    def read(self) -> dict[str, Any]:
        return {name: reader() for name, reader in self.readers().items()}


tried = 0  # reads and writes with a fault


def attempt(call: Callable[[], Any]) -> tuple[Any, str]:
    """What a call returns, and no text; or the text of its typed error. Any other error passes."""
    global tried
    tried += 1
    try:
        return call(), ""
    except IdiolectError as error:
        return None, str(error)


@pytest.fixture(scope="module", autouse=True)
def _row(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep the row of ``make faults`` for docs/reliability.md."""
    yield
    if "IDIOLECT_FAULTS_ROW" in os.environ:
        lost = request.session.testsfailed
        what = "full, failing and foreign disks, torn writes, flipped bits and cut files below store, checkpoint, ledger and results"
        detail = (
            "Reads and writes with a fault. Each gave what was stored, what was stored before, or a typed error that names the file; "
            "another number or error counts as lost"
        )
        store(InjectionRow("disks", what, tried, tried - lost, lost, tuple(range(4)), "make faults", detail))


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    made = Kept(tmp_path / "run")
    made.write(1)
    made.write(2)
    return made


class Crash(BaseException):
    """The end of the process."""


class FullDisk:
    """``os`` for the seam: its n-th write, sync or rename finds the disk full; ``torn`` writes half of what it is given first."""

    def __init__(self, nth: int, code: int = errno.ENOSPC) -> None:
        self.left, self.code = nth, code

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in ("write", "fsync", "replace", "open", "fdopen", "fchmod"):
            return real

        def call(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                if name == "write":
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                raise OSError(self.code, os.strerror(self.code))
            return real(*arguments, **named)

        return call


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("part", ["ledger", "store", "results", "checkpoint"])
def test_a_disk_that_fails_at_any_write_leaves_what_was_there_and_says_so(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, part: str, code: int
) -> None:
    whole = kept.readers()[part]()
    for nth in range(1, 100):
        with monkeypatch.context() as patch:
            patch.setattr(files, "os", faulty := FullDisk(nth, code))
            _, said = attempt(kept.steps(3)[part])
            if said:
                assert os.strerror(code) in said
                assert any(remedy in said for remedy in ("free some space", "intact", "nothing was charged"))
            if faulty.left > 0:
                break
        found = kept.readers()[part]()
        litter = [path for path in kept.folder.rglob(".*") if path.is_file()]
        assert not litter
        if found == whole:
            continue  # nothing of round 3 is there
        expected = Kept(kept.folder.parent / f"other-{part}-{code}-{nth}")
        for number in (1, 2, 3):
            expected.write(number)
        assert found == expected.readers()[part]()
        shutil.rmtree(kept.folder)
        kept.write(1)
        kept.write(2)
    else:
        pytest.fail("no end of writes")
    assert nth >= 3


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="a disk of its own needs root")
def test_a_real_disk_that_fills_up_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        kept = Kept(disk)
        kept.write(1)
        (disk / "ballast").write_bytes(b"x" * 2**17)
        last, failed = 1, 0
        for number in range(2, 500):
            for name, step in kept.steps(number).items():
                before = kept.readers()[name]()
                said = attempt(step)[1] if name != "ledger" else ""  # its budget ends before the disk
                if said:
                    failed += 1
                    assert "No space left" in said
                    assert kept.readers()[name]() == before
            last = number
            if failed > 8:
                break
            with contextlib.suppress(OSError), (disk / "ballast").open("ab", buffering=0) as ballast:
                ballast.write(b"x" * 3_000)
        assert failed > 8
        (disk / "ballast").unlink()
        for name, step in kept.steps(last + 1).items():
            if name != "ledger":
                step()
        assert kept.read()["checkpoint"][0] == last + 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def everything(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock")


@pytest.mark.parametrize("seed", range(4))
def test_no_flipped_bit_changes_a_number_in_silence(kept: Kept, seed: int) -> None:
    generator, whole, refused = random.Random(seed), kept.read(), 0
    for path in everything(kept.folder):
        sound = path.read_bytes()
        for place in generator.sample(range(len(sound)), min(len(sound), 40)):
            path.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << generator.randrange(8)]) + sound[place + 1 :])
            for name, reader in kept.readers().items():
                found, said = attempt(reader)
                if said:
                    assert str(path) in said or path.stem in said
                    refused += 1
                else:  # the file was not read, or its last line lost its end as if a crash had torn it
                    assert found == whole[name] or (name in ("ledger", "results") and found == whole[name][:-1])
        path.write_bytes(sound)
    assert refused > 100


def test_a_file_that_is_cut_anywhere_is_refused_or_lacks_its_last_line(kept: Kept) -> None:
    """What a crash leaves that comes between a rename and the disk's own confirmation."""
    whole = kept.read()
    for path in everything(kept.folder):
        sound = path.read_bytes()
        for length in {*range(0, len(sound), 17), len(sound) - 1}:
            for filling in (b"", bytes(len(sound) - length)):
                path.write_bytes(sound[:length] + filling)
                for name, reader in kept.readers().items():
                    found, said = attempt(reader)
                    assert (
                        said
                        or found == whole[name]
                        or (name in ("ledger", "results") and found == whole[name][: len(found)])
                    )
        path.write_bytes(sound)


def test_the_round_before_a_damaged_one_is_there(kept: Kept) -> None:
    kept.write(3)
    newest = checkpoint_path(kept.folder / "checkpoints", "global")
    state = max((kept.folder / "devices").rglob("state-*"))
    for path in (newest, state):
        data = bytearray(path.read_bytes())
        data[-2] ^= 4
        path.write_bytes(data)
    with pytest.raises(RunError, match=r"damaged.*remove it to go on from the round before"):
        kept.readers()["checkpoint"]()
    with pytest.raises(StoreError, match=r"damaged.*remove the file to go on from the state before"):
        kept.readers()["store"]()
    newest.unlink()
    state.unlink()
    two = np.full(4, 2 / 3, np.float32).tolist()
    assert kept.readers()["checkpoint"]() == (2, two, [2 / 3, 2 / 3])
    assert kept.readers()["store"]()["layer.gated_lora_gate_weight"][0][0] == two[0]
    kept.steps(3)["checkpoint"]()
    assert kept.readers()["checkpoint"]()[0] == 3
    assert len(list((kept.folder / "checkpoints").rglob("*.state-*"))) == 2


@pytest.mark.parametrize("nth", range(1, 12))
def test_a_crash_within_a_checkpoint_leaves_it_or_the_one_before(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    calls = iter(range(1, 100))

    def dying(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: Any) -> object:
            if next(calls) >= nth:
                raise Crash
            return real(*arguments)

        return call

    with monkeypatch.context() as patch:
        for name in ("replace", "fsync", "unlink"):
            patch.setattr(os, name, dying(getattr(os, name)))
        with contextlib.suppress(Crash):
            kept.steps(3)["checkpoint"]()
    found = kept.readers()["checkpoint"]()
    assert found[0] in (2, 3)
    assert found[2] == [found[0] / 3] * 2


def test_rows_and_charges_that_a_checkpoint_stands_on_are_missed(tmp_path: Path) -> None:
    from strategies.loop import RoundLoop

    kept = Kept(tmp_path)
    kept.write(1)
    loop = RoundLoop(None, tmp_path / "checkpoints", BASE, ResultsFile(tmp_path), ledger=kept.ledger())  # type: ignore[arg-type]
    found = Checkpoint(1, ArrayRecord(), {}, {path.name: count for path, count in loop._stored("global").items()})
    loop._require_stored("global", found)
    (tmp_path / "ledger.jsonl").rename(tmp_path / "gone")
    with pytest.raises(RunError, match=r"ledger.jsonl has 0 entries of arm 'global' and had 1 .* put back"):
        loop._require_stored("global", found)
    (tmp_path / "gone").rename(tmp_path / "ledger.jsonl")
    (tmp_path / "results.jsonl").unlink()
    loop.results = ResultsFile(tmp_path)
    with pytest.raises(RunError, match=r"results.jsonl has 0 entries of arm 'global' and had 1 .* put back"):
        loop._require_stored("global", found)


READERS = """
import os, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("faults", Path(sys.argv[2]) / "tests/faults/test_store_faults.py")
module = module_from_spec(spec); spec.loader.exec_module(module)
kept = module.Kept(Path(sys.argv[1]))
os.setgid(65534); os.setuid(65534)
for name, reader in [*kept.readers().items(), *((f"write {n}", s) for n, s in kept.steps(3).items())]:
    try:
        reader()
        print(name, "NOTHING WAS REFUSED")
    except module.IdiolectError as error:
        print(name, "TYPED", error)
    except BaseException as error:
        print(name, type(error).__name__, error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="another owner needs root")
def test_files_of_another_owner_are_refused_with_what_to_do_and_not_taken_for_damaged(kept: Kept) -> None:
    for folder in (kept.folder, *kept.folder.parents):
        if folder.stat().st_uid == 0 and folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    run = subprocess.run(
        [os.sys.executable, "-c", READERS, str(kept.folder), str(ROOT)], capture_output=True, text=True, check=False
    )
    lines = run.stdout.splitlines()
    assert len(lines) == 8, run.stderr
    for line in lines:
        assert " TYPED " in line
        assert "damaged" not in line
        assert "ermission denied" in line


def test_a_vanished_folder_starts_afresh_only_where_nothing_stands_on_it(kept: Kept) -> None:
    shutil.rmtree(kept.folder / "checkpoints")
    assert kept.readers()["checkpoint"]() is None
    kept.steps(1)["checkpoint"]()
    assert kept.readers()["checkpoint"]()[0] == 1
    assert not (kept.folder / "checkpoints" / BEFORE).exists()


@pytest.mark.parametrize("module", STORED)
def test_durable_files_are_written_through_one_seam(module: str) -> None:
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}
    assert names & {"write_atomically", "append_durably", "write_whole"}
    assert not names & {"open", "write_text", "write_bytes", "fsync", "fdopen", "rename", "save_file", "truncate"}
