"""How fuzz tests draw, and the row that ``make fuzz`` leaves of them. ``IDIOLECT_FUZZ=500`` draws 500 examples for each test."""

import os
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("IDIOLECT_FUZZ", "20"))
SEED = 18
drawn: Counter[str] = Counter()


def fuzz(test: Callable[..., None]) -> Callable[..., None]:
    """Draw for a test that was decorated by ``given``: the same examples each time."""
    allowed = settings(max_examples=EXAMPLES, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    return seed(SEED)(allowed(test))


@st.composite
def damaged(draw: st.DrawFn, data: bytes, changes: int = 4) -> bytes:
    """``data`` with up to so many bytes set, numbers overwritten, parts deleted, doubled or cut off."""
    blob = bytearray(data)
    for _ in range(draw(st.integers(1, changes))):
        place = draw(st.integers(0, max(0, len(blob) - 1)))
        some = draw(st.integers(1, 64))
        kind = draw(st.sampled_from(["set", "number", "insert", "delete", "double", "cut"]))
        if kind == "set":
            blob[place : place + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "number":  # counts, sizes and offsets of either byte order
            width = draw(st.sampled_from([2, 4, 8]))
            value = draw(st.sampled_from([0, 1, 2**15, 2**31 - 1, 2**31, 2**63 - 1])) % 256**width
            blob[place : place + width] = value.to_bytes(width, draw(st.sampled_from(["little", "big"])))
        elif kind == "insert":
            blob[place:place] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "delete":
            del blob[place : place + some]
        elif kind == "double":
            blob[place:place] = blob[place : place + some]
        else:
            del blob[place + 1 :]
    return bytes(blob)


@pytest.fixture(autouse=True)
def _count(request: pytest.FixtureRequest) -> None:
    drawn[request.node.nodeid] = EXAMPLES


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keep the row of ``make fuzz`` for docs/reliability.md."""
    if "IDIOLECT_FUZZ_ROW" not in os.environ or not drawn:
        return
    from benchmarks.reliability import InjectionRow, store

    times, lost = sum(drawn.values()), session.testsfailed
    what = "damaged or invented replies, blobs, headers, audio, archives and tables, to whatever reads them"
    detail = (
        "Everything was read, refused by a typed error, or accepted as exactly what was agreed; a parser that crashed did so apart. "
        "A crash, another error or a wrong acceptance counts as lost"
    )
    store(InjectionRow("fuzz", what, times, times - lost, lost, (SEED,), "make fuzz", detail))
