"""Giving memory back: what a training step freed is still the process's own until the C library is asked to return it."""

import ctypes
import gc
from functools import lru_cache


@lru_cache(maxsize=1)
def _trim() -> "ctypes._NamedFuncPointer | None":
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):  # not glibc
        return None


def return_free_memory() -> bool:
    """Return free heap pages to the system (glibc's ``malloc_trim``); False where the C library cannot.

    Freed activations are several hundred MiB after a training step, and each worker process of a machine keeps its own.
    Worth calling when a message is done, not between steps: the next step takes the pages again, one fault each.
    """
    gc.collect(0)
    trim = _trim()
    return trim is not None and bool(trim(0) in (0, 1))
