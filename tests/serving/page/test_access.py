"""The page with its transcripts for a keyboard, a screen reader, a telephone and a printer. Skipped without Chromium."""

from pathlib import Path

import pytest

from benchmarks.browser import AXE, NO_AXE


def answer(form):
    return {"text": "오늘 meeting이 있어" if "adapter" in form else "오늘 미팅이 있어", "language": "ko"}


@pytest.fixture
def transcribed(serve, open_tab, sentence, packed):
    """``transcribed(**options)``: the page after a press on Transcribe."""

    def start(**options):
        tab = open_tab(serve(answer), **options)
        tab.choose("audio-file", sentence)
        tab.choose("adapter-file", packed)
        tab.wait("!document.getElementById('adapter-remove').hidden && !document.getElementById('player').hidden")
        tab.transcribe()
        return tab

    return start


def test_whatever_the_keyboard_reaches_has_a_name(transcribed):
    tab = transcribed()
    assert tab.unnamed() == []
    labels = tab.texts("label.button")
    assert len(set(labels)) == len(labels) == 2  # two fields for files are told apart


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_sticks_out_and_the_transcripts_come_into_view(transcribed, width):
    tab = transcribed(width=width, height=700)
    assert tab.js("document.documentElement.scrollWidth <= innerWidth")
    assert tab.js("document.querySelector('#base .said').getBoundingClientRect().top < innerHeight")


def test_what_is_printed_are_the_transcripts(transcribed):
    tab = transcribed()
    tab.call("Emulation.setEmulatedMedia", media="print")
    assert tab.js("getComputedStyle(document.getElementById('ask')).display") == "none"
    assert tab.js("document.querySelector('#personal .said').getClientRects().length") > 0


@pytest.mark.skipif(AXE is None, reason=NO_AXE)
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing(transcribed, dark):
    assert transcribed(dark=dark, free=True).violations(Path(AXE)) == []
