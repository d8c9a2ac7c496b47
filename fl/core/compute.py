"""Where the base computes and in which precision: what the machine has decides, unless a setting says otherwise."""

from contextlib import AbstractContextManager, nullcontext

import torch

from fl.core.errors import ConfigError

AUTO, CPU, CUDA = "auto", "cpu", "cuda"


def choose_device(name: str = AUTO) -> torch.device:
    """The device of a setting: ``auto`` takes a CUDA GPU if there is one. :class:`ConfigError` for a GPU that is not there."""
    if name == CPU or (name == AUTO and not torch.cuda.is_available()):
        return torch.device(CPU)
    if not torch.cuda.is_available():
        raise ConfigError(
            "compute = 'cuda', but torch sees no GPU here: use auto or cpu, or install a CUDA build of torch"
        )
    return torch.device(CUDA, torch.cuda.current_device())


def precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast to bfloat16 on a GPU that has it; float32 elsewhere.

    On a CPU without matrix units for it bfloat16 is three times slower, and the CPU is the reference of every test.
    Adapters, their gradients and the optimizer stay float32 on both.
    """
    if device.type == CUDA and torch.cuda.is_bf16_supported():
        return torch.autocast(CUDA, dtype=torch.bfloat16)
    return nullcontext()
