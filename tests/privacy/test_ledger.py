"""A round is paid before it runs, what was paid is never forgotten, and a spent budget stops the run."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from filelock import FileLock

from fl.privacy import ledger as ledger_module
from fl.privacy.accounting import ALL, PLD, RDP, Scheme, epsilon
from fl.privacy.dp import PrivacyError
from fl.privacy.ledger import Budget, BudgetError, Charge, Ledger

SCHEME = Scheme(100, 100, ALL, accountant=RDP)
BUDGET = Budget(10.0, 1e-5)
SETTINGS = {"clipping": "flat", "norm": 0.5}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "privacy.jsonl"


def open_ledger(path: Path, budget: Budget = BUDGET) -> Ledger:
    return Ledger(path, SCHEME, budget, SETTINGS)


def test_what_was_paid_survives_a_restart(path):
    ledger = open_ledger(path)
    assert ledger.spent() == 0.0
    paid = [ledger.charge(1, 1.5), ledger.charge(2, 1.5), ledger.charge(3, 1.25)]
    again = open_ledger(path)
    assert again.charges == [Charge(1, 1.5), Charge(2, 1.5), Charge(3, 1.25)]
    assert again.rounds() == {1.5: 2, 1.25: 1}
    assert paid == sorted(paid)
    assert again.spent() == paid[-1] == epsilon(SCHEME, {1.5: 2, 1.25: 1}, 1e-5)


def test_a_spent_budget_refuses_the_next_round_and_writes_nothing(path):
    ledger = open_ledger(path)
    fits = ledger.affordable(1.5)
    assert fits > 2
    for round_index in range(fits):
        assert ledger.charge(round_index, 1.5) <= BUDGET.epsilon
    before = path.read_bytes()
    with pytest.raises(
        BudgetError, match=rf"round {fits} would bring epsilon to .* budget is 10 \({fits} rounds are paid\)"
    ):
        open_ledger(path).charge(fits, 1.5)
    assert path.read_bytes() == before
    assert ledger.affordable(1.5) == 0
    assert ledger.affordable(100.0) > 0  # a quieter round still fits
    assert epsilon(SCHEME, {1.5: fits + 1}, 1e-5) > 10.0 >= ledger.spent()


def test_a_round_without_noise_never_fits(path):
    with pytest.raises(BudgetError, match="epsilon to inf"):
        open_ledger(path).charge(1, 0.0)
    assert not path.exists()


def test_a_round_that_runs_again_after_a_crash_is_paid_again(path):
    open_ledger(path).charge(1, 2.0)
    once = open_ledger(path).spent()
    assert open_ledger(path).charge(1, 2.0) > once


def test_lines_are_only_ever_added(path):
    ledger = open_ledger(path)
    seen = b""
    for round_index in range(3):
        ledger.charge(round_index, 2.0)
        now = path.read_bytes()
        assert now.startswith(seen)
        assert now.count(b"\n") == round_index + 2
        seen = now


def test_a_line_that_a_crash_tore_was_never_paid(path):
    ledger = open_ledger(path)
    ledger.charge(1, 2.0)
    whole = path.read_bytes()
    ledger.charge(2, 2.0)
    path.write_bytes(path.read_bytes()[:-7])
    again = open_ledger(path)
    assert again.charges == [Charge(1, 2.0)]
    again.charge(2, 2.0)
    assert path.read_bytes().startswith(whole)
    assert open_ledger(path).charges == [Charge(1, 2.0), Charge(2, 2.0)]


def test_a_full_disk_charges_nothing(path, monkeypatch):
    ledger = open_ledger(path)
    ledger.charge(1, 2.0)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PrivacyError, match="nothing was charged"):
        ledger.charge(2, 2.0)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert open_ledger(path).charges == [Charge(1, 2.0)]


@pytest.mark.parametrize(
    "other",
    [
        lambda path: Ledger(path, Scheme(101, 101, ALL, accountant=RDP), BUDGET, SETTINGS),
        lambda path: Ledger(path, Scheme(100, 100, ALL, accountant=PLD), BUDGET, SETTINGS),
        lambda path: Ledger(path, Scheme(100, 10, accountant=RDP), BUDGET, SETTINGS),
        lambda path: Ledger(path, SCHEME, Budget(11.0, 1e-5), SETTINGS),
        lambda path: Ledger(path, SCHEME, Budget(10.0, 1e-6), SETTINGS),
        lambda path: Ledger(path, SCHEME, BUDGET, {**SETTINGS, "norm": 0.6}),
    ],
    ids=["population", "accountant", "sampling", "epsilon", "delta", "clipping norm"],
)
def test_a_guarantee_cannot_change_half_way(path, other):
    open_ledger(path).charge(1, 2.0)
    with pytest.raises(PrivacyError, match="begun with other settings"):
        other(path)


def change_noise(lines: list[bytes]) -> list[bytes]:
    entry = json.loads(lines[1])
    return [
        lines[0],
        json.dumps({**entry, "noise_multiplier": 9.0}, sort_keys=True, separators=(",", ":")).encode() + b"\n",
        *lines[2:],
    ]


@pytest.mark.parametrize(
    "damage",
    [
        change_noise,
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: [lines[0], lines[2], lines[1], lines[3]],
        lambda lines: [*lines[:2], b"{}\n", *lines[2:]],
        lambda lines: [*lines[:2], b"\xff\xfe\n", *lines[2:]],
        lambda lines: [*lines[:2], b"[1]\n"],
        lambda lines: lines[1:],
    ],
    ids=["noise changed", "a line gone", "lines swapped", "empty entry", "no text", "no entry", "no settings"],
)
def test_a_ledger_that_was_changed_is_found(path, damage):
    ledger = open_ledger(path)
    for round_index in (1, 2, 3):
        ledger.charge(round_index, 2.0)
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(PrivacyError, match=r"was changed|is damaged"):
        open_ledger(path)
    with pytest.raises(PrivacyError):
        ledger.charge(4, 2.0)


def test_a_file_too_large_to_be_a_ledger_is_not_read(path, monkeypatch):
    open_ledger(path).charge(1, 2.0)
    monkeypatch.setattr(ledger_module, "MAX_LEDGER_BYTES", 10)
    with pytest.raises(PrivacyError, match="not a privacy ledger"):
        open_ledger(path)


def test_two_processes_cannot_spend_at_once(path, monkeypatch):
    ledger = open_ledger(path)
    monkeypatch.setattr(ledger_module, "LOCK_SECONDS", 0.0)
    with FileLock(f"{path}.lock"), pytest.raises(PrivacyError, match="in use by another process"):
        ledger.charge(1, 2.0)
    ledger.charge(1, 2.0)


def test_only_the_owner_can_read_it(path):
    open_ledger(path).charge(1, 2.0)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("eps", "delta"), [(0.0, 1e-5), (-1.0, 1e-5), (float("inf"), 1e-5), (1.0, 0.0), (1.0, 1.0)])
def test_budgets_without_meaning_are_refused(eps, delta):
    with pytest.raises(PrivacyError):
        Budget(eps, delta)
