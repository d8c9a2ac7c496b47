"""What the page shows of two transcripts: words by language, differences, times; readable at any width, light and dark.

In a real browser; skipped without Chromium (Debian: chromium; fonts-nanum for Hangul).
"""

import json
import re
import threading
import unicodedata

import numpy as np
import pytest
from fastapi.responses import JSONResponse, Response, StreamingResponse

STAGES = {"queue": 0.002, "features": 0.013, "encode": 0.31, "decode": 1.25}
RECEIVED = {"receive": 0.04, "adapter": 0.003, "audio": 0.005, "total": 1.7}


def answer(text, words, **more):
    """verbose_json as the server gives it. ``words`` are ``word/language`` with spaces between."""
    listed = []
    for i, (word, _, language) in enumerate(word.partition("/") for word in words.split()):
        listed.append({"word": word, "start": 0.1 * i, "end": 0.1 * i + 0.1, "language": language or None})
    shared = {"task": "transcribe", "language": "korean", "duration": 1.0, "segments": [], "stages": STAGES}
    return {**shared, "text": text, "words": listed, **more}


BASE = answer(
    "오늘 미팅이 몇 시에 있어? by tomorrow 2",
    "오늘/ko 미팅이/ko 몇/ko 시에/ko 있어/ko by/en tomorrow/en 2",
)
PERSONAL = {  # with stretches of one language, which tell a particle from the word before it
    **answer(
        "오늘 meeting이 몇 시에 있어 by tomorrow 2",
        "오늘/ko meeting이/en 몇/ko 시에/ko 있어/ko by/en tomorrow/en 2",
        stages={**RECEIVED, **STAGES},
    ),
    "spans": [
        {"text": "오늘", "language": "ko", "start": 0, "end": 2},
        {"text": "meeting", "language": "en", "start": 3, "end": 10},
        {"text": "이 몇 시에 있어", "language": "ko", "start": 10, "end": 19},
        {"text": "by tomorrow", "language": "en", "start": 20, "end": 31},
        {"text": "2", "language": None, "start": 32, "end": 33},
    ],
}


def events(*items):
    text = "".join(f"data: {json.dumps(item, ensure_ascii=False)}\r\n\r\n" for item in items)
    return Response(text, media_type="text/event-stream")


def both(form):
    return JSONResponse(PERSONAL if "adapter" in form else BASE)


@pytest.fixture
def stub(serve):
    return serve(both)


def shown(tab, sentence, packed=None):
    """The page after a transcript."""
    tab.choose("audio-file", sentence)
    tab.wait("document.getElementById('audio-facts').innerText.includes('1.5 s')")
    if packed:
        tab.choose("adapter-file", packed)
        tab.wait("!document.getElementById('adapter-remove').hidden")
    tab.transcribe()
    return tab


def test_both_transcripts_stand_side_by_side_with_the_language_of_each_word(open_tab, stub, sentence, packed):
    tab = shown(open_tab(stub), sentence, packed)
    assert " ".join(tab.text("#base .said").split()) == BASE["text"]
    assert " ".join(tab.text("#personal .said").split()) == PERSONAL["text"]
    facts = "[e.innerText, e.lang, e.title, getComputedStyle(e).textDecorationStyle]"
    words = f"[...document.querySelectorAll('#personal .word')].map((e) => {facts})"
    assert tab.js(words)[:4] == [
        ["오늘", "ko", "Korean", "solid"],
        ["meeting", "en", "English", "dashed"],
        ["이", "ko", "Korean", "solid"],
        ["몇", "ko", "Korean", "solid"],
    ]
    assert tab.js(words)[-1][:3] == ["2", "", "no language"]
    colours = (
        "['ko', 'en', 'other'].map((name) => getComputedStyle(document.querySelector('#base .word.' + name)).color)"
    )
    assert len(set(tab.js(colours))) == 3
    assert tab.text("#base .counts") == "5 Korean words · 2 English words · 1 other word · 1 switch"
    assert tab.texts(".legend li")[:3] == ["Korean", "English", "other"]
    boxes = "['base', 'personal'].map((id) => document.getElementById(id).getBoundingClientRect())"
    left, right = tab.js(f"{boxes}.map((box) => ({{top: box.top, left: box.left, right: box.right}}))")
    assert left["top"] == right["top"]
    assert left["right"] < right["left"]
    assert tab.complaints == []


def test_only_words_that_differ_are_marked_and_case_and_punctuation_do_not_count(open_tab, stub, sentence, packed):
    tab = shown(open_tab(stub), sentence, packed)
    assert tab.texts("#base .differs") == ["미팅이"]
    assert tab.texts("#personal .differs") == ["meeting이"]
    assert tab.texts(".changes td") == ["미팅이", "meeting이"]
    assert tab.text("#status") == "Transcribed; 1 difference."


@pytest.mark.parametrize(
    ("base", "personal", "changes"),
    [
        ("버그는 내가 고쳤어", "그 bug는 내가 다 고쳤어", [["버그는", "그 bug는"], ["nothing", "다"]]),
        ("after work 에 가", "에 가", [["after work", "nothing"]]),
        ("", "안녕 hello", [["nothing", "안녕 hello"]]),
        ("같은 말", "같은 말", []),
        ("커피", unicodedata.normalize("NFD", "커피"), []),
    ],
)
def test_places_where_they_disagree_are_listed(open_tab, serve, sentence, packed, base, personal, changes):
    stub = serve(lambda form: JSONResponse(answer(personal if "adapter" in form else base, "")))
    tab = open_tab(stub)
    tab.choose("audio-file", sentence)
    tab.choose("adapter-file", packed)
    tab.wait("document.getElementById('audio-facts').innerText.includes('1.5 s')")
    tab.transcribe("!document.querySelector('#differences').hidden")
    cells = tab.texts(".changes td")
    assert [cells[i : i + 2] for i in range(0, len(cells), 2)] == changes


def test_without_words_from_the_server_the_script_tells_the_language(open_tab, serve, sentence):
    tab = shown(open_tab(serve(lambda form: JSONResponse({"text": "내일 meeting이 3시"}))), sentence)
    pieces = tab.js("[...document.querySelectorAll('#base .word')].map((e) => [e.innerText, e.lang])")
    assert pieces == [["내일", "ko"], ["meeting", "en"], ["이", "ko"], ["3시", "ko"]]
    assert "Choose your adapter" in tab.text("#personal")
    assert tab.js("document.getElementById('differences').hidden")


def test_a_transcript_is_shown_as_text_whatever_it_holds(open_tab, serve, sentence):
    evil = "<img src=x onerror=document.title='owned'> <script>1</script>"
    tab = shown(open_tab(serve(lambda form: JSONResponse({"text": evil}))), sentence)
    assert " ".join(tab.text("#base .said").split()) == evil
    assert tab.js("document.querySelectorAll('#base img, #base script').length") == 0
    assert tab.complaints == []


def test_the_time_of_each_stage_and_what_the_browser_measured_are_shown(open_tab, stub, sentence, packed):
    tab = shown(open_tab(stub), sentence, packed)
    rows = tab.js(
        "[...document.querySelectorAll('.times tr')].map((row) => [...row.children].map((cell) => cell.innerText.trim()))"
    )
    table = {row[0]: [cell.replace("\u202f", " ") for cell in row[1:]] for row in rows}
    assert list(table) == [
        "Stage",
        "Upload",
        "Checks",
        "Queue",
        "Features",
        "Encode",
        "Decode",
        "Network and rest",
        "Total",
    ]
    assert table["Stage"] == ["Base", "Personalized"]
    assert table["Upload"] == ["–", "40 ms"]
    assert table["Checks"] == ["–", "8 ms"]
    assert table["Queue"] == ["2 ms", "2 ms"]
    assert table["Encode"] == ["310 ms", "310 ms"]
    assert table["Decode"] == ["1.25 s", "1.25 s"]
    assert all(cell.endswith((" s", " ms")) for cell in table["Total"] + table["Network and rest"])


def test_a_stream_ends_in_the_same_view_and_tells_when_the_first_words_came(open_tab, serve, sentence, packed):
    deltas = [{"type": "transcript.text.delta", "delta": part} for part in ("오늘 ", "meeting이 ", "몇 시에")]
    done = {**PERSONAL, "type": "transcript.text.done"}
    stub = serve(lambda form: events(*deltas, done) if form.get("stream") == "true" else JSONResponse(BASE))
    tab = shown(open_tab(stub), sentence, packed)
    assert " ".join(tab.text("#personal .said").split()) == PERSONAL["text"]
    assert tab.texts("#personal .differs") == ["meeting이"]
    rows = tab.texts(".times tr")
    assert rows[-1].startswith("First words after")
    assert rows[-1].split("\t")[1] == "–"
    assert stub.base.get("stream") is None


def test_words_are_shown_while_the_server_is_still_decoding(open_tab, serve, sentence, packed):
    seen = threading.Event()

    def slow():
        yield b'data: {"type": "transcript.text.delta", "delta": "half a sen'
        yield 'tence 오늘"}\n\n'.encode()
        seen.wait(60)
        yield f"data: {json.dumps({**PERSONAL, 'type': 'transcript.text.done'})}\n\n".encode()

    def reply(form):
        return StreamingResponse(slow(), media_type="text/event-stream") if "stream" in form else JSONResponse(BASE)

    tab = open_tab(serve(reply))
    tab.choose("audio-file", sentence)
    tab.choose("adapter-file", packed)
    tab.wait("document.getElementById('audio-facts').innerText.includes('1.5 s')")
    tab.transcribe("document.querySelector('#personal .partial')")
    assert tab.text("#personal .partial") == "half a sentence 오늘"
    assert tab.js("document.getElementById('personal').ariaBusy") == "true"  # read out when it is whole
    seen.set()
    tab.wait("document.querySelector('#personal .word')")
    assert tab.js("document.getElementById('personal').ariaBusy") == "false"


@pytest.mark.parametrize("width", [1280, 768, 390, 320])
def test_nothing_sticks_out_of_a_window(open_tab, serve, sentence, packed, width):
    long = answer("받침이 donaudampfschifffahrtsgesellschaftskapitaenswitwe " + "가나다라마바사아자차카타파하" * 4, "")
    stub = serve(lambda form: JSONResponse(BASE if "adapter" in form else long))
    tab = shown(open_tab(stub, width=width), sentence, packed)
    tab.js("document.getElementById('ask').requestSubmit()")
    assert tab.js("innerWidth") == width
    assert tab.js("document.documentElement.scrollWidth") <= width
    outside = "[...document.querySelectorAll('h1, h2, button, .button, .word, td, th, .facts, .panel, audio')]"
    outside += ".filter((e) => e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 0.5)"
    assert tab.js(f"{outside}.map((e) => e.outerHTML)") == []
    if width < 500:  # large enough for a finger
        heights = (
            "[...document.querySelectorAll('button, .button, input.secret')].filter((e) => e.getClientRects().length)"
        )
        assert min(tab.js(f"{heights}.map((e) => e.getBoundingClientRect().height)")) >= 40


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(open_tab, stub, sentence, packed, scheme):
    tab = open_tab(stub)
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    shown(tab, sentence, packed)
    read = """(selector) => { const e = document.querySelector(selector); let box = e;
        while (getComputedStyle(box).backgroundColor === 'rgba(0, 0, 0, 0)') box = box.parentElement;
        return [getComputedStyle(e).color, getComputedStyle(box).backgroundColor]; }"""
    for selector in (
        ".stand",
        ".facts",
        ".word.ko",
        ".word.en",
        ".differs .word",
        ".counts",
        "#transcribe",
        ".times td",
        ".kicker",
    ):
        assert contrast(*tab.js(f"({read})({json.dumps(selector)})")) >= 4.5, selector


def contrast(*colours):
    """The contrast ratio of WCAG 2.2 between two colours as a browser writes them."""
    luminance = []
    for colour in colours:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        luminance.append(np.dot(linear, [0.2126, 0.7152, 0.0722]) + 0.05)
    return max(luminance) / min(luminance)
