"""A parser that crashes, runs wild or is taken over ends in its own process, and the next file is read."""

import json
import os
import signal

import pytest

from fl.core import apart
from fl.core.apart import Apart, Bounds
from fl.core.errors import AudioError, CorpusError


class Parser:
    """What the child runs."""

    def echo(self, *values):
        yield from values
        yield b"\x00bytes"

    def die(self, number):
        yield "before"
        os.kill(os.getpid(), number)

    def fill(self):
        yield len(bytearray(1 << 30))

    def fail(self):
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    def refuse(self):
        raise AudioError("row 3 holds no audio")
        yield

    def chatter(self):
        os.write(1, b"a library's own output")
        yield os.getpid()

    def speak(self, kind, text):
        os.write(0, apart._FRAME.pack(kind.encode(), len(text)) + text.encode())
        yield "after"


@pytest.fixture
def parser():
    with Apart(f"{__name__}:Parser", CorpusError, Bounds(memory_bytes=512 << 20, frame_bytes=1 << 10)) as child:
        yield child


def test_values_and_bytes_come_back(parser):
    assert list(parser.ask("a", "echo", 1, "고쳐", [2.5, None])) == [1, "고쳐", [2.5, None], b"\x00bytes"]


@pytest.mark.parametrize("number", [signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL, signal.SIGXCPU])
def test_a_parser_that_dies_is_an_error_that_names_the_file_and_the_next_file_is_read(parser, number):
    found = []
    with pytest.raises(CorpusError, match=rf"a\.arrow: .*{number.name}: the file is damaged or crafted"):
        found.extend(parser.ask("a.arrow", "die", number))
    assert list(parser.ask("b.arrow", "echo")) == [b"\x00bytes"]


def test_a_parser_that_takes_too_much_memory_is_an_error(parser):
    with pytest.raises(CorpusError, match=r"a\.flac: needs more than 0\.5 GiB of memory"):
        parser.one("a.flac", "fill")


def test_whatever_a_parser_raises_is_typed_and_an_error_of_ours_stays_what_it_is(parser):
    with pytest.raises(CorpusError, match=r"a\.arrow: is damaged or crafted \(UnicodeDecodeError"):
        parser.one("a.arrow", "fail")
    with pytest.raises(AudioError, match=r"^row 3 holds no audio$"):
        parser.one("a.arrow", "refuse")


def test_one_process_reads_many_files_and_what_is_left_half_read_is_not_taken_for_the_next_answer(parser):
    pid = parser.one("a", "chatter")
    assert parser.one("b", "chatter") == pid
    half = parser.ask("a", "echo", 1, 2)
    assert next(half) == 1
    half.close()
    assert list(parser.ask("a", "echo")) == [b"\x00bytes"]


def test_after_the_block_no_process_is_left():
    with Apart(f"{__name__}:Parser", CorpusError) as apart:
        pid = apart.one("a", "chatter")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_answer_that_is_no_answer_is_a_death(parser):
    with pytest.raises(CorpusError, match="a: the process that read it ended"):
        parser.one("a", "echo", json.dumps([0] * 1000))


@pytest.mark.parametrize(("kind", "text"), [("v", "{{{"), ("!", "7"), ("!", '["a"]')], ids=str)
def test_an_answer_that_cannot_be_read_is_a_death(parser, kind, text):
    with pytest.raises(CorpusError, match="a: the process that read it ended"):
        list(parser.ask("a", "speak", kind, text))
    assert list(parser.ask("b", "echo", 1)) == [1, b"\x00bytes"]
