"""Many adapters on one frozen model at once: row i of a batch uses adapter ``index[i]``.

The same code trains a cohort of K devices in one computation and serves K people in one batch. A :class:`StackedAdapters`
holds the tensors of K adapters (*slots*) with a leading dimension of K; a :class:`StackedModel` is a frozen model whose
targeted linear maps add the update of each row's own slot, with the formulas of :mod:`fl.adapters.gates`.

Ranks may differ between slots: all are padded with zeros to the largest. The padding stays zero in training, since the
gradient of a padded entry has a padded entry as a factor. Gates may differ too. A tensor with a leading dimension of 1
is the same for all slots and is never copied for the rows.

Which rows are active is held in a context variable for the length of a ``with`` block: an exception cannot leave it behind,
and another thread, which has a context of its own, never sees it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Protocol

import torch
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn
from torch.nn import functional

from fl.adapters.config import GatedLoraConfig
from fl.adapters.gates.base import FROZEN, OUTPUT, RANK, AdapterPath, Gate
from fl.adapters.gates.table import GATES
from fl.adapters.split import tensor_kind
from fl.adapters.state import State, module_of, part_of, tensor_name
from fl.core.errors import AdapterError, AdapterMismatchError

BASE = -1  # slot of a row without an adapter


@dataclass(frozen=True)
class Slot:
    """What one adapter is, beside its tensors."""

    rank: int
    scaling: float
    gate: str

    @classmethod
    def of(cls, config: GatedLoraConfig) -> Slot:
        """The slot of an adapter with this configuration."""
        return cls(config.r, config.scaling, config.gate)


def cut(name: str, slot: Slot) -> tuple[slice, ...]:
    """The part of a padded tensor that belongs to a slot of its rank."""
    dimensions = GATES[slot.gate].dimensions[part_of(name)]
    return tuple(slice(0, slot.rank) if d == RANK else slice(None) for d in dimensions)


@dataclass(frozen=True)
class StackedAdapters:
    """K adapters. ``factors`` are A (K or 1, R, d_in) and B (K or 1, d_out, R) by name, ``gates`` the gate tensors by kind.

    The gate tensors of a kind have a leading dimension of 1 or of the number of slots with that kind, in slot order.
    """

    slots: tuple[Slot, ...]
    factors: Mapping[str, Tensor]
    gates: Mapping[str, Mapping[str, Tensor]]

    @classmethod
    def from_states(
        cls, slots: Sequence[Slot], states: Sequence[State], shared: State | None = None
    ) -> StackedAdapters:
        """Stack ``states`` (one for each slot) and, for all slots, the tensors of ``shared``, which are not copied.

        A module that a state lacks stays unadapted in its slot. Raises :class:`AdapterMismatchError` for tensors that are
        not those of one model, or a shared tensor whose rank is not that of every slot.
        """
        if not slots or len(slots) != len(states):
            raise AdapterError(
                f"{len(slots)} slots with {len(states)} states: give one state for each of at least one slot"
            )
        rank = max(slot.rank for slot in slots)
        shared = shared or {}
        if shared and any(slot.rank != rank for slot in slots):
            raise AdapterMismatchError(
                "shared tensors have one rank: stack adapters of different ranks without sharing"
            )
        kinds = sorted({slot.gate for slot in slots if GATES[slot.gate].parameters})
        chosen = {kind: [i for i, slot in enumerate(slots) if slot.gate == kind] for kind in kinds}
        names = sorted({name for state in states for name in state} | set(shared))
        factors: dict[str, Tensor] = {}
        gates: dict[str, dict[str, Tensor]] = {kind: {} for kind in chosen}
        for name in names:
            if tensor_kind(name) != "gate":
                factors[name] = _stacked(name, slots, states, shared, range(len(slots)), rank)
                continue
            for kind, members in chosen.items():
                if name in shared or any(name in states[i] for i in members):
                    gates[kind][name] = _stacked(name, slots, states, shared, members, rank)
        return cls(tuple(slots), factors, gates)

    @cached_property
    def modules(self) -> frozenset[str]:
        """Names of the adapted modules."""
        return frozenset(module_of(name) for name in self.factors)

    def of_kind(self, kind: str) -> list[int]:
        """The slots with gates of a kind."""
        return [i for i, slot in enumerate(self.slots) if slot.gate == kind]

    def state(self, index: int) -> State:
        """A copy of one slot's tensors on the CPU, without padding, sorted by name."""
        slot = self.slots[index]
        gates = self.gates.get(slot.gate, {})
        state = {}
        for name, tensor in sorted({**self.factors, **gates}.items()):
            place = self.of_kind(slot.gate).index(index) if name in gates else index
            row = tensor.detach()[0 if tensor.shape[0] == 1 else place]
            state[name] = row[cut(name, slot)].to("cpu", copy=True, memory_format=torch.contiguous_format)
        return state


def _stacked(
    name: str, slots: Sequence[Slot], states: Sequence[State], shared: State, members: Sequence[int], rank: int
) -> Tensor:
    """One tensor of several slots, padded to ``rank``; a view of the shared one if there is one."""
    if name in shared:
        return shared[name].unsqueeze(0)
    example = next(states[i][name] for i in members if name in states[i])
    dimensions = GATES[slots[members[0]].gate].dimensions[part_of(name)]
    shape = [rank if d == RANK else size for d, size in zip(dimensions, example.shape, strict=True)]
    stacked = example.new_zeros((len(members), *shape))
    for position, i in enumerate(members):
        if name in states[i]:
            target = stacked[position][cut(name, slots[i])]
            if target.shape != states[i][name].shape:
                raise AdapterMismatchError(
                    f"slot {i}: {name!r} is {tuple(states[i][name].shape)}, {tuple(target.shape)} is expected for its rank "
                    f"{slots[i].rank} beside the other adapters: are they for the same base?"
                )
            target.copy_(states[i][name])
    return stacked


@dataclass(frozen=True)
class _Expanded:
    """The index for a batch of N rows. ``gated``: for each kind the rows (None: all of them) and their position in its stack."""

    slots: Tensor  # (N,)
    scaling: Tensor  # (N, 1, 1)
    gated: Mapping[str, tuple[Tensor | None, Tensor]]
    neutral: Tensor | None  # (N, 1, 1), True where gates are taken as neutral
    base: Tensor | None  # (N, 1, 1), True where there is no adapter


@dataclass
class _Rows:
    """What a ``with StackedModel.rows(...)`` block sets."""

    host: StackedModel
    stack: StackedAdapters
    index: tuple[int, ...]
    neutral: tuple[bool, ...]
    device: torch.device
    _by_size: dict[int, _Expanded] = field(default_factory=dict)

    def adapted(self, module: str, x: Tensor, frozen: Tensor) -> Tensor:
        """See :class:`RowAdapters`."""
        prefix = tensor_name(module, "")
        a = self.stack.factors.get(prefix + "A")
        if a is None:
            return frozen
        expanded, b = self.expand(x.shape[0]), self.stack.factors[prefix + "B"]
        wide, out = x.reshape(x.shape[0], -1, x.shape[-1]), frozen.reshape(x.shape[0], -1, frozen.shape[-1])
        path = _SlotPath(self.stack, expanded, prefix, wide, out, a)
        v = path.coordinates() * expanded.scaling.to(wide.dtype)
        plain = expanded.base is None and not path.touches(OUTPUT)
        if plain and b.shape[0] > 1:
            # In place unless a gate sees the frozen output: nothing else needs it, and a copy of it costs as much as the product.
            add = torch.baddbmm if path.sees(FROZEN) else Tensor.baddbmm_
            return add(out, v, _rows_of(b.to(v.dtype), expanded.slots).transpose(1, 2)).reshape(frozen.shape)
        update = path.gated(OUTPUT, _per_row(v, b, expanded.slots))
        if expanded.base is not None:
            update = torch.where(expanded.base, torch.zeros_like(update), update)
        return frozen + update.reshape(frozen.shape)

    def expand(self, size: int) -> _Expanded:
        """The index for a batch of ``size`` rows: each entry for as many consecutive rows as fit (the beams of an utterance).

        Raises :class:`AdapterError` if ``size`` is not a multiple of the entries: whose row is it?
        """
        if size % len(self.index):
            raise AdapterError(
                f"a batch of {size} rows under an index of {len(self.index)}: give a batch that is a multiple of the index"
            )
        if size not in self._by_size:
            self._by_size[size] = self._expanded(size // len(self.index))
        return self._by_size[size]

    def _expanded(self, times: int) -> _Expanded:
        index = [i for i in self.index for _ in range(times)]
        neutral = [n for n in self.neutral for _ in range(times)]
        slots = self.stack.slots
        gated: dict[str, tuple[Tensor | None, Tensor]] = {}
        for kind in self.stack.gates:
            place = {slot: position for position, slot in enumerate(self.stack.of_kind(kind))}
            rows = [row for row, i in enumerate(index) if i in place]
            if rows:
                # A row without adapter may take any slot's gate where all others have gates: its update is dropped.
                everywhere = all(i in place or i == BASE for i in index)
                taken = [place.get(i, 0) for i in index] if everywhere else [place[index[row]] for row in rows]
                gated[kind] = (None if everywhere else self._tensor(rows), self._tensor(taken))
        return _Expanded(
            slots=self._tensor([max(i, 0) for i in index]),
            scaling=self._tensor([slots[max(i, 0)].scaling for i in index], torch.float32)[:, None, None],
            gated=gated,
            neutral=self._tensor(neutral, torch.bool)[:, None, None] if any(neutral) else None,
            base=self._tensor([i == BASE for i in index], torch.bool)[:, None, None] if BASE in index else None,
        )

    def _tensor(self, values: Sequence[float], dtype: torch.dtype = torch.long) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(self.device)


class RowAdapters(Protocol):
    """What each row's own adapter adds: slots of a stack by an index, or rows of a :mod:`fl.adapters.table`."""

    host: StackedModel

    def adapted(self, module: str, x: Tensor, frozen: Tensor) -> Tensor:
        """``frozen`` (N, ..., d_out), what the linear map ``module`` makes of ``x`` (N, ..., d_in), with each row's update."""
        ...


_active: ContextVar[RowAdapters | None] = ContextVar("idiolect_stacked_rows", default=None)


class StackedLinear(nn.Module):
    """A frozen linear map that adds each row's own low-rank update while a :meth:`StackedModel.rows` block is open."""

    def __init__(self, base_layer: nn.Linear, module: str, host: StackedModel) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.module = module
        self.__dict__["host"] = host  # not a submodule of its own submodule

    @property
    def weight(self) -> Tensor:
        """The frozen weight: some models look at its dtype."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (N, ..., d_in) to (N, ..., d_out)."""
        frozen: Tensor = self.base_layer(x)
        rows = _active.get()
        if rows is None or rows.host is not self.__dict__["host"]:
            return frozen
        return rows.adapted(self.module, x, frozen)


class _SlotPath(AdapterPath):
    """The path of a batch (N, T, d_in) whose rows use slots of a stack."""

    def __init__(
        self, stack: StackedAdapters, rows: _Expanded, prefix: str, x: Tensor, frozen: Tensor, a: Tensor
    ) -> None:
        kinds = [GATES[kind] for kind in rows.gated]
        self._own = {
            gate.name: {what: stack.gates[gate.name][prefix + what] for what in gate.parameters}
            for gate in kinds
            if all(prefix + what in stack.gates[gate.name] for what in gate.parameters)  # or no slot has it here
        }
        super().__init__([gate for gate in kinds if gate.name in self._own], x, frozen)
        self.rows, self.a = rows, a
        # Where all slots have a matrix that sees what A sees, one product computes both.
        matrices = [self._own[gate.name][gate.beside_a] for gate in self.gates if gate.beside_a]
        self.beside = next((matrix for matrix in matrices if matrix.shape[0] == a.shape[0] > 1), None)

    def down(self, u: Tensor) -> Tensor:
        if self.beside is None:
            return _per_row(u, self.a, self.rows.slots)
        both = torch.cat((self.a, self.beside), dim=1)
        z, self.logits = _per_row(u, both, self.rows.slots).chunk(2, dim=2)
        return z

    def times(self, gate: Gate, source: Tensor, value: Tensor) -> Tensor:
        positions, slots = self.rows.gated[gate.name]  # all rows if positions is None
        neutral = self.rows.neutral
        chosen, multiplied = source, value
        if positions is not None:
            chosen, multiplied = source[positions], value[positions]
            neutral = neutral if neutral is None else neutral[positions]
        parameters = {
            what: tensor if tensor.dim() == 3 else _rows_of(tensor, slots)[:, None].to(value.dtype)
            for what, tensor in self._own[gate.name].items()
        }
        factor = gate.factor(chosen, parameters, partial(self._linear, slots))
        if neutral is not None:
            factor = torch.where(neutral, torch.ones_like(factor), factor)
        if positions is None:
            return value * factor
        return value.index_copy(0, positions, multiplied * factor)

    def _linear(self, slots: Tensor, source: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return (self.logits if weight is self.beside else _per_row(source, weight, slots)) + bias


def _rows_of(tensor: Tensor, slots: Tensor) -> Tensor:
    """The rows' own part of a stacked tensor, without a copy where all slots have the same."""
    return tensor if tensor.shape[0] == 1 else tensor.index_select(0, slots)


def _per_row(x: Tensor, weight: Tensor, slots: Tensor) -> Tensor:
    """``x`` (N, T, in) times the transpose of each row's own matrix in ``weight`` (K or 1, out, in): (N, T, out)."""
    if weight.shape[0] == 1:
        return functional.linear(x, weight[0].to(x.dtype))
    return torch.bmm(x, _rows_of(weight.to(x.dtype), slots).transpose(1, 2))


class StackedModel:
    """``model`` with its targeted linear maps replaced, in place, by :class:`StackedLinear`. Without rows it is the base.

    ``targets`` are PEFT's ``target_modules``. Raises :class:`AdapterError` if nothing is targeted or something that is
    targeted is no linear map (a model that already carries PEFT adapters, say).
    """

    def __init__(self, model: nn.Module, targets: str | list[str]) -> None:
        self.model = model
        config = GatedLoraConfig(target_modules=targets)
        found = [(n, m) for n, m in model.named_modules() if n and check_target_module_exists(config, n)]
        if not found:
            raise AdapterError(f"targets {targets!r} match no linear map of this model: check sites")
        for name, module in found:
            if not isinstance(module, nn.Linear):
                raise AdapterError(f"{name} is {type(module).__name__}: stack adapters on a plain model's linear maps")
        for name, module in found:
            parent, _, child = name.rpartition(".")
            assert isinstance(module, nn.Linear)
            setattr(model.get_submodule(parent), child, StackedLinear(module, name, self))
        self.modules = frozenset(name for name, _ in found)

    @contextmanager
    def rows(
        self, stack: StackedAdapters, index: Sequence[int], *, neutral: Sequence[bool] | None = None
    ) -> Iterator[nn.Module]:
        """Within the block, row i of each batch uses slot ``index[i]`` of ``stack`` (:data:`BASE`: none).

        Slots in ``neutral`` (one entry for each of ``index``) run with neutral gates. A batch may have a multiple of
        ``len(index)`` rows, as in beam search; any other number raises :class:`AdapterError`.
        """
        if not index or any(not (i == BASE or 0 <= i < len(stack.slots)) for i in index):
            raise AdapterError(f"index {list(index)!r} does not name slots of a stack of {len(stack.slots)}")
        if neutral is not None and len(neutral) != len(index):
            raise AdapterError(f"neutral has {len(neutral)} entries for an index of {len(index)}")
        unknown = sorted(stack.modules - self.modules)
        if unknown:
            raise AdapterMismatchError(
                f"the stack adapts {len(unknown)} modules that are not targeted here, first {unknown[0]!r}: check sites and base"
            )
        device = next(iter(stack.factors.values())).device
        flags = tuple(neutral) if neutral is not None else (False,) * len(index)
        with self.through(_Rows(self, stack, tuple(index), flags, device)) as model:
            yield model

    @contextmanager
    def through(self, rows: RowAdapters) -> Iterator[nn.Module]:
        """Within the block the targeted linear maps add what ``rows`` says."""
        token = _active.set(rows)
        try:
            yield self.model
        finally:
            _active.reset(token)
