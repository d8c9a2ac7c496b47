"""Memory that a computation may use, from what is free now."""

from __future__ import annotations

import psutil
import torch

SHARE = 0.5  # of the free memory: an estimate may be off, and others want some too


def budget_bytes(device: torch.device, parallel: int = 1) -> int:
    """Bytes that one of ``parallel`` computations on this machine may plan with, on its GPU or in main memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(SHARE * free)
    return int(SHARE * psutil.virtual_memory().available / max(1, parallel))
