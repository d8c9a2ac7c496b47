"""Where the base computes and in which precision: what the machine has decides, unless a setting says otherwise.

bf16 has float32's range with 8 bits of mantissa. Frozen weights and activations are in it; adapters, their gradients, the optimizer
and losses are float32 always. float32 on a CPU is the reference of every test.
"""

from contextlib import AbstractContextManager, nullcontext

import torch

from fl.core.errors import ConfigError
from fl.core.machine import has_matrix_tiles

AUTO, CPU, CUDA = "auto", "cpu", "cuda"
FLOAT32, BF16 = "float32", "bf16"
DTYPES = {FLOAT32: torch.float32, BF16: torch.bfloat16}


def choose_device(name: str = AUTO) -> torch.device:
    """The device of a setting: ``auto`` takes a CUDA GPU if there is one. :class:`ConfigError` for a GPU that is not there."""
    if name == CPU or (name == AUTO and not torch.cuda.is_available()):
        return torch.device(CPU)
    if not torch.cuda.is_available():
        raise ConfigError(
            "compute = 'cuda', but torch sees no GPU here: use auto or cpu, or install a CUDA build of torch"
        )
    # cuDNN's attention makes a plan for each new shape, and batches of speech have ever new ones: the first steps of a cohort took
    # 2.6 s each with it and 0.9 without (H100, docs/performance.md).
    torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device(CUDA, torch.cuda.current_device())


def bf16_pays(device: torch.device) -> bool:
    """Whether bf16 is faster than float32: on a GPU that has it, and on a processor with AMX tiles.

    Not with AVX-512's bf16 instructions alone: there matrix products have about half the rate of float32 (docs/performance.md).
    """
    return torch.cuda.is_bf16_supported() if device.type == CUDA else has_matrix_tiles()


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The type of frozen weights under a setting of the precision. Raises :class:`ConfigError` for an unknown one."""
    chosen = choose_precision(name, device)
    if chosen not in DTYPES:
        raise ConfigError(f"precision = {name!r} is unknown: one of {AUTO}, {', '.join(DTYPES)}")
    return DTYPES[chosen]


def choose_precision(name: str, device: torch.device) -> str:
    """The precision of a setting: ``auto`` takes bf16 where it pays."""
    if name == AUTO:
        return BF16 if bf16_pays(device) else FLOAT32
    return name


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Products in ``precision`` of weights that are float32: where the weights themselves are trained."""
    return nullcontext() if precision == FLOAT32 else torch.autocast(device.type, dtype=DTYPES[precision])
