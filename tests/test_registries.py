"""A table of things of one kind: names that are taken, things that cannot be loaded, names that nobody knows.

That a thing of another package works, of each kind: tests/test_recipes.py.
"""

from collections.abc import Callable

import pytest

from fl.codecs.table import CODECS, make_codec
from fl.core.errors import ConfigError
from fl.metrics import METRICS
from fl.tasks.table import TASKS


def test_a_name_that_is_taken_is_refused(other_package: Callable[..., None]) -> None:
    other_package(CODECS, "from fl.codecs.entries import fp16", int8="fp16")
    with pytest.raises(ConfigError, match="'other_codecs' registers a codec 'int8', and there is one: uninstall it"):
        make_codec("int8")


@pytest.mark.parametrize(("source", "why"), [("import not_there", "not_there"), ("", "wide")])
def test_a_thing_that_cannot_be_loaded_names_its_package(
    other_package: Callable[..., None], source: str, why: str
) -> None:
    other_package(CODECS, source, wide="wide")
    with pytest.raises(ConfigError, match=rf"the codec 'wide' of package 'other_codecs' cannot be loaded \(.*{why}"):
        make_codec("fp16")


def test_every_table_names_what_is_near() -> None:
    for table, wrong, near in ((TASKS, "speach", "speech"), (CODECS, "fp61", "fp16"), (METRICS, "mmer", "mer")):
        with pytest.raises(ConfigError, match=f"did you mean '{near}'"):
            table.find(wrong)
