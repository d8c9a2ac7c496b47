"""Sample transcripts as cards: the recording, what was said, what every arm wrote with its differences marked."""

import re
from collections.abc import Sequence
from html import escape

from sim.report.diff import diff_html, hangul_html
from sim.report.markup import arm_name, section
from sim.report.samples import KINDS, MAX_AUDIO_BYTES, Sample, embed_audio
from sim.report.scoring import Scored

IMAGE = re.compile("[0-9a-f]{64}")
_LEGEND = (
    ('<span class="d d-spelling">coffee</span>', "right word, other spelling"),
    ('<span class="d d-substitution">word</span>', "wrong"),
    ('<del class="d d-deletion"><span class="sign">−</span>word</del>', "missing"),
    ('<ins class="d d-insertion"><span class="sign">+</span>word</ins>', "added"),
    ('<span class="d d-spacing"><span class="sign">␣</span></span>', "spacing or punctuation"),
)


def samples(chosen: Sequence[Sample], *, example: str = "sentences", audio_bytes: int = MAX_AUDIO_BYTES) -> str:
    """The section with all cards; recordings are embedded until ``audio_bytes`` are used."""
    cards, left = [], audio_bytes
    heading = "Listen and compare" if any(sample.row.audio for sample in chosen) else "Compare"
    for number, sample in enumerate(chosen, 1):
        sound = embed_audio(sample.row.audio, sample.row.seconds_audio, left, sample.row.start)
        left -= 3 * len(sound or "") // 4
        cards.append(_card(sample, sound, number))
    legend = "".join(f"<li>{mark} {meaning}</li>" for mark, meaning in _LEGEND)
    lead = f"{len(chosen)} of the test {example}, chosen by rule: habits learned, other gains, failures, new people."
    body = [f'<ul class="legend" aria-label="Marks">{legend}</ul>', _filters(chosen), '<div class="cards">', *cards]
    nothing = '</div><p class="note" id="no-match" hidden>Nothing matches.</p>'
    return section("samples", heading, [*body, nothing], lead)


def _filters(chosen: Sequence[Sample]) -> str:
    """Only shown by the script, because without it they would do nothing."""
    devices = dict.fromkeys(sample.row.device for sample in chosen)
    kinds = dict.fromkeys(sample.kind for sample in chosen)
    by_device = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in sorted(devices))
    by_kind = "".join(f'<option value="{kind}">{escape(KINDS[kind][0])}</option>' for kind in kinds)
    return (
        '<form class="filters" id="filters" hidden><label>Text <input type="search" name="text" '
        'placeholder="커피, meeting …" autocomplete="off"></label>'
        f'<label>Person <select name="device"><option value="">all</option>{by_device}</select></label>'
        f'<label>Why shown <select name="kind"><option value="">all</option>{by_kind}</select></label>'
        '<output id="shown" aria-live="polite"></output></form>'
    )


def _card(sample: Sample, sound: str | None, number: int) -> str:
    row = sample.row
    said = hangul_html(row.reference)
    length = [f"{row.seconds_audio:.1f} s"] if row.audio else []
    facts = " · ".join([row.device, f"{row.level} switch" if row.level else row.utterance, *length])
    if row.audio is None:
        player = _picture(row.image) if IMAGE.fullmatch(row.image) else ""
    elif sound:
        label = escape(f"Recording {number}, {row.device}")
        player = f'<audio controls preload="metadata" aria-label="{label}" src="{sound}"></audio>'
    else:
        player = '<p class="note no-audio">Recording not embedded.</p>'
    lines = "".join(_arm(each, sample.metric) for each in sample.arms)
    return (
        f'<article class="card kind-{sample.kind}" data-device="{escape(row.device)}" data-kind="{sample.kind}">'
        f'<header><span class="badge">{escape(KINDS[sample.kind][0])}</span><span class="facts">{escape(facts)}</span></header>'
        f'<h3 class="said"><span class="visually-hidden">Said: </span>{said}</h3>{player}<dl class="lines">{lines}</dl></article>'
    )


def _picture(image: str) -> str:
    """The image as 8 rows of squares."""
    squares = "".join(
        f'<rect x="{place % 8}" y="{place // 8}" width="1.02" height="1.02" opacity="{int(level, 16) / 15:.2f}"/>'
        for place, level in enumerate(image)
        if level != "0"
    )
    return f'<svg viewBox="0 0 8 8" width="96" height="96" fill="currentColor" role="img" aria-label="The image">{squares}</svg>'


def _arm(each: Scored, metric: str) -> str:
    row, counts = each.row, each.counts[metric]
    text = diff_html(row.reference, row.hypothesis, row.loanwords)
    right = counts.errors == 0
    verdict = "✓" if right else str(counts.errors)
    spoken = "no errors" if right else f"{counts.errors} of {counts.reference} wrong"
    return (
        f'<div class="line line-{"right" if right else "wrong"}"><dt>{arm_name(row.arm)}</dt><dd><span class="text">{text}'
        f'</span><span class="verdict" title="{spoken}"><span aria-hidden="true">{verdict}</span>'
        f'<span class="visually-hidden">{spoken}</span></span></dd></div>'
    )
