"""The study's tables and plot, made from its rows: intervals and tests resample people, or couples who share a voice, of all seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np

from fl.core.rng import derive_generator
from fl.metrics.intervals import PairedDifference, paired_difference, rate_interval
from sim.section import ReportTable
from sim.study.enrol.contenders import NEUTRAL
from sim.study.enrol.rows import EnrolRow, pooled, rows_of

FLIPS = 9999  # random sign flips of a test
LEVEL = 0.05
HEADLINE_SIZES = (5, 20)
HELD_OUT, PARTICIPANTS = "Held-out speakers", "Participants"
Person = tuple[int, str]  # and the seed


@dataclass(frozen=True)
class Compared:
    """One method with so many sentences against another, over the same people.

    ``p`` is of a paired test by sign flips over people, ``significant`` after Holm's correction over the methods of a table.
    """

    method: str
    rows: tuple[EnrolRow, ...]
    against: PairedDifference
    p: float
    harmed: float
    significant: bool = False

    def rate(self, metric: str) -> float:
        """The pooled error rate."""
        errors, reference = pooled(self.rows, metric)
        return sum(errors) / max(1, sum(reference))

    @property
    def worst_tenth(self) -> float:
        """The pooled MER of the tenth of the people with the highest, one at least."""
        order = sorted(self.rows, key=lambda row: row.counts["mer"][0] / max(1, row.counts["mer"][1]))
        worst = order[-math.ceil(len(order) / 10) :]
        errors, reference = pooled(worst, "mer")
        return sum(errors) / max(1, sum(reference))


def sign_flip_p(differences: Sequence[int], *, seed: int = 0) -> float:
    """Two-sided p of paired ``differences`` under random sign flips: how often a sum is as far from zero as theirs."""
    values = np.asarray(differences, dtype=np.float64)
    signs = derive_generator(seed, "sign flips").choice((-1.0, 1.0), size=(FLIPS, len(values)))
    return float((1 + np.sum(np.abs(signs @ values) >= abs(values.sum()) - 1e-9)) / (1 + FLIPS))


def holm(ps: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which hypotheses are rejected at a family-wise ``level`` (Holm 1979)."""
    rejected = [False] * len(ps)
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        if ps[place] > level / (len(ps) - rank):
            break
        rejected[place] = True
    return rejected


def compared(rows: Sequence[EnrolRow], sentences: int, against: str = NEUTRAL, metric: str = "mer") -> list[Compared]:
    """Every other method with so many sentences, in the order of the rows, against one on the same people."""
    other = {(row.seed, row.person): row for row in _at(rows, against, sentences)}
    found: list[Compared] = []
    for name in dict.fromkeys(row.method for row in rows if row.method != against):
        own = [row for row in _at(rows, name, sentences) if (row.seed, row.person) in other]
        if not own:
            continue
        before = [other[row.seed, row.person] for row in own]
        errors, reference = pooled(own, metric)
        start, _ = pooled(before, metric)
        difference = paired_difference(errors, start, reference, ["everybody"] * len(errors), seed=0)
        differences = [after - earlier for after, earlier in zip(errors, start, strict=True)]
        pairs = zip(own, before, strict=True)
        harmed = sum(row.counts[metric][0] > earlier.counts[metric][0] for row, earlier in pairs) / len(own)
        found.append(Compared(name, tuple(own), difference, sign_flip_p(differences), harmed))
    marks = holm([one.p for one in found])
    return [Compared(o.method, o.rows, o.against, o.p, o.harmed, mark) for o, mark in zip(found, marks, strict=True)]


def _at(rows: Sequence[EnrolRow], method: str, sentences: int) -> list[EnrolRow]:
    return rows_of(rows, method, 0 if method == NEUTRAL else sentences)


def pair_tables(rows: Sequence[EnrolRow], against: str) -> list[ReportTable]:
    """For each number of sentences that the method ``against`` has rows of, every other method minus it, in points."""
    found = []
    for size in sorted({row.sentences for row in rows if row.sentences}):
        each = compared(rows, size, against)
        folded = compared(rows, size, against, "mer_folded")
        lines = [
            (one.method, f"{len(one.rows)}", _points(one), _points(other))
            for one, other in zip(each, folded, strict=True)
        ]
        if lines:
            heads = ("method", "people", "MER, points", "folded, points")
            found.append(ReportTable(f"Against {against}, with {_sentences(size)}", heads, tuple(lines)))
    return found


def _points(one: Compared) -> str:
    return _signed(one, (one.against.difference, one.against.low, one.against.high), 1)


def _relative(one: Compared) -> str:
    return _signed(one, (one.against.relative, one.against.relative_low, one.against.relative_high), 0)


def _signed(one: Compared, shares: Sequence[float | None], digits: int) -> str:
    """A difference and its interval in per cent or points, starred if significant."""
    known = [f"{100 * share:+.{digits}f}" for share in shares if share is not None]
    if len(known) < len(shares):
        return "-"
    middle, low, high = known
    return f"{middle} ({low} to {high})" + ("*" if one.significant else "")


def _sentences(size: int) -> str:
    return f"{size} {'sentence' if size == 1 else 'sentences'}"


def tables(rows: Sequence[EnrolRow], who: str = HELD_OUT) -> list[ReportTable]:
    """For each number of sentences a table of error rates, then what methods cost, then error rates by trait."""
    sizes = sorted({row.sentences for row in rows if row.sentences})
    found = [_rates(rows, size, who) for size in sizes]
    if sizes:
        found.append(_costs(rows, sizes))
    return [*found, *_by_trait(rows, sizes)]


def _rates(rows: Sequence[EnrolRow], size: int, who: str) -> ReportTable:
    neutral = _neutral(rows, size)
    lines = [(NEUTRAL, "0", _interval(neutral), _interval(neutral, "mer_folded"), "", "", "")] if neutral else []
    lines += [
        (
            one.method if len(one.rows) == len(neutral) else f"{one.method} ({len(one.rows)} people)",
            f"{one.rows[0].numbers:,}",
            _interval(one.rows),
            _interval(one.rows, "mer_folded"),
            _relative(one),
            f"{100 * one.harmed:.0f}",
            f"{100 * one.worst_tenth:.1f}",
        )
        for one in compared(rows, size)
    ]
    heads = ("method", "numbers", "MER, %", "folded", "against neutral, %", "harmed, %", "worst tenth")
    there = f"{len(neutral)} {who.lower()}" if neutral else who
    return ReportTable(f"{there} with {_sentences(size)}", heads, tuple(lines))


def _neutral(rows: Sequence[EnrolRow], size: int) -> list[EnrolRow]:
    """What those who have so many sentences have without any of them."""
    there = {(row.seed, row.person) for row in rows if row.sentences == size}
    return [row for row in rows_of(rows, NEUTRAL, 0) if (row.seed, row.person) in there]


def headline(rows: Sequence[EnrolRow], names: Sequence[str] = (), sizes: Sequence[int] = HEADLINE_SIZES) -> ReportTable:
    """Every method that most people have rows of for each of ``sizes``, in one short table, what gains most at the first size on top.

    A method is compared with the shared adapter on its own people. With ``names`` the table has those alone; it is corrected for all.
    """
    neutral = rows_of(rows, NEUTRAL, 0)
    untrained = (_rate(neutral, "mer"), _rate(neutral, "mer_folded"))
    lines = [("nothing: the shared adapter", "0", *(untrained * len(sizes)))]
    each = [{one.method: one for one in compared(rows, size)} for size in sizes]
    asked = [name for name in each[0] if not names or name in names]
    most = [name for name in asked if all(name in by and 2 * len(by[name].rows) > len(neutral) for by in each)]
    for name in sorted(most, key=lambda name: each[0][name].against.relative or 0.0):
        found = [by[name] for by in each]
        gains = [
            text
            for one in found
            for text in (f"{100 * one.rate('mer'):.1f}, {_relative(one)}", f"{100 * one.rate('mer_folded'):.1f}")
        ]
        short = name.replace(", and ", " and ").replace(" and spelling table", " + table")
        fewer = len(each[0][name].rows) < len(neutral)
        told = f"{short} ({len(each[0][name].rows)} people)" if fewer else short
        lines.append((told, f"{each[0][name].rows[0].numbers:,}", *gains))
    heads = (
        "what is learned from them",
        "numbers",
        *(head for size in sizes for head in (f"{size} sentences, %", "folded")),
    )
    return ReportTable(
        "Mixed error rate of held-out speakers, % fewer (-) than with the shared adapter, and with loanwords folded",
        heads,
        tuple(lines),
    )


def _costs(rows: Sequence[EnrolRow], sizes: Sequence[int]) -> ReportTable:
    neutral = rows_of(rows, NEUTRAL, 0)
    lines = [(NEUTRAL, _rate(neutral, "wer"), "", "", "0", "")] if neutral else []
    for name in dict.fromkeys(row.method for row in rows if row.method != NEUTRAL):
        own = [row for row in rows if row.method == name]
        largest = max(row.sentences for row in own)
        most = [row for row in own if row.sentences == largest]
        kept = [row for row in own if row.losses]
        untouched = f"{100 * mean(row.steps == 0 for row in kept):.0f}" if kept else "-"
        steps = ", ".join(
            f"{mean(r.steps for r in own if r.sentences == n):.0f}" for n in sizes if rows_of(own, name, n)
        )
        timed = [row.seconds for row in most if row.seconds]
        size, seconds = f"{mean(row.bytes for row in most) / 1024:,.0f}", f"{mean(timed):.2f}" if timed else "-"
        lines.append((name, _rate(most, "wer"), steps, untouched, size, seconds))
    told = ", ".join(map(str, sizes))
    heads = ("method", "WER, %", f"steps with {told}", "stayed shared, %", "KiB", "s a person")
    return ReportTable("What enrolment costs, with the most sentences", heads, tuple(lines))


def _by_trait(rows: Sequence[EnrolRow], sizes: Sequence[int]) -> list[ReportTable]:
    """For each trait in which people differ a table of its values, of numbers the lower and the upper half, with 5 sentences or the
    nearest number."""
    if not sizes:
        return []
    size = min(sizes, key=lambda each: abs(each - 5))
    methods = {NEUTRAL: _neutral(rows, size), **{one.method: one.rows for one in compared(rows, size)}}
    found = []
    for trait in dict.fromkeys(key for row in rows for key in row.traits):
        known = {(row.seed, row.person): row.traits[trait] for row in rows if trait in row.traits}
        labels = _halves(known) if all(isinstance(v, int | float) for v in known.values()) else known
        kinds = sorted({*map(str, labels.values())})
        if len(kinds) < 2:
            continue
        lines = [(name, *(_both(_those(own, labels, kind)) for kind in kinds)) for name, own in methods.items()]
        title = f"MER in % (with loanwords folded), with {_sentences(size)}, by {trait}"
        found.append(ReportTable(title, ("method", *kinds), tuple(lines)))
    return found


def _halves(values: Mapping[Person, Any]) -> dict[Person, str]:
    middle = float(np.median([*values.values()]))
    return {who: "upper half" if value > middle else "lower half" for who, value in values.items()}


def _those(rows: Sequence[EnrolRow], labels: Mapping[Person, Any], kind: str) -> list[EnrolRow]:
    return [row for row in rows if str(labels.get((row.seed, row.person))) == kind]


def _rate(rows: Iterable[EnrolRow], metric: str) -> str:
    errors, reference = pooled(list(rows), metric)
    return f"{100 * sum(errors) / sum(reference):.1f}" if sum(reference) else "-"


def _both(rows: Sequence[EnrolRow]) -> str:
    return f"{_rate(rows, 'mer')} ({_rate(rows, 'mer_folded')})"


def _interval(rows: Sequence[EnrolRow], metric: str = "mer") -> str:
    errors, reference = pooled(rows, metric)
    found = rate_interval(errors, reference, ["everybody"] * len(errors), seed=0)
    if found.rate is None or found.low is None or found.high is None:
        return "-"
    return f"{100 * found.rate:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def people(rows: Sequence[EnrolRow], who: str = HELD_OUT) -> str:
    """Whom a table is about."""
    seeds = ", ".join(map(str, sorted({row.seed for row in rows})))
    tokens = sum(row.counts["mer"][1] for row in rows_of(rows, NEUTRAL, 0))
    found = len({(row.seed, row.person) for row in rows})
    return f"Seeds {seeds}; {found} {who.lower()}, {tokens:,} tokens of test sentences; 95 % CI over {_units(rows)}"


def _units(rows: Sequence[EnrolRow]) -> str:
    return "couples who share a voice" if any(row.couple for row in rows) else "people"


def conditions(rows: Sequence[EnrolRow], who: str = HELD_OUT) -> str:
    """Under what the rows were made, in one paragraph."""
    machines: Mapping[str, None] = dict.fromkeys(row.machine for row in rows)
    return (
        f"{people(rows, who)}; {'; '.join(machines)}. 95 % bootstrap CI over {_units(rows)}, of all seeds; differences are relative and "
        f"paired, negative is better; {_significance(rows)} Harmed: people whose MER is above neutral's."
    )


def pair_conditions(rows: Sequence[EnrolRow], who: str = HELD_OUT) -> str:
    """What the differences of :func:`pair_tables` are, in one paragraph."""
    return f"{people(rows, who)}, of all seeds; differences are paired, negative is better; {_significance(rows)}"


def _significance(rows: Sequence[EnrolRow]) -> str:
    return f"* significant at 5 % by a sign-flip test over {_units(rows)}, after Holm's correction over the methods of the table."
