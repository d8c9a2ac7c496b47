"""A person's private part: where its enrolment starts, what it comes to, and how it is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from clients.training.enrol_method import EnrolMethod
from clients.training.prior import Prior
from fl.adapters.gates.table import GATES, NONE
from fl.adapters.layer import initial_a
from fl.adapters.pairs import pair_names
from fl.adapters.split import Split, in_part
from fl.adapters.stacked import Slot
from fl.adapters.state import State, module_of, part_of, tensor_name
from fl.algorithms.personal.enrolment import fitting_part
from fl.core.errors import AdapterError, ConfigError, SplitError
from fl.core.rng import derive_seed
from fl.packed.blob import quantized, restored

PULL = 0.2  # of the way to the directions of an adapter that has any, in a step (docs/results/enrol.md)
FEW = 5  # sentences for which it was searched


@dataclass(frozen=True)
class Adapter:
    """An adapter that people start from: what it is, its tensors, and the ``directions`` in which participants' updates differed,
    (directions, numbers) by tensor, where it has any."""

    slot: Slot
    state: State
    directions: State = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """Where everybody's enrolment by a method starts: the shared adapter with what the method adds, which tensors train, and what is
    known beforehand of where they go."""

    method: EnrolMethod
    slot: Slot
    state: State
    split: Split
    frozen: State = field(default_factory=dict)  # ones at the numbers of private tensors that do not train
    prior: Prior = field(default_factory=Prior)

    @classmethod
    def of(cls, shared: Adapter, method: EnrolMethod, *, seed: int) -> "Start":
        """The start from ``shared``, drawn to its directions where they are of what ``method`` trains.

        Raises :class:`SplitError` where ``method`` trains nothing of it, :class:`AdapterError` for directions of another adapter.
        """
        slot, state = shared.slot, dict(shared.state)
        frozen: State = {}
        if method.gate != slot.gate and method.gate != NONE.name:
            if slot.gate != NONE.name:
                raise ConfigError(f"the adapter has {slot.gate!r} gates, and the method trains {method.gate!r}")
            slot = replace(slot, gate=method.gate)
            state |= _fresh_gates(state, slot)
        if method.beside:
            state, frozen = _beside(state, slot, method.beside, seed)
            slot = replace(slot, rank=slot.rank + method.beside)
        part = fitting_part(method.part, state)
        chosen = in_part(part)
        private = tuple(name for name in sorted(state) if chosen(name))
        if not private:
            raise SplitError(f"part {part!r} matches no tensor: names look like {next(iter(state), '(none)')!r}")
        fixed = tuple(name for name in sorted(state) if not chosen(name))
        prior = Prior()
        if shared.directions.keys() == {*private}:
            _require_fit(shared.directions, state)
            prior = Prior(directions=shared.directions)
            method = replace(method, shrinkage=PULL / method.rate if method.rate else 0.0, few=FEW)
        return cls(method, slot, state, Split(part, (), private, fixed), frozen, prior)

    @property
    def numbers(self) -> int:
        """Private numbers of a person."""
        private = sum(self.state[name].numel() for name in self.split.private)
        return private - sum(int(self.frozen[n].sum()) for n in self.split.private if n in self.frozen)


@dataclass(frozen=True)
class Enrolment:
    """A person's private tensors after ``steps``, the left-out loss in nats a label by steps (none for one example), its cost.

    ``unseen``, where it was asked for, are the examples that each fold leaves out, by their places, and its tensors after ``steps``;
    ``private`` is their mean.
    """

    private: State
    steps: int
    curve: Mapping[int, float]
    seconds: float
    unseen: Sequence[tuple[frozenset[int], State]] = ()


def kept(private: State) -> tuple[State, int]:
    """A person's private tensors as they are kept, in int8 with a scale for each row, and the bytes of that."""
    stored = quantized({name: tensor.numpy() for name, tensor in private.items()})
    values = {name: torch.from_numpy(array) for name, array in restored(stored).items()}
    return values, sum(array.nbytes for array in stored.values())


def _require_fit(directions: State, state: State) -> None:
    """Raise :class:`AdapterError` unless ``directions`` are of the tensors of ``state``, all of them of as many."""
    counts = {len(rows) for rows in directions.values()}
    odd = next((n for n, rows in directions.items() if rows.ndim != 2 or rows.shape[1] != state[n].numel()), "")
    if odd or len(counts) != 1:
        raise AdapterError(
            f"the directions beside the adapter are not of it ({odd or f'{sorted(counts)} of its tensors'}): get both again, or "
            "remove the directions to enrol without"
        )


def _fresh_gates(state: State, slot: Slot) -> State:
    """Neutral gates for every adapted map."""
    gates: State = {}
    for a, b in pair_names({name: tuple(tensor.shape) for name, tensor in state.items()}).values():
        shapes = GATES[slot.gate].shapes(state[a].shape[1], state[b].shape[0], slot.rank)
        module = module_of(a)
        gates |= {tensor_name(module, what): torch.zeros(s) for what, s in shapes.items() if what not in ("A", "B")}
    return gates


def _beside(state: State, slot: Slot, rank: int, seed: int) -> tuple[State, State]:
    """The adapter with ``rank`` further coordinates, A as LoRA draws it and B zero, and ones at all numbers but theirs."""
    if GATES[slot.gate].ranked:
        raise ConfigError(f"beside an adapter with {slot.gate!r} gates, one for each coordinate, no other can lie")
    wider, frozen = dict(state), {}
    for name, tensor in state.items():
        if (kind := part_of(name)) == "A":
            fresh = initial_a(rank, tensor.shape[1], derive_seed(seed, "beside"), module_of(name)).to(tensor)
        elif kind == "B":
            fresh = tensor.new_zeros(tensor.shape[0], rank)
        else:
            continue
        axis = 0 if kind == "A" else 1
        wider[name] = torch.cat((tensor, fresh), axis)
        frozen[name] = torch.cat((torch.ones_like(tensor), torch.zeros_like(fresh)), axis)
    return wider, frozen
