"""The main result: every arm of the default experiment over several seeds, pooled, with paired bootstrap intervals.

    python -m benchmarks.personalization [--seeds 1 2 3] [--finished runs/demo] [--arms ARMS] [--write docs/results/three-seeds.md]

``--finished`` adds folders of runs with the same settings and other seeds, such as that of the demo (seed 1). The arms that all
runs have in common are pooled.

Each seed makes its own population, division, adapter initialisation and batches. Seeds that are finished are not run again,
a stopped one resumes. The table in docs/results/three-seeds.md is what this writes; nothing in it is typed.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from fl.runs.files import RunFiles, is_finished, read_run
from fl.settings.config import RunConfig, load_config, make_config
from sim.backends.run import run_simulation
from sim.cli.app import progress_bars
from sim.report.page import write_page
from sim.report.summary import RunSummary, pool, summarize, write_summary
from sim.section import write_section

COMPARED = (("personalized", "global", -0.30), ("personalized", "local", -0.30))
NEUTRAL_MARGIN = 0.01  # neutral may be worse than global by one point at most


def seed_config(seed: int, runs: Path, arms: str | None) -> RunConfig:
    """The default experiment with one seed."""
    values: dict[str, object] = {"seed": seed, "output": str(runs / f"seed-{seed}")}
    if arms:
        values["arms"] = arms
    return make_config(values)


def percent(value: float | None) -> str:
    """A rate for the table."""
    return "-" if value is None else f"{100 * value:.1f}"


def table(summary: RunSummary, seeds: list[int]) -> str:
    """The result as Markdown."""
    arms: dict[str, dict[str, Any]] = summary["arms"]  # type: ignore[assignment]
    metrics = ("wer", "cer", "mer", "mer_folded", "jer_nfd", "pier")
    lines = ["| arm | " + " | ".join(metrics) + " |", "| --- |" + " --- |" * len(metrics)]
    for arm, rates in arms.items():
        cells = [
            f"{percent(rates[m]['rate'])} ({percent(rates[m]['low'])}-{percent(rates[m]['high'])})" for m in metrics
        ]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    lines += ["", "New people (never in training):", "", "| arm | mer | wer |", "| --- | --- | --- |"]
    for arm, rates in summary["new_people"].items():
        lines.append(f"| {arm} | {percent(rates['mer']['rate'])} | {percent(rates['wer']['rate'])} |")
    lines += [
        "",
        "| comparison (MER) | difference, points | interval | relative | interval | target |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for better, worse, wanted in (*COMPARED, ("neutral", "global", None)):
        found = summary["comparisons"].get(f"{better}_vs_{worse}", {}).get("mer")
        if found is None:
            continue
        if wanted is None:
            target = f"at most +{100 * NEUTRAL_MARGIN:.0f} point: " + (
                "met" if found["difference"] <= NEUTRAL_MARGIN else "missed"
            )
        else:
            met = found["relative"] <= wanted and found["high"] < 0
            target = f"{100 * wanted:.0f} % relative, interval without zero: " + ("met" if met else "missed")
        lines.append(
            f"| {better} against {worse} | {100 * found['difference']:+.1f} | {100 * found['low']:+.1f} to {100 * found['high']:+.1f} | "
            f"{100 * found['relative']:+.0f} % | {100 * found['relative_low']:+.0f} to {100 * found['relative_high']:+.0f} % | {target} |"
        )
    harmed, worst = summary["harmed"], summary["worst_tenth"]
    lines += [
        "",
        f"Devices harmed by personalization (MER above global's): {percent(harmed['share'])} %. Worst tenth of devices, MER: ",
    ]
    lines[-1] += ", ".join(f"{arm} {percent(values['mer'])}" for arm, values in worst.items()) + "."
    costs = summary["costs"]
    machine = costs["machine"]
    lines += [
        "",
        f"Seeds {', '.join(map(str, seeds))}; {costs['devices']} devices, {costs['rounds']} rounds of {costs['local_steps']} steps of "
        f"{costs['batch_size']}; {machine['processor']}, {machine['cores']} cores, Python {machine['python']}; "
        + ", ".join(f"{name} {version}" for name, version in costs["versions"].items())
        + ". Rates in per cent with 95 % bootstrap intervals (utterances within devices, 2,000 samples), pooled over seeds.",
    ]
    return "\n".join(lines) + "\n"


def common_arms(runs: list[RunFiles]) -> list[RunFiles]:
    """The runs cut to the arms that every one of them has."""
    arms = set.intersection(*({row.arm for row in run.transcripts} for run in runs))
    return [
        replace(
            run,
            results=tuple(row for row in run.results if row.arm in arms),
            transcripts=tuple(row for row in run.transcripts if row.arm in arms),
        )
        for run in runs
    ]


START, END = "<!-- personalization: made by benchmarks/personalization.py -->", "<!-- end of personalization -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=Path("runs/personalization"))
    parser.add_argument("--finished", type=Path, nargs="*", default=[])
    parser.add_argument("--arms", default=None)
    parser.add_argument("--write", type=Path, default=None)
    arguments = parser.parse_args()
    folders: list[Path] = list(arguments.finished)
    for seed in arguments.seeds:
        folder = arguments.runs / f"seed-{seed}"
        folders.append(folder)
        if not is_finished(folder):
            with progress_bars() as show:
                run_simulation(seed_config(seed, arguments.runs, arguments.arms), progress=show)
    runs = pool(common_arms([read_run(folder) for folder in folders]))
    seeds = sorted(load_config(folder / "config.toml").seed for folder in folders)
    summary = summarize(runs)
    write_summary(summary, arguments.runs / "summary.json")
    write_page(arguments.runs, summary, runs)
    text = table(summary, seeds)
    print(text)
    if arguments.write:
        write_section(arguments.write, START, END, text)


if __name__ == "__main__":
    main()
