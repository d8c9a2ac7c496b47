"""The report in words: names and meanings of arms and metrics, and comparisons as sentences. For terminal and page."""

from collections.abc import Iterable, Mapping
from typing import Any

from sim.report.charts import percent
from sim.report.summary import RunSummary

ARM_MEANINGS = {
    "zero-shot": "the base without an adapter",
    "local": "own data only, no federation",
    "global": "one shared adapter for all",
    "global+finetune": "global, then a few own steps",
    "personalized": "shared part and private part",
    "neutral": "shared part alone",
    "centralized": "all data in one place",
}
LANGUAGES = {
    "ko": "Korean",
    "en": "English",
    "es": "Spanish",
    "zh": "Chinese",
    "ja": "Japanese",
    "other": "no language",
}
KEY_COMPARISONS = (("personalized", "global"), ("personalized", "local"), ("neutral", "global"))
HELD_OUT_COMPARISONS = (("neutral", "global"), ("neutral", "zero-shot"))
_UNITS = ("bytes", "KB", "MB", "GB", "TB")


def main_metric(summary: RunSummary) -> str:
    """The name of the metric by which the task of the run is judged."""
    return str(summary["run"]["main_metric"])


def label(summary: RunSummary, metric: str) -> str:
    """What a metric is called: ``MER``."""
    return str(summary["run"]["measures"][metric]["label"])


def noun(summary: RunSummary, what: str, many: int = 1) -> str:
    """The task's word for its ``field``, a ``model``, an ``example`` or a ``person``; in the plural unless ``many`` is 1."""
    word = str(summary["run"]["words"][what])
    return word if many == 1 else "people" if word == "person" else f"{word}s"


def language(code: str) -> str:
    """The language's name, or the code (or another word) itself where we have no name."""
    return LANGUAGES.get(code, code)


def listing(words: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def size(count: float) -> str:
    """Bytes as people read them, in powers of 1000: ``2.4 MB``."""
    power = 0
    while count >= 999.5 and power < len(_UNITS) - 1:
        count, power = count / 1000, power + 1
    digits = 0 if power == 0 or count >= 99.95 else 1
    return f"{count:.{digits}f}\u202f{_UNITS[power]}"


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 5 s``, ``1 h 20 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f}\u202fs" if seconds < 10 else f"{whole}\u202fs"
    if whole < 3600:
        return f"{whole // 60}\u202fmin {whole % 60}\u202fs"
    return f"{whole // 3600}\u202fh {whole % 3600 // 60}\u202fmin"


def signed(share: float, digits: int = 1) -> str:
    """A change in per cent or in percentage points, with its sign: ``+1.2``."""
    return f"{100 * share:+.{digits}f}".replace("-", "−")


def relative_range(difference: Mapping[str, Any]) -> str:
    """The relative interval without its sign, smaller end first where both have one sign: ``33 to 48``."""
    ends = [difference["relative_low"], difference["relative_high"]]
    if None in ends:
        return "unbounded"
    if ends[0] < 0 < ends[1]:
        return " to ".join(signed(end, 0) for end in ends)
    return " to ".join(f"{share:.0f}" for share in sorted(100 * abs(end) for end in ends))


def comparison(summary: RunSummary, a: str, b: str, *, held_out: bool = False) -> str | None:
    """One sentence on arm ``a`` against arm ``b`` by the main metric; ``None`` where the run has not both.

    Whether one beats the other is decided by the interval of the difference, not by the difference.
    """
    found = summary["new_people_comparisons" if held_out else "comparisons"].get(f"{a}_vs_{b}")
    metric = main_metric(summary)
    if found is None or found[metric]["difference"] is None:
        return None
    difference, name = found[metric], label(summary, metric)
    amount = f"{signed(difference['difference'])} points"
    interval = f"95 % CI {signed(difference['low'])} to {signed(difference['high'])}"
    if not difference["excludes_zero"]:
        return f"no significant difference between {a} and {b} in {name} ({amount}, {interval})"
    verb = "beats" if difference["difference"] < 0 else "is worse than"
    if difference["relative"] is None:
        return f"{a} {verb} {b} by {amount} of {name} ({interval})"
    relative = f"{abs(100 * difference['relative']):.0f} %"
    return f"{a} {verb} {b} by {relative} relative {name} (95 % CI {relative_range(difference)})"


def comparisons(summary: RunSummary, pairs: Iterable[tuple[str, str]], *, held_out: bool = False) -> list[str]:
    """One for each of ``pairs`` that the run has."""
    return [text for a, b in pairs if (text := comparison(summary, a, b, held_out=held_out))]


def sentence(text: str | None) -> str:
    """The words as a sentence of their own; empty without words."""
    return f"{text[0].upper()}{text[1:]}." if text else ""


def harmed(summary: RunSummary) -> str | None:
    """How many devices personalization made worse, in words."""
    found = summary["harmed"]
    if found["share"] is None:
        return None
    if not found["devices"]:
        return f"personalization made none of the {found['of']} devices worse"
    return f"personalization made {len(found['devices'])} of {found['of']} devices worse: {listing(found['devices'])}"


def unusable(summary: RunSummary) -> str | None:
    """How much of whom could not be used, in words."""
    found = summary["left_out"]
    if not found["examples"]:
        return None
    lost = f"; nothing is left of {listing(found['nothing_left_of'])}" if found["nothing_left_of"] else ""
    count = f"{found['examples']} {noun(summary, 'example', found['examples'])}"
    return f"{count} of {listing(list(found['devices']))} could not be used{lost}"


def unfinished(summary: RunSummary) -> str | None:
    """How far a run that is not finished has come, in words, and how to go on with it; None for a finished one."""
    found = summary["run"]["so_far"]
    if not found:
        return None
    rounds = [f"{arm} {last}" for arm, last in found["rounds"].items()]
    planned = summary["run"]["rounds"]
    trained = f"Last round of {planned}: {listing(rounds)}." if rounds else f"No round of {planned} is finished."
    count, names = len(found["arms"]), found["evaluated"]
    tested = f"{len(names)} of {count} arms ({listing(names)})" if names else f"none of {count} arms"
    evaluated = f"Evaluated on test data: {tested}."
    return f"It is still running, or it was stopped. {trained} {evaluated} Start the same command again and it resumes."


def people(summary: RunSummary) -> str:
    """``8 people who mix English and Korean``, from the run's annotation."""
    run = summary["run"]
    names = [language(code) for code in run["languages"] if code not in ("other", "und", "zxx")]
    mixing = f" who mix {listing(names)}" if len(names) > 1 else ""
    return f"{run['devices']} {'person' if run['devices'] == 1 else 'people'}{mixing}"


def sentences_compared(summary: RunSummary) -> int:
    """Test examples behind the main rows: those of the devices that took part."""
    return sum(device["utterances"] for device in summary["devices"].values() if not device["new_person"])


def rate_of(rates: Mapping[str, Any], arm: str, metric: str) -> str:
    """``17.2 % (15.1 to 19.0)`` where there is an interval, else the rate alone."""
    return rate_text(rates[arm][metric])


def rate_text(found: Mapping[str, Any]) -> str:
    """A rate with its interval where there is one."""
    if found.get("low") is None or found.get("high") is None:
        return percent(found["rate"])
    return f"{percent(found['rate'])} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"
