"""The sections of the page that show numbers, one function each: summary in, HTML out, empty where there is nothing."""

from collections.abc import Mapping
from typing import Any

from sim.report.charts import Axis, Curve, Slope, gutter, interval_bar, line_chart, percent, slope_chart
from sim.report.markup import arm_name, bars, details, figure, paragraph, section, shared_axis, slug, table, tiles
from sim.report.summary import Device, Summary
from sim.report.words import (
    KEY_COMPARISONS,
    METRIC_MEANINGS,
    METRIC_NAMES,
    comparison,
    duration,
    harmed,
    language,
    rate_of,
    relative_range,
    size,
)

MAX_LABELLED_DEVICES = 24
_OTHER_METRICS = tuple(name for name in METRIC_NAMES if name != "mer")


def key_figures(summary: Summary) -> str:
    """The strip of figures under the headline."""
    arms, costs, entries = summary["arms"], summary["costs"], []
    if "personalized" in arms:
        note = f"global: {percent(arms['global']['mer']['rate'])}" if "global" in arms else "mixed error rate"
        entries.append(("Personalized MER", percent(arms["personalized"]["mer"]["rate"]), note))
    for other in ("global", "local"):
        found = summary["comparisons"].get(f"personalized_vs_{other}", {}).get("mer")
        if found and found["relative"] is not None:
            change = f"{100 * found['relative']:+.0f}\u202f%".replace("-", "−")
            entries.append((f"Versus {other}", change, f"errors ({relative_range(found)})"))
    if "neutral" in summary["new_people"]:
        new = summary["new_people"]
        note = f"global: {percent(new['global']['mer']['rate'])}" if "global" in new else "on the first day"
        entries.append(("New person MER", percent(new["neutral"]["mer"]["rate"]), note))
    if summary["harmed"]["share"] is not None:
        found = summary["harmed"]
        entries.append(("Made worse", f"{len(found['devices'])} of {found['of']}", "against global"))
    entries.append(
        (
            "Adapter",
            size(costs["adapter_bytes"]),
            f"{percent(costs['adapter_share_of_base'], 2)} of the base",
        )
    )
    return tiles(entries)


def arms(summary: Summary) -> str:
    """All arms: MER as a dot with its interval, the other metrics as numbers."""
    rates = summary["arms"]
    axis = shared_axis(_ends(rates))
    rows = []
    for arm, metrics in rates.items():
        mer = f'<span class="number">{rate_of(rates, arm)}</span>{_interval(metrics["mer"], axis, arm)}'
        rows.append([arm_name(arm, meaning=True), mer, *(_cell(metrics[metric]) for metric in _OTHER_METRICS)])
    header = ["Arm", "MER with 95 % interval", *(METRIC_NAMES[metric] for metric in _OTHER_METRICS)]
    legend = "; ".join(f"{METRIC_NAMES[name]}: {METRIC_MEANINGS[name]}" for name in METRIC_NAMES)
    found = (comparison(summary, a, b) for a, b in KEY_COMPARISONS)
    sentences = "".join(f"<li>{_sentence(text)}</li>" for text in found if text)
    beyond = any((metrics["mer"]["rate"] or 0.0) > axis.top for metrics in rates.values())
    caption = f"All devices that took part; a grid line every {percent(axis.ticks[1], 0)}"
    body = table(caption + ("; an arrow lies beyond them" if beyond else ""), header, rows, "arms")
    lead = "Every arm takes the same number of local steps. Lower is better."
    return section(
        "arms", "All arms", [body, f"<ul class='findings'>{sentences}</ul>", paragraph(legend, "note")], lead
    )


def _ends(rates: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, float | None]]:
    return [(arm, metrics["mer"]["high"] or metrics["mer"]["rate"]) for arm, metrics in rates.items()]


def _interval(found: Mapping[str, Any], axis: Axis, arm: str) -> str:
    rate = found["rate"]
    if rate is None:
        return ""
    low, high = (rate if end is None else end for end in (found["low"], found["high"]))
    return interval_bar(rate, low, high, axis, slug(arm))


def _cell(found: Mapping[str, Any]) -> str:
    return f'<span class="number">{percent(found["rate"])}</span>'


def curves(summary: Summary) -> str:
    """Validation MER over rounds."""
    lines = []
    for arm, points in summary["curves"].items():
        found = tuple((float(point["round"]), point["mer"]) for point in points if point.get("mer") is not None)
        if found:
            lines.append(Curve(arm, slug(arm), found))
    if not lines:
        return ""
    chart = line_chart(lines, title="Validation MER over rounds", x_label="round")
    caption = "Mixed error rate on each device's validation sentences, pooled. A ring is an arm with one measurement, dotted on."
    return section(
        "curves", "Learning", [figure(chart, caption, "plot plot-lines", gutter([line.label for line in lines], 16))]
    )


def devices(summary: Summary) -> str:
    """Each device from global to personalized, with local beside it, and the numbers to open."""
    taking_part = {name: device for name, device in summary["devices"].items() if not device["new_person"]}
    slopes = [_slope(name, device) for name, device in taking_part.items()]
    present = [slope for slope in slopes if slope is not None]
    body = []
    if present:
        labelled = len(present) <= MAX_LABELLED_DEVICES
        names = ("local", "global", "personalized")
        chart = slope_chart(present, names=names, title="MER of each device", labelled=labelled)
        caption = (
            "One line a person: mixed error rate with the global and with their own model. Diamonds: no federation. "
        )
        caption += "Dashed with a triangle: worse than global."
        body.append(
            figure(chart, caption, "plot plot-slopes", gutter([one.label for one in present], 70) if labelled else 20)
        )
    arms = list(summary["arms"])
    rows = [
        [
            f'<span class="device-name">{_safe(name)}</span>',
            str(device["utterances"]),
            *(_device(device, arm) for arm in arms),
        ]
        for name, device in taking_part.items()
    ]
    body.append(details("MER of every device and arm", table("MER by device", ["Device", "Sentences", *arms], rows)))
    return section("devices", "Person by person", body, _sentence(harmed(summary)))


def _safe(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _sentence(text: str | None) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _device(device: Device, arm: str) -> str:
    return _cell(device["arms"][arm]["mer"]) if arm in device["arms"] else "–"


def _slope(name: str, device: Device) -> Slope | None:
    def rate(arm: str) -> float | None:
        return device["arms"][arm]["mer"]["rate"] if arm in device["arms"] else None

    before, after = rate("global"), rate("personalized")
    return None if before is None or after is None else Slope(name, before, after, rate("local"))


def breakdowns(summary: Summary) -> str:
    """Error by switch level and by language, small groups of bars on one axis each."""
    levels: dict[str, list[tuple[str, float | None]]] = {}
    for arm, found in summary["by_level"].items():
        for level, metrics in found.items():
            levels.setdefault(level, []).append((arm, metrics["mer"]["rate"]))
    languages: dict[str, list[tuple[str, float | None]]] = {}
    for arm, by_language in summary["by_language"].items():
        for code, rate in by_language.items():
            languages.setdefault(language(code), []).append((arm, rate["rate"]))
    parts = []
    if levels:
        parts.append(_groups("level", "Where the switch happens", levels, "MER by the unit that is switched."))
    if languages:
        text = "Word errors charged to the language of the word, over the words of that language."
        parts.append(_groups("language", "By language", languages, text))
    return "".join(parts)


def _groups(name: str, heading: str, groups: Mapping[str, list[tuple[str, float | None]]], lead: str) -> str:
    axis = shared_axis(pair for pairs in groups.values() for pair in pairs)
    body = "".join(bars(title, rates, axis) for title, rates in groups.items())
    return section(f"by-{name}", heading, [f'<div class="bar-groups">{body}</div>'], lead)


def new_people(summary: Summary) -> str:
    """What people who never took part get on their first day."""
    rates = summary["new_people"]
    if not rates:
        return ""
    axis = shared_axis(_ends(rates))
    rows = [
        [
            arm_name(arm, meaning=True),
            f'<span class="number">{rate_of(rates, arm)}</span>{_interval(m["mer"], axis, arm)}',
        ]
        for arm, m in rates.items()
    ]
    found = [comparison(summary, "neutral", other, newcomers=True) for other in ("global", "zero-shot")]
    count = summary["run"]["new_people"]
    lead = (
        f"{count} {'person' if count == 1 else 'people'} who never took part, with no data of their own: a new device "
    )
    lead += "starts from the shared part with neutral gates."
    body = [table("MER of new people", ["Arm", "MER with 95 % interval"], rows, "arms")]
    body += [f'<ul class="findings">{"".join(f"<li>{_sentence(text)}</li>" for text in found if text)}</ul>']
    return section("new-people", "A new person's first day", body, lead)


def worst(summary: Summary) -> str:
    """The tenth of the devices that fares worst under each arm."""
    rates = [(arm, metrics["mer"]) for arm, metrics in summary["worst_tenth"].items()]
    body = bars("MER of the worst tenth of the devices", rates, shared_axis(rates))
    lead = "An average can hide the person for whom it does not work. This is the pooled rate of the tenth with the most errors."
    return section("worst", "The worst off", [f'<div class="bar-groups single">{body}</div>'], lead)


def costs(summary: Summary) -> str:
    """Bytes, sizes and seconds."""
    found = summary["costs"]
    share = found["adapter_share_of_base"] or 0.0
    strip = tiles(
        [
            (
                "Up, per device and round",
                size(found["bytes_up_per_device_round"]),
                f"{size(found['bytes_up_per_device'])} in all",
            ),
            (
                "Down, per device and round",
                size(found["bytes_down_per_device_round"]),
                f"{size(found['bytes_down_per_device'])} in all",
            ),
            ("Shared part", size(found["shared_bytes"]), "leaves the device"),
            ("Private part", size(found["private_bytes"]), "never leaves it"),
        ]
    )
    scale = (
        '<div class="scale"><div class="scale-bar" aria-hidden="true">'
        f'<i style="width:max(3px,{100 * share:.3f}%)"></i></div>'
        f"<p><strong>{size(found['adapter_bytes'])}</strong> adapter on the device, drawn to scale against the "
        f"<strong>{size(found['base_bytes'])}</strong> base that stays on the server ({percent(share, 2)}; "
        f"{found['adapter_parameters']:,} of {found['base_parameters']:,} parameters).</p></div>"
    )
    rows = [[arm_name(arm), duration(seconds)] for arm, seconds in found["seconds"].items()]
    times = table("Time per arm, training and evaluation", ["Arm", "Time"], rows, "narrow")
    return section("costs", "What it costs", [strip, scale, times])
