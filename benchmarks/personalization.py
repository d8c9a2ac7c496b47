"""The main result: every arm of the default experiment over several seeds, pooled, with intervals over people.

    python -m benchmarks.personalization [--seeds 1 2 3] [--finished runs/demo] [--arms ARMS] [--write docs/results/participants.md]
    python -m benchmarks.personalization --stored [--write docs/results/participants.md]

``--finished`` adds folders of runs with the same settings and other seeds, such as that of the demo (seed 1). The arms that all
runs have in common are pooled.

Each seed makes its own population, division, adapter initialisation and batches. Seeds that are finished are not run again,
a stopped one resumes. The table in docs/results/participants.md is what this writes, and its figures, with the counts of each
person, are stored in docs/measured: ``--stored`` makes the table from them and runs nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from fl.core.files import PUBLIC
from fl.runs.files import RunFiles, is_finished, read_run, write_whole
from fl.settings.config import RunConfig, make_config
from sim.backends.run import run_simulation
from sim.cli.app import progress_bars
from sim.report.page import write_page
from sim.report.summary import RunSummary, pool, summarize, write_summary
from sim.section import ReportTable, markdown_tables, print_tables, write_section

ERRORS = ("mer", "mer_folded", "wer", "cer")


def seed_config(seed: int, runs: Path, arms: str | None) -> RunConfig:
    """The default experiment with one seed."""
    values: dict[str, object] = {"seed": seed, "output": str(runs / f"seed-{seed}")}
    if arms:
        values["arms"] = arms
    return make_config(values)


def _rate(found: Mapping[str, Any]) -> str:
    return f"{100 * found['rate']:.1f} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


def _difference(found: Mapping[str, Any]) -> tuple[str, str]:
    """In points and relative; a star where the interval excludes zero."""
    points = f"{100 * found['difference']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"
    low, high = found["relative_low"], found["relative_high"]
    star = "*" if found["excludes_zero"] else ""
    return points + star, f"{100 * found['relative']:+.0f} % ({100 * low:+.0f} to {100 * high:+.0f})"


def tables(summary: RunSummary) -> list[ReportTable]:
    """Error rates of each arm on the participants, pairs of arms, and error rates of held-out speakers."""
    rates, held_out, worst = summary["arms"], summary["new_people"], summary["worst_tenth"]
    heads = ("arm", "MER, %", "loanwords folded", "WER, %", "CER, %", "worst tenth, MER")
    arms = [
        (arm, *(_rate(own[metric]) for metric in ERRORS), f"{100 * worst[arm]['mer']:.1f}")
        for arm, own in rates.items()
    ]
    pairs = [
        (name.replace("_vs_", " against "), *_difference(of["mer"]), _difference(of["mer_folded"])[0])
        for name, of in summary["comparisons"].items()
    ]
    others = [(arm, *(_rate(own[metric]) for metric in ERRORS)) for arm, own in held_out.items()]
    return [
        ReportTable("Participants", heads, tuple(arms)),
        ReportTable("Pairs of arms", ("pair", "MER, points", "relative", "folded, points"), tuple(pairs)),
        ReportTable("Held-out speakers", heads[:-1], tuple(others)),
    ]


def conditions(summary: RunSummary) -> str:
    """Under what the runs were made, and whom personalization harms."""
    costs, harmed = summary["costs"], summary["harmed"]
    machine = costs["machine"]
    people = len([one for one in summary["devices"].values() if not one["new_person"]])
    return (
        f"Seeds {', '.join(map(str, sorted(summary['run']['seeds'])))}; {people} participants, "
        f"{costs['rounds']} rounds of {costs['local_steps']} steps of "
        f"{costs['batch_size']}; {machine['processor']}, {machine['cores']} cores, Python {machine['python']}; "
        + ", ".join(f"{name} {version}" for name, version in costs["versions"].items())
        + f". 95 % bootstrap CI over people; * excludes zero. `personalized` harms {100 * harmed['share']:.0f} % of the participants (MER "
        "above that of `global`)."
    )


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
STORED = Path("docs/measured/demo.json")
NOT_STORED = ("curves", "by_level", "by_language", "new_people_comparisons")  # of a summary: no table has them


def carried_out(seeds: Sequence[int], finished: Sequence[Path], runs: Path, arms: str | None) -> RunSummary:
    """The pooled summary of all seeds and finished runs, which lies in ``runs`` with its report."""
    folders = [*finished]
    for seed in seeds:
        folder = runs / f"seed-{seed}"
        folders.append(folder)
        if not is_finished(folder):
            with progress_bars() as show:
                run_simulation(seed_config(seed, runs, arms), progress=show)
    pooled = pool(common_arms([read_run(folder) for folder in folders]))
    summary = summarize(pooled)
    write_summary(summary, runs / "summary.json")
    write_page(runs, summary, pooled)
    return summary


def stored(summary: RunSummary) -> str:
    """What is kept of a summary, as JSON, without the folder of the run."""
    kept: dict[str, Any] = {name: value for name, value in summary.items() if name not in NOT_STORED}
    kept["run"] = {**kept["run"], "config": {**kept["run"]["config"], "output": ""}}
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":")) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=Path("runs/personalization"))
    parser.add_argument("--finished", type=Path, nargs="*", default=[])
    parser.add_argument("--arms", default=None)
    parser.add_argument("--stored", action="store_true")
    parser.add_argument("--write", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.stored:
        summary = cast(RunSummary, json.loads(STORED.read_text(encoding="utf-8")))
    else:
        summary = carried_out(arguments.seeds, arguments.finished, arguments.runs, arguments.arms)
        if arguments.write:
            write_whole(STORED, stored(summary), mode=PUBLIC)
    print_tables(tables(summary), conditions(summary), Console())
    if arguments.write:
        write_section(arguments.write, START, END, markdown_tables(tables(summary), conditions(summary)))


if __name__ == "__main__":
    main()
