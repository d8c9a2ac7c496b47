"""What a command shows while it works: the time left is that of all parts, and a step is a line where there is no terminal."""

import io
from dataclasses import dataclass

from fl.runs.progress import RunProgress, as_one
from sim.cli.options import HarmlessConsole
from sim.cli.progress import Lines, StagedProgress, duration, progress_on, started


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def announced(clock: Clock, kind: type[RunProgress] = RunProgress) -> RunProgress:
    """Two arms of four rounds and a test, of which nothing was done."""
    run = kind(clock)
    for name, steps in (("local", 4), ("global", 4), ("test", 1)):
        run(name, 0, steps)
    run("local", 0, 4)
    return run


def test_the_time_left_is_that_of_all_parts_at_the_pace_so_far() -> None:
    clock = Clock()
    run = announced(clock)
    assert run.seconds_left() is None
    clock.now = 10
    run("local", 1, 4)
    assert run.seconds_left() == 3 * 10 + 4 * 10 + 10
    clock.now = 14  # within the second round
    assert run.seconds_left() == 80 - 4
    clock.now = 40
    for done in (2, 3, 4):
        run("local", done, 4)
    run("global", 0, 4)
    clock.now = 45
    run("global", 1, 4)
    assert run.seconds_left() == 3 * 5 + 45 / 5  # the test at the mean pace of five rounds in 45 s


def test_a_round_that_hangs_is_not_counted_twice() -> None:
    clock = Clock()
    run = announced(clock)
    clock.now = 10
    run("local", 1, 4)
    clock.now = 1000
    assert run.seconds_left() == 70  # the round that should be over by now is not subtracted more than once


def test_rounds_of_an_earlier_process_are_no_pace() -> None:
    clock = Clock()
    run = RunProgress(clock)
    whole = as_one("rank 4", run)
    whole("personalized", 0, 4)
    whole("global", 8, 12)  # as the parts are told
    clock.now = 6
    whole("global", 9, 12)
    assert run.seconds_left() == (16 - 9) * 6


def test_parts_of_a_run_are_told_as_one() -> None:
    told: list[tuple[str, int, int]] = []
    whole = as_one("rank 4", lambda *what: told.append(what))
    for step in (("local", 0, 2), ("global", 0, 2), ("local", 1, 2), ("local", 2, 2)):
        whole(*step)
    assert told == [("rank 4", 0, 2), ("rank 4", 0, 4), ("rank 4", 1, 4), ("rank 4", 2, 4)]


def test_making_speech_is_no_pace_for_rounds() -> None:
    clock = Clock()
    stages = StagedProgress(clock)
    stages("speech", 0, 100)
    clock.now = 1
    stages("speech", 100, 100)
    stages("local", 0, 4)
    assert stages.left == ""
    clock.now = 61
    stages("local", 1, 4)
    assert stages.left == "about 3 min left"


def test_without_a_terminal_each_round_is_a_line_with_the_time_left() -> None:
    clock, lines = Clock(), list[str]()
    show = Lines(lines.append, clock)
    for name in ("local", "global"):
        show(name, 0, 2)
    for name in ("local", "global"):
        for done in (0, 1, 2):
            show(name, done, 2)
            clock.now += 60
    assert lines == [
        "local: 1 of 2, 1 min, about 3 min left",
        "local: 2 of 2, 2 min, about 2 min left",
        "global: 1 of 2, 4 min, about 1 min left",
        "global: 2 of 2, 5 min",
    ]


def test_thousands_of_steps_are_ten_lines() -> None:
    clock, lines = Clock(), list[str]()
    show = Lines(lines.append, clock)
    for done in range(5001):
        show("speech", done, 5000)
        clock.now += 1
    assert len(lines) <= 11
    assert lines[-1].startswith("speech: 5000 of 5000")


def test_what_takes_a_while_to_start_says_when_it_has() -> None:
    told: list[tuple[str, int, int]] = []
    show = started(lambda *what: told.append(what))
    show("local", 0, 2)
    show("local", 1, 2)
    assert told == [("loading the base", 0, 1), ("loading the base", 1, 1), ("local", 0, 2), ("local", 1, 2)]


def test_a_terminal_shows_bars_of_what_has_begun_and_one_for_all() -> None:
    out = io.StringIO()
    console = HarmlessConsole(file=out, force_terminal=True, width=100, color_system=None)
    with progress_on(console) as show:
        for name in ("local", "global"):
            show(name, 0, 2)
        show("local", 1, 2)
    last = out.getvalue().rsplit("local", 1)[1]
    assert "1/2" in last
    assert "1/4" in last.partition("in all")[2]
    assert "global" not in last


def test_json_is_all_that_a_script_sees() -> None:
    out = io.StringIO()
    with progress_on(HarmlessConsole(file=out), quiet=True) as show:
        show("local", 0, 1)
        show("local", 1, 1)
    assert not out.getvalue()


def test_durations_are_as_exact_as_an_estimate() -> None:
    assert [duration(seconds) for seconds in (0.4, 59, 90, 3599, 3600, 5430)] == [
        "0 s",
        "59 s",
        "2 min",
        "60 min",
        "1 h 00 min",
        "1 h 30 min",
    ]
