"""``idiolect audit``: train, record what devices share, and attack it: what do the updates tell the aggregator?"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fl.settings.config import RunConfig, make_config
from fl.settings.fields import words
from sim.cli.app import progress_bars
from sim.cli.options import Json, wide_console, with_settings
from sim.section import markdown_tables, page_parts, print_tables, write_section

SPLITS = "all-shared,gates,fedsa,ffa"
# The size of the page: a night on two cores. The population is larger than that of a comparison, since people are the
# sample here, and more of what they say is held out, since membership needs non-members.
FULL: dict[str, object] = {
    "output": "runs/audit",
    "gate": "self",  # beside splits without gates it audits the one with private gates
    "devices": 32,
    "new_people": 0,
    "sentences": 80,
    "test_share": 0.25,
    "validation_share": 0.0,
    "rounds": 10,
    "local_steps": 10,
}
SMOKE: dict[str, object] = {
    "output": "runs/audit-smoke",
    "devices": 4,
    "sentences": 10,
    "rounds": 3,
    "local_steps": 2,
    "sites": "decoder.self,decoder.cross",
}
SMOKE_PROTECTIONS = "plain,int8,local:0.001,local:0.1,secure-sum,noisy-sum:1"


@with_settings
def audit(
    config: RunConfig,
    splits: Annotated[str, typer.Option(help="Splits to compare.")] = SPLITS,
    protections: Annotated[str, typer.Option(help="What the server sees, see docs/audit.md.", show_default=False)] = "",
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="A few minutes: that it runs."),
    ] = False,
    write: Annotated[Path | None, typer.Option(help="Markdown page whose section is to be replaced.")] = None,
    as_json: Json = False,
    start: Any = FULL,
) -> None:
    """Measure what shared updates leak: speakers linked between rounds, attributes, and which utterances were trained on.

    Trains once for each split and attacks the recorded updates as they are and under each protection. An audit that was
    stopped resumes when it is started again. docs/audit.md explains the attackers and what the figures do not show.
    """
    from fl.privacy.audit.views import DEFAULT  # Flower and torch
    from sim.audit.report import END, START, conditions_text, tables
    from sim.audit.run import run_audit, with_sizes

    if smoke:
        config = with_sizes(config, SMOKE, make_config(FULL))
    chosen = protections or (SMOKE_PROTECTIONS if smoke else DEFAULT)
    wanted, shown = (tuple(dict.fromkeys(words(text))) for text in (splits, chosen))
    if write is not None:
        page_parts(write, START, END)  # now, not after hours of training
    with progress_bars(as_json) as show:
        document = run_audit(config, wanted, shown, show)
    if write is not None:
        write_section(write, START, END, markdown_tables(tables(document), conditions_text(document)))
    if as_json:
        print(json.dumps(document, ensure_ascii=False))
    else:
        print_tables(tables(document), conditions_text(document), wide_console(130))
