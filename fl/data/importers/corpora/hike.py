"""HiKE: read Korean-English, one Parquet file with a test split only, loanwords as a JSON string, no speakers."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from fl.data.importers.records import Importer, Record, UnusableError
from fl.data.importers.tables import ColumnNames, table_records

# The category is the topic, since who spoke is not shipped.
COLUMNS = ColumnNames(id=("sample_id",), topic=("category",), speaker=())


def mend(record: Record, row: Mapping[str, Any]) -> Record:
    """``record`` with the row's loanwords, a JSON string of a list of objects with ``Korean`` and ``English``."""
    try:
        pairs = [(str(pair["Korean"]), str(pair["English"])) for pair in json.loads(row.get("loanwords") or "[]")]
    except (ValueError, TypeError, KeyError) as error:
        fault = f"'loanwords' is not a JSON list of Korean and English ({type(error).__name__}: {error})"
        raise UnusableError(record.where, "broken loanwords", fault) from error
    kept = tuple((korean, english) for korean, english in pairs if korean.strip() and english.strip())
    return replace(record, lang=record.lang or "ko", loanwords=kept)


IMPORTER = Importer(
    title="HiKE, Korean-English, 2.2 h",
    layout="Parquet with audio inside, test split only",
    speakers="not shipped: pseudo-devices by category",
    licence="Apache-2.0",
    get="hf download thetaone-ai/HiKE --repo-type dataset --local-dir DIR --revision REVISION (it was edited after its release: pin one)",
    read=partial(table_records, names=COLUMNS, mend=mend),
)
