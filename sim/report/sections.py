"""The sections of the page that show numbers, one function each: summary in, HTML out, empty where there is nothing."""

from collections.abc import Mapping
from typing import Any

from sim.report.charts import Axis, Curve, Slope, gutter, interval_bar, line_chart, percent, slope_chart
from sim.report.markup import arm_name, bars, details, figure, paragraph, section, shared_axis, slug, table, tiles
from sim.report.summary import Device, Summary
from sim.report.words import (
    KEY_COMPARISONS,
    comparison,
    duration,
    harmed,
    label,
    language,
    main_metric,
    meaning,
    noun,
    rate_of,
    relative_range,
    shown_metrics,
    size,
)

MAX_LABELLED_DEVICES = 24


def key_figures(summary: Summary) -> str:
    """The strip of figures under the headline."""
    arms, costs, entries = summary["arms"], summary["costs"], []
    metric = main_metric(summary)
    name = label(summary, metric)
    if "personalized" in arms:
        note = f"global: {percent(arms['global'][metric]['rate'])}" if "global" in arms else meaning(summary, metric)
        entries.append((f"Personalized {name}", percent(arms["personalized"][metric]["rate"]), note))
    for other in ("global", "local"):
        found = summary["comparisons"].get(f"personalized_vs_{other}", {}).get(metric)
        if found and found["relative"] is not None:
            change = f"{100 * found['relative']:+.0f}\u202f%".replace("-", "−")
            entries.append((f"Versus {other}", change, f"errors ({relative_range(found)})"))
    if "neutral" in summary["new_people"]:
        new = summary["new_people"]
        note = f"global: {percent(new['global'][metric]['rate'])}" if "global" in new else "on the first day"
        entries.append((f"New person {name}", percent(new["neutral"][metric]["rate"]), note))
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
    """All arms: the main metric as a dot with its interval, the others as numbers."""
    rates = summary["arms"]
    main = main_metric(summary)
    others = [name for name in shown_metrics(summary) if name != main]
    axis = shared_axis(_ends(rates, main))
    rows = []
    for arm, metrics in rates.items():
        rate = f'<span class="number">{rate_of(rates, arm, main)}</span>{_interval(metrics[main], axis, arm)}'
        rows.append([arm_name(arm, meaning=True), rate, *(_cell(metrics[metric]) for metric in others)])
    header = ["Arm", f"{label(summary, main)} with 95 % interval", *(label(summary, metric) for metric in others)]
    legend = "; ".join(f"{label(summary, name)}: {meaning(summary, name)}" for name in shown_metrics(summary))
    found = (comparison(summary, a, b) for a, b in KEY_COMPARISONS)
    sentences = "".join(f"<li>{_sentence(text)}</li>" for text in found if text)
    beyond = any((metrics[main]["rate"] or 0.0) > axis.top for metrics in rates.values())
    caption = f"All devices that took part; a grid line every {percent(axis.ticks[1], 0)}"
    body = table(caption + ("; an arrow lies beyond them" if beyond else ""), header, rows, "arms")
    lead = "Every arm takes the same number of local steps. Lower is better."
    return section(
        "arms", "All arms", [body, f"<ul class='findings'>{sentences}</ul>", paragraph(legend, "note")], lead
    )


def _ends(rates: Mapping[str, Mapping[str, Any]], metric: str) -> list[tuple[str, float | None]]:
    return [(arm, metrics[metric]["high"] or metrics[metric]["rate"]) for arm, metrics in rates.items()]


def _interval(found: Mapping[str, Any], axis: Axis, arm: str) -> str:
    rate = found["rate"]
    if rate is None:
        return ""
    low, high = (rate if end is None else end for end in (found["low"], found["high"]))
    return interval_bar(rate, low, high, axis, slug(arm))


def _cell(found: Mapping[str, Any]) -> str:
    return f'<span class="number">{percent(found["rate"])}</span>'


def curves(summary: Summary) -> str:
    """The main metric on validation data over rounds."""
    lines = []
    metric = main_metric(summary)
    for arm, points in summary["curves"].items():
        found = tuple((float(point["round"]), point[metric]) for point in points if point.get(metric) is not None)
        if found:
            lines.append(Curve(arm, slug(arm), found))
    if not lines:
        return ""
    chart = line_chart(lines, title=f"Validation {label(summary, metric)} over rounds", x_label="round")
    examples = noun(summary, "example", 2)
    caption = f"{label(summary, metric)} on each device's validation {examples}, pooled. A ring is an arm with one measurement, dotted on."
    return section(
        "curves", "Learning", [figure(chart, caption, "plot plot-lines", gutter([line.label for line in lines], 16))]
    )


def devices(summary: Summary) -> str:
    """Each device from global to personalized, with local beside it, and the numbers to open."""
    taking_part = {name: device for name, device in summary["devices"].items() if not device["new_person"]}
    metric = main_metric(summary)
    slopes = [_slope(name, device, metric) for name, device in taking_part.items()]
    present = [slope for slope in slopes if slope is not None]
    body = []
    if present:
        labelled = len(present) <= MAX_LABELLED_DEVICES
        names = ("local", "global", "personalized")
        chart = slope_chart(present, names=names, title=f"{label(summary, metric)} of each device", labelled=labelled)
        caption = f"One line a person: {label(summary, metric)} with the global and with their own model. Diamonds: no federation. "
        caption += "Dashed with a triangle: worse than global."
        body.append(
            figure(chart, caption, "plot plot-slopes", gutter([one.label for one in present], 70) if labelled else 20)
        )
    arms = list(summary["arms"])
    rows = [
        [
            f'<span class="device-name">{_safe(name)}</span>',
            str(device["utterances"]),
            *(_device(device, arm, metric) for arm in arms),
        ]
        for name, device in taking_part.items()
    ]
    name, examples = label(summary, metric), noun(summary, "example", 2).capitalize()
    listed = table(f"{name} by device", ["Device", examples, *arms], rows)
    body.append(details(f"{name} of every device and arm", listed))
    return section("devices", "Person by person", body, _sentence(harmed(summary)))


def _safe(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _sentence(text: str | None) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _device(device: Device, arm: str, metric: str) -> str:
    return _cell(device["arms"][arm][metric]) if arm in device["arms"] else "–"


def _slope(name: str, device: Device, metric: str) -> Slope | None:
    def rate(arm: str) -> float | None:
        return device["arms"][arm][metric]["rate"] if arm in device["arms"] else None

    before, after = rate("global"), rate("personalized")
    return None if before is None or after is None else Slope(name, before, after, rate("local"))


def breakdowns(summary: Summary) -> str:
    """Error by switch level and by language, small groups of bars on one axis each."""
    metric = main_metric(summary)
    levels: dict[str, list[tuple[str, float | None]]] = {}
    for arm, found in summary["by_level"].items():
        for level, metrics in found.items():
            levels.setdefault(level, []).append((arm, metrics[metric]["rate"]))
    languages: dict[str, list[tuple[str, float | None]]] = {}
    for arm, by_language in summary["by_language"].items():
        for code, rate in by_language.items():
            languages.setdefault(language(code), []).append((arm, rate["rate"]))
    parts = []
    if levels:
        parts.append(
            _groups(
                "level", "Where the switch happens", levels, f"{label(summary, metric)} by the unit that is switched."
            )
        )
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
    metric = main_metric(summary)
    axis = shared_axis(_ends(rates, metric))
    rows = [
        [
            arm_name(arm, meaning=True),
            f'<span class="number">{rate_of(rates, arm, metric)}</span>{_interval(m[metric], axis, arm)}',
        ]
        for arm, m in rates.items()
    ]
    found = [comparison(summary, "neutral", other, newcomers=True) for other in ("global", "zero-shot")]
    count = summary["run"]["new_people"]
    lead = (
        f"{count} {'person' if count == 1 else 'people'} who never took part, with no data of their own: a new device "
    )
    lead += "starts from the shared part with neutral gates."
    header = ["Arm", f"{label(summary, metric)} with 95 % interval"]
    body = [table(f"{label(summary, metric)} of new people", header, rows, "arms")]
    body += [f'<ul class="findings">{"".join(f"<li>{_sentence(text)}</li>" for text in found if text)}</ul>']
    return section("new-people", "A new person's first day", body, lead)


def worst(summary: Summary) -> str:
    """The tenth of the devices that fares worst under each arm."""
    metric = main_metric(summary)
    rates = [(arm, metrics[metric]) for arm, metrics in summary["worst_tenth"].items()]
    body = bars(f"{label(summary, metric)} of the worst tenth of the devices", rates, shared_axis(rates))
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
