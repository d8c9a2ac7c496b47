"""What a machine is called beside a figure, and that memory which training freed goes back when it is asked for."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fl.core.machine import installed_versions, machine

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


def test_a_gpu_is_named_where_the_process_computes_on_it(monkeypatch) -> None:
    assert "gpu" not in machine()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert machine()["gpu"] == "a GPU"


def test_versions_are_those_of_what_is_installed() -> None:
    assert list(installed_versions("torch", "no-such-package")) == ["torch"]
