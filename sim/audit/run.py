"""The audit itself: train once for each split, then protect and attack the same recorded updates in every way.

All of it lies in one folder: a run folder for each split, with its recorded updates, and ``rows.jsonl`` with a line for each
pair of split and protection that is done, so that an audit that was stopped resumes there.
"""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fl import __version__
from fl.algorithms.arms import trained_arm
from fl.core.machine import machine
from fl.privacy.audit import inference, linkage
from fl.privacy.audit.attackers import CONFIDENCE, SAMPLES, AuditError, check_people
from fl.privacy.audit.views import make_protection
from fl.runs.files import write_whole
from fl.runs.folder import run_folder
from fl.runs.progress import Progress
from fl.settings.config import RunConfig, find_key, flat, make_config
from fl.settings.names import EDGE, LAYERS_PREFIX, NONE
from fl.settings.tables import CodecTable, PrivacyTable
from fl.tasks.table import TASKS
from sim.audit.record import ARM, federated_rounds, split_config
from sim.audit.split import ADAPTER_ROW, BASE_ROW, AuditRows, Document, SplitAudit

ROWS_NAME, RESULT_NAME = "rows.jsonl", "audit.json"


def check_audit(config: RunConfig, splits: Sequence[str], protections: Sequence[str]) -> None:
    """Raise :class:`AuditError` for what cannot be audited. ``config`` holds everything but the splits, each of which is one run."""
    for name in protections:
        make_protection(name)
    if not splits or not protections:
        raise AuditError("nothing to audit: name at least one split and one protection")
    odd = [split for split in splits if split.startswith(LAYERS_PREFIX) and "," in split]
    if odd:
        raise AuditError(f"split {odd[0]!r} has a comma, which separates splits: write the pattern without one")
    protects = (config.privacy, config.codec) != (PrivacyTable(), CodecTable())
    changed = protects or config.federation.aggregation == EDGE or config.attack.name != NONE
    if changed:
        raise AuditError(
            "the audit protects and attacks plain updates itself: leave out dp, secure-sum, codec and the other settings "
            "of privacy, aggregation = 'edge' and attack"
        )
    if not config.data.manifest and TASKS[config.task].takes_manifest:
        check_people(config.data.devices, "an audit")
    if federated_rounds(config) < 2:
        rounds = config.federation.rounds
        raise AuditError(f"rounds = {rounds} leaves one round with shared updates: give at least 3")
    for split in splits:
        arm = trained_arm(ARM, split_config(config, split, Path()))  # refuses a gate or pattern that does not fit
        if arm is None or not arm.federates:
            raise AuditError(f"split {split!r} shares nothing, so there is nothing to attack: leave it out")


def run_audit(
    config: RunConfig, splits: Sequence[str], protections: Sequence[str], progress: Progress = lambda *_: None
) -> Document:
    """All rows and the conditions under which they were measured; both are in the audit's folder too."""
    check_audit(config, splits, protections)
    config = run_folder(config, 0)  # absolute; refuses a folder that was made with other settings
    folder = Path(config.output)
    rows = AuditRows(folder / ROWS_NAME)
    shared: list[Document] = []
    facts: Document = {}
    for split in splits:
        one = SplitAudit(config, split, progress)
        shared.append(one.audit(rows, protections))
        facts = one.facts
    wanted = [(split, name) for split in ("", *splits) for name in (BASE_ROW, *protections, ADAPTER_ROW)]
    document = {
        "schema": 1,
        "conditions": _conditions(config, facts),
        "splits": shared,
        "rows": [rows.found[key] for key in wanted if key in rows.found],
    }
    write_whole(folder / RESULT_NAME, json.dumps(document, ensure_ascii=False, indent=1) + "\n")
    return document


def _conditions(config: RunConfig, facts: Document) -> Document:
    train = config.train
    return {
        "base": config.base.name,
        "gate": config.gate,
        "rank": config.adapter.rank,
        "sites": config.adapter.sites,
        "rounds": federated_rounds(config),
        "local_steps": train.local_steps,
        "batch_size": train.batch_size,
        "learning_rate": train.learning_rate,
        "seed": config.seed,
        "data_seed": config.data_seed,
        "data": config.data.manifest or f"synthetic {config.data.synthetic.pair}",
        **facts,
        "bootstrap": SAMPLES,
        "permutations": f"{linkage.PERMUTATIONS} to {inference.SHUFFLED_PEOPLE}",
        "confidence": CONFIDENCE,
        "machine": machine(),
        "versions": {"idiolect-fl": __version__, **{n: version(n) for n in ("flwr", "numpy", "torch", "transformers")}},
    }


def with_sizes(config: RunConfig, smaller: dict[str, Any], start: RunConfig) -> RunConfig:
    """``config`` with the values of ``smaller`` wherever it still has that of ``start``: what was chosen by hand stays."""
    before, now = flat(start), flat(config)
    keys = {find_key(key): value for key, value in smaller.items()}
    return make_config({key: value for key, value in keys.items() if before[key] == now[key]}, config)
