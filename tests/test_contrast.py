"""The colours of the report and of the web page: text has a contrast of 4.5:1 and marks 3:1 (WCAG 2.2, 1.4.3 and 1.4.11)."""

import re
from itertools import chain, product
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHEETS = {"report": "sim/report/templates/page.css", "page": "fl/serving/page/page.css"}
ARMS = ("zero-shot", "local", "global", "global-finetune", "personalized", "neutral", "centralized")
GROUNDS = ("paper", "card")
INK = ("ink", "soft", "accent")
TEXT = {  # (text, ground); an arm's name in a chart has the arm's colour
    "report": [
        *product((*INK, *ARMS, "sub-ink", "ins-ink"), GROUNDS),
        *(("sub-ink", "sub"), ("ins-ink", "ins"), ("spell-ink", "spell")),
    ],
    "page": [
        *product((*INK, "bad", "ko", "en", "other"), GROUNDS),
        *product(("ko", "en", "other"), ("differs",)),
        *(("on-accent", "accent"), ("bad", "bad-paper")),
    ],
}
MARKS = {"report": [*product(ARMS, GROUNDS)], "page": [*product(("soft", "frame"), GROUNDS), ("frame", "differs")]}


def schemes(sheet):
    """The variables in light and in dark."""
    light, dark = re.findall(r":root \{(.*?)\n\s*\}", (ROOT / SHEETS[sheet]).read_text(encoding="utf-8"), re.DOTALL)[:2]
    found = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})\b", block)) for block in (light, dark)]
    return {"light": found[0], "dark": found[0] | found[1]}


def luminance(colour):
    """Relative luminance of ``#rrggbb``."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("sheet", SHEETS)
def test_text_and_marks_stand_out(sheet, scheme):
    colours = schemes(sheet)[scheme]
    wanted = chain(((4.5, pair) for pair in TEXT[sheet]), ((3.0, pair) for pair in MARKS[sheet]))
    found = {(pair, least): contrast(*(colours[name] for name in pair)) for least, pair in wanted}
    assert {key: value for key, value in found.items() if value < key[1]} == {}


@pytest.mark.parametrize("sheet", SHEETS)
def test_paper_is_printed_light(sheet):
    """A browser that is set to dark would else print its light ink on white paper."""
    text = (ROOT / SHEETS[sheet]).read_text(encoding="utf-8")
    assert re.findall(r"@media ([^{]*prefers-color-scheme[^{]*) \{", text) == [
        "screen and (prefers-color-scheme: dark)"
    ]
    assert "@media print" in text
