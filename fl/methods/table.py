"""Every method of adaptation by name. A new one is an :class:`fl.methods.base.Adaptation` in a file of its own, and one line here.

Other people's packages register a :class:`Method` under the entry points ``idiolect.methods``. Loads without torch.
"""

from fl.adapters.gates.table import SCALAR
from fl.core.registry import Registry
from fl.methods.base import Method

_LORA = "fl.methods.lora:LORA"
_ALL = (
    Method("gated-lora", _LORA, low_rank=True, own_gate=None),
    Method("lora", _LORA, low_rank=True),
    Method("scalar-gate", _LORA, low_rank=True, own_gate=SCALAR.name),
    Method("dora", "fl.methods.lora:DORA"),
    Method("bottleneck", "fl.methods.bottleneck:BOTTLENECK"),
    Method("prefix", "fl.methods.prefix:PREFIX"),
    Method("bitfit", "fl.methods.whole:BITFIT", sized=False),
    Method("full", "fl.methods.whole:FULL", sized=False, whole=True),
    Method("scratch", "fl.methods.whole:SCRATCH", sized=False, whole=True),
)
METHODS: Registry[Method] = Registry("method", {method.name: method for method in _ALL})
