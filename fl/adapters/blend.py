"""The adapter that decodes for one person, out of the shared adapter and tensors that never leave the device.

A *blend* says which tensors a person has of their own, what they are before the first round, and how they and the shared
adapter (A, B of rank r for each map, no gate) become one ordinary adapter. A sum of two low-rank updates is a low-rank update
of twice the rank, ``s [B1 B2] [A1; A2]``, so every blend is an adapter like any other: it is served, saved and evaluated as such.

| blend | its own tensors, for each map | the adapter that decodes |
| --- | --- | --- |
| ``ditto``, ``pfedme`` | A', B' | A', B' |
| ``mixture`` | A', B', one weight alpha for all maps | alpha B' A' x + (1 - alpha) B A x |
| ``dual-adapter`` | A', B', a gate of 2 r numbers | B v + B' v', the 2 r numbers [v; v'] = [A x; A' x] * 2 sigma(G x + c) |
| ``interpolation`` | A', B', g, c | a(x) B' A' x + (1 - a(x)) B A x, with a(x) = sigma(g x + c) |

The last one is a ``self`` gate too: the rows of A' have the gate (g, c), those of A (-g, -c), and 2 sigma(-t) = 2 - 2 sigma(t); both
B are halved. x is one input vector of a map, a frame or a token, so the weights change with what is being said.

What builds the adapter that decodes takes the tensors of one person or, with a leading dimension, of the K people of a cohort.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fl.adapters.config import PREFIX
from fl.adapters.layer import initial_a
from fl.adapters.pairs import pair_names
from fl.adapters.split import OWN
from fl.adapters.state import State
from fl.core.errors import ConfigError

MIXING = f"{OWN}mixing"  # alpha of a mixture


def own(name: str) -> str:
    """The name of a person's own tensor beside the shared one ``name``."""
    return OWN + name


def _pairs(shared: Mapping[str, Tensor]) -> list[tuple[str, str, str]]:
    """``(map, name of A, name of B)`` for each adapted map."""
    found = pair_names({name: tuple(tensor.shape[-2:]) for name, tensor in shared.items()})
    return [(path, a, b) for path, (a, b) in found.items()]


def copied(shared: State) -> State:
    """A person's own adapter starts where the shared one is when the person first takes part."""
    return {own(name): tensor.detach().clone() for name, tensor in shared.items()}


def with_weight(shared: State, start: float) -> State:
    """A copy, and the weight of the own adapter."""
    return {**copied(shared), MIXING: torch.tensor(start)}


def beside(shared: State, seed: int) -> State:
    """A second, fresh adapter with a neutral gate over both: nothing is added to the shared one yet."""
    state: State = {}
    for path, a, b in _pairs(shared):
        rank, width = shared[a].shape
        state[own(a)] = initial_a(rank, width, seed, path).to(shared[a].dtype)
        state[own(b)] = torch.zeros_like(shared[b])
        state[own(f"{path}.{PREFIX}gate_weight")] = shared[a].new_zeros(2 * rank, width)
        state[own(f"{path}.{PREFIX}gate_bias")] = shared[a].new_zeros(2 * rank)
    return state


def with_switch(shared: State) -> State:
    """A copy of the shared adapter, and a switch at one half: the mixture is the shared adapter."""
    state = copied(shared)
    for path, a, _ in _pairs(shared):
        state[own(f"{path}.{PREFIX}gate_weight")] = shared[a].new_zeros(shared[a].shape[1])
        state[own(f"{path}.{PREFIX}gate_bias")] = shared[a].new_zeros(1)
    return state


def alone(shared: State, personal: State) -> State:
    """The own adapter, which decodes alone."""
    return {name: personal[own(name)] for name in shared}


def weighted(shared: State, personal: State) -> State:
    """Both products, weighted by the learnt weight."""
    alpha = personal[MIXING][..., None, None]
    return _stacked(shared, personal, 1 - alpha, alpha)


def _stacked(shared: State, personal: State, of_shared: Tensor | float, of_own: Tensor | float) -> State:
    """Both adapters as one of twice the rank, each B with its weight. What else the shared one has stays as it is."""
    state = dict(shared)
    for _, a, b in _pairs(shared):
        state[a] = torch.cat((shared[a], personal[own(a)]), dim=-2)
        state[b] = torch.cat((of_shared * shared[b], of_own * personal[own(b)]), dim=-1)
    return state


def gated(shared: State, personal: State) -> State:
    """Both, behind the own gate over both."""
    gates = {name.removeprefix(OWN): tensor for name, tensor in personal.items() if f"{PREFIX}gate" in name}
    return {**_stacked(shared, personal, 1.0, 1.0), **gates}


def switched(shared: State, personal: State) -> State:
    """Both, with a switch between them."""
    state = _stacked(shared, personal, 0.5, 0.5)
    for path, a, _ in _pairs(shared):
        weight, bias = (personal[own(f"{path}.{PREFIX}gate_{part}")] for part in ("weight", "bias"))
        rows = shared[a].new_ones(shared[a].shape[-2])
        signs = torch.cat((-rows, rows))
        state[f"{path}.{PREFIX}gate_weight"] = signs[:, None] * weight[..., None, :]
        state[f"{path}.{PREFIX}gate_bias"] = signs * bias
    return state


def require_room(name: str, ranks: int, shared: State) -> None:
    """Raise :class:`ConfigError` if a map is too small for the adapter that decodes, of ``ranks`` times the rank."""
    for path, a, b in _pairs(shared):
        rank, room = shared[a].shape[0], min(shared[a].shape[1], shared[b].shape[0])
        if ranks * rank > room:
            raise ConfigError(
                f"algorithm = {name!r} decodes with rank {ranks * rank}, and {path} has room for {room}: "
                f"set adapter.rank to at most {room // ranks}"
            )
