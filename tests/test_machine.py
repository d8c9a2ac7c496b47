"""Memory that training freed goes back to the system when it is asked for."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
from fl.core.machine import return_free_memory
def own():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
blocks = [bytearray(50_000) for _ in range(4_000)]  # 200 MB in blocks that the C library keeps when they are freed
last = bytearray(50_000)
full = own()
del blocks
assert return_free_memory()
print(full - own())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_freed_activations_do_not_stay_with_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150_000_000
