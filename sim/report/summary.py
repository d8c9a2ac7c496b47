"""summary.json: everything the report says, as numbers. Built from one run folder or from several seeds of one run."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

from fl.core.errors import RunError
from fl.core.printing import first_of
from fl.core.rng import derive_seed
from fl.metrics.intervals import SAMPLES
from fl.runs.files import RunFiles, write_whole
from fl.runs.schema import SCHEMA, ResultRow
from fl.settings.names import ARMS
from sim.report.enrolment import enrolment_curve
from sim.report.scoring import (
    PooledRate,
    ScoredRow,
    by_device,
    by_metric,
    compare,
    grouped,
    intervals,
    kind_of_run,
    metrics_of,
    pooled,
    score,
    worst_tenth,
)

COMPARISONS = (
    ("personalized", "global"),
    ("personalized", "local"),
    ("personalized", "global+finetune"),
    ("personalized", "centralized"),
    ("personalized", "zero-shot"),
    ("neutral", "global"),
    ("neutral", "zero-shot"),
    ("global+finetune", "global"),
    ("global", "local"),
    ("global", "centralized"),
)
_SAME_SETTINGS = ("base", "rounds", "local_steps", "batch_size")


class DeviceSummary(TypedDict):
    """One person: every arm's pooled rates over their test utterances."""

    new_person: bool
    utterances: int
    arms: dict[str, dict[str, PooledRate]]


class RunSummary(TypedDict):
    """The content of summary.json, see :func:`summarize`."""

    schema: int
    arms: dict[str, dict[str, dict[str, Any]]]
    comparisons: dict[str, dict[str, dict[str, Any]]]
    devices: dict[str, DeviceSummary]
    worst_tenth: dict[str, dict[str, float | None]]
    harmed: dict[str, Any]
    new_people: dict[str, dict[str, dict[str, Any]]]
    new_people_comparisons: dict[str, dict[str, dict[str, Any]]]
    by_level: dict[str, dict[str, dict[str, PooledRate]]]
    by_language: dict[str, dict[str, PooledRate]]
    curves: dict[str, list[dict[str, Any]]]
    enrolment: dict[str, Any]
    costs: dict[str, Any]
    left_out: dict[str, Any]
    run: dict[str, Any]


def pool(runs: Sequence[RunFiles]) -> list[RunFiles]:
    """The runs, their devices renamed to ``seed<k>/<device>`` where there are several; checked to belong together."""
    if not runs:
        raise RunError("no run folder given: name at least one, such as runs/demo")
    if len(runs) == 1:
        return list(runs)
    first = runs[0]
    for index, run in enumerate(runs[1:], 1):
        if run.task != first.task:
            raise RunError(
                f"{run.folder} and {first.folder} cannot be pooled: the tasks are {run.task!r} and {first.task!r}"
            )
        for name in _SAME_SETTINGS:
            own, others = getattr(run.costs, name), getattr(first.costs, name)
            if own != others:
                raise RunError(
                    f"{run.folder} and {first.folder} cannot be pooled: {name} is {own!r} and {others!r}; "
                    "pool seeds of one configuration only"
                )
        twin = next((other for other in runs[:index] if other.seed == run.seed), None)
        if twin is not None:
            raise RunError(f"{run.folder} and {twin.folder} both have seed {run.seed}; pool each seed once")
    return [run.renamed(f"seed{run.seed}/") for run in runs]


def summarize(runs: Sequence[RunFiles], *, samples: int = SAMPLES) -> RunSummary:
    """The summary of one run, or of several that :func:`pool` has put side by side.

    ``arms``, ``comparisons``, ``worst_tenth``, ``by_level`` and ``by_language`` cover the devices that took part, held-out
    people stand apart. Of a run that is not finished there is what it has so far, and ``costs`` is empty.
    All rates are summed errors over summed reference. Comparisons are named ``a_vs_b`` and hold
    the fields of :class:`fl.metrics.intervals.PairedDifference` by metric, negative where a makes fewer errors. The result depends on
    the files alone: a second call gives the same. Raises :class:`RunError` where arms do not cover the same utterances.
    """
    task = runs[0].task
    scored = score([row for run in runs for row in run.transcripts], task)
    taking_part = _by_arm(each for each in scored if not each.row.new_person)
    held_out = _by_arm(each for each in scored if each.row.new_person)
    seed = derive_seed(*(run.seed for run in runs), "report")
    devices = _devices(scored)
    return {
        "schema": SCHEMA,
        "arms": {arm: intervals(rows, seed, samples) for arm, rows in taking_part.items()},
        "comparisons": _comparisons(taking_part, seed, samples),
        "devices": devices,
        "worst_tenth": {
            arm: {metric: worst_tenth(rows, metric) for metric in metrics_of(rows)} for arm, rows in taking_part.items()
        },
        "harmed": _harmed(devices, kind_of_run(task).main),
        "new_people": {arm: intervals(rows, seed, samples) for arm, rows in held_out.items()},
        "new_people_comparisons": _comparisons(held_out, seed, samples),
        "by_level": {arm: _by_level(rows) for arm, rows in taking_part.items()},
        "by_language": {arm: _by_language(rows) for arm, rows in taking_part.items()},
        "curves": _curves(row for run in runs for row in run.results),
        "enrolment": enrolment_curve(runs, kind_of_run(task).main, samples),
        "costs": {} if runs[0].final is None else _costs(runs),
        "left_out": _left_out(runs, devices),
        "run": _run(runs, devices, scored, samples),
    }


def write_summary(summary: RunSummary, path: Path) -> None:
    """``summary`` as JSON, written beside ``path``, synced and renamed: never half a file."""
    text = json.dumps(summary, ensure_ascii=False, indent=1, allow_nan=False)
    write_whole(path, text + "\n")


def _by_arm(scored: Iterable[ScoredRow]) -> dict[str, list[ScoredRow]]:
    groups = grouped(scored, lambda row: row.arm)
    return {arm: groups[arm] for arm in ARMS if arm in groups}


def _comparisons(
    arms: Mapping[str, Sequence[ScoredRow]], seed: int, samples: int
) -> dict[str, dict[str, dict[str, Any]]]:
    return {f"{a}_vs_{b}": compare(arms[a], arms[b], seed, samples) for a, b in COMPARISONS if a in arms and b in arms}


def _devices(scored: Sequence[ScoredRow]) -> dict[str, DeviceSummary]:
    return {
        device: {
            "new_person": rows[0].row.new_person,
            "utterances": len({each.utterance for each in rows}),
            "arms": {arm: by_metric(own) for arm, own in _by_arm(rows).items()},
        }
        for device, rows in by_device(scored).items()
    }


def _harmed(devices: Mapping[str, DeviceSummary], metric: str) -> dict[str, Any]:
    """Devices that took part whose personalized model makes more errors than the global one by the main metric."""
    judged = {
        name: device["arms"]
        for name, device in devices.items()
        if not device["new_person"] and {"personalized", "global"} <= device["arms"].keys()
    }
    harmed = [
        name
        for name, arms in judged.items()
        if arms["personalized"][metric]["errors"] > arms["global"][metric]["errors"]
    ]
    return {"share": len(harmed) / len(judged) if judged else None, "devices": harmed, "of": len(judged)}


def _by_level(scored: Sequence[ScoredRow]) -> dict[str, dict[str, PooledRate]]:
    levels = grouped(scored, lambda row: row.level)
    order = {"word": 0, "phrase": 1, "sentence": 2}
    return {level: by_metric(levels[level]) for level in sorted(levels, key=lambda name: (order.get(name, 3), name))}


def _by_language(scored: Sequence[ScoredRow]) -> dict[str, PooledRate]:
    languages = sorted({language for each in scored for language in each.by_language})
    return {
        language: pooled(each.by_language[language] for each in scored if language in each.by_language)
        for language in languages
    }


def _curves(rows: Iterable[ResultRow]) -> dict[str, list[dict[str, Any]]]:
    """Pooled validation rates of the devices that took part, by arm and round."""
    points: dict[tuple[str, int], list[ResultRow]] = defaultdict(list)
    for row in rows:
        if row.split == "validation" and not row.new_person:
            points[row.arm, row.round].append(row)
    curves: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS if any(arm == key[0] for key in points)}
    for arm, number in sorted(points):
        own = points[arm, number]
        scored = [row for row in own if row.metrics]  # the virtual device of all data trains and is not evaluated
        names = [name for name in scored[0].metrics if all(name in row.metrics for row in scored)] if scored else []
        rates = {name: pooled(row.metrics[name] for row in scored)["rate"] for name in names}
        losses = [row.train_loss for row in own if row.train_loss is not None]
        curves[arm].append(
            {"round": number, **rates, "train_loss": math.fsum(losses) / len(losses) if losses else None}
        )
    return curves


def _costs(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """costs.json of the first run, with the mean seconds over all runs and the sizes set against each other."""
    costs = asdict(runs[0].costs)
    del costs["schema"]
    timed = {arm for run in runs for arm in run.costs.seconds}
    arms = [*(arm for arm in ARMS if arm in timed), *sorted(timed.difference(ARMS))]
    costs["seconds"] = {arm: _mean(run.costs.seconds.get(arm) for run in runs) for arm in arms}
    for name in ("bytes_up_per_device_round", "bytes_down_per_device_round"):
        costs[name] = _mean(getattr(run.costs, name) for run in runs)
    costs["arms"] = {arm: _arm_costs(arm, runs) for arm in arms}
    costs["adapter_share_of_base"] = costs["adapter_bytes"] / costs["base_bytes"] if costs["base_bytes"] else None
    costs["bytes_up_per_device"] = costs["bytes_up_per_device_round"] * costs["rounds"]
    costs["bytes_down_per_device"] = costs["bytes_down_per_device_round"] * costs["rounds"]
    return costs


def _arm_costs(arm: str, runs: Sequence[RunFiles]) -> dict[str, Any]:
    """One arm's sizes as costs.json has them, and over all runs the bytes, the devices' own seconds and the seconds of speech.

    ``seconds_evaluate`` are those of the final evaluation, and ``audio_per_second`` how much speech was decoded in one of them.
    Seconds of training and bytes are those that ``results.jsonl`` has: of rounds and devices with a row.
    """
    own = [(row, run) for run in runs for row in run.results if row.arm == arm]
    last = {run.seed: max((row.round for row in run.results if row.arm == arm), default=0) for run in runs}
    final = [
        row.seconds_evaluate
        for row, run in own
        if row.round == last[run.seed] and row.split == run.config.get("federation", {}).get("final-split", "test")
    ]
    audio = math.fsum(row.seconds_audio for run in runs for row in run.transcripts if row.arm == arm)
    evaluating = math.fsum(final)
    return {
        **(asdict(sizes) if (sizes := runs[0].costs.arms.get(arm)) else {}),
        "bytes_up": sum(row.bytes_up for row, _ in own if row.steps),
        "bytes_down": sum(row.bytes_down for row, _ in own if row.steps),
        "seconds_train": round(math.fsum(row.seconds_train for row, _ in own), 3),
        "seconds_evaluate": round(evaluating, 3),
        "seconds_audio": round(audio, 3),
        "audio_per_second": round(audio / evaluating, 3) if evaluating else None,
    }


def _left_out(runs: Sequence[RunFiles], devices: Mapping[str, DeviceSummary]) -> dict[str, Any]:
    """Examples that could not be used: how many of whom, the first of them with their reasons, and whom nothing is left of."""
    rows = [row for run in runs for row in run.left_out]
    counts = dict(Counter(row.device for row in rows))
    trained = {row.device for run in runs for row in run.results}
    nothing = sorted(counts.keys() - devices.keys() - trained)
    return {"examples": len(rows), "devices": counts, "first": first_of(rows), "nothing_left_of": nothing}


def _mean(values: Iterable[float | None]) -> float:
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present)


def _run(
    runs: Sequence[RunFiles], devices: Mapping[str, DeviceSummary], scored: Sequence[ScoredRow], samples: int
) -> dict[str, Any]:
    """What was run: names of the folders, seeds, sizes, languages, settings; the task with its metrics and words for it.

    ``so_far`` is empty for a finished run: else the arms that it was to have, those that are evaluated, and the last round of each.
    """
    held_out = sum(device["new_person"] for device in devices.values())
    final, config = runs[0].final, runs[0].config
    trained: dict[str, set[str]] = defaultdict(set)  # by arm; "centralized" has one device for all
    for row in runs[0].results:
        trained[row.arm].add(row.device)
    utterances = {each.utterance: each.row for each in scored}
    kind = kind_of_run(runs[0].task)
    spoken = {language for row in utterances.values() for _, language in row.spans}
    return {
        "names": [run.folder.resolve().name for run in runs],
        "seeds": [run.seed for run in runs],
        "devices": len(devices) - held_out if devices else max(map(len, trained.values()), default=0),
        "new_people": held_out,
        "test_utterances": len(utterances),
        "test_seconds": round(math.fsum(row.seconds_audio for row in utterances.values()), 3),
        "languages": sorted(spoken),
        "base": final.base if final else str(config.get("base", {}).get("name", "a base")),
        "rounds": final.rounds if final else int(config.get("federation", {}).get("rounds", 0)),
        "so_far": {} if final else _so_far(runs[0]),
        "bootstrap_samples": samples,
        "task": runs[0].task,
        "main_metric": kind.main,
        "measures": {name: asdict(measure) for name, measure in kind.measures.items()},
        "words": {"field": kind.field, "model": kind.model, "example": kind.example, "person": kind.person},
        "config": json.loads(json.dumps(runs[0].config, default=str)),
    }


def _so_far(run: RunFiles) -> dict[str, Any]:
    """How far a run that is not finished has come."""
    planned = str(run.config.get("federation", {}).get("arms", "")).split(",")
    rounds: dict[str, int] = defaultdict(int)
    for row in run.results:
        rounds[row.arm] = max(rounds[row.arm], row.round)
    evaluated = {row.arm for row in run.transcripts}
    return {"arms": planned, "evaluated": [arm for arm in planned if arm in evaluated], "rounds": dict(rounds)}
