"""The adapters of the rows of a running batch: row i of the batch uses row i of the table.

:class:`fl.adapters.stacked.StackedAdapters` gathers each row's adapter by an index, which a training batch needs: many
rows use one slot. While transcribing, every row has its own adapter, rows come and go, and a step is so short that the
gathering would cost as much as the product. So here adapters lie where their rows are: a row is written when it joins,
moved when one before it left, and zeroed when it leaves.

A row without adapter is a row of zeros: its update is exactly zero. A row whose adapter has another gate than its
neighbours has zeros in their gate, which is then exactly 1. So rows of any rank and gate share one computation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from fl.adapters.gates.base import INPUT, OUTPUT, AdapterPath, Gate
from fl.adapters.gates.table import GATES, NONE
from fl.adapters.stacked import Slot, StackedModel, cut
from fl.adapters.state import State, module_of, part_of
from fl.core.errors import AdapterError, AdapterMismatchError


@dataclass(frozen=True)
class Kind:
    """What an adapter needs of a table. Adapters of the same kind need no more than one of them."""

    rank: int
    gate: str
    modules: frozenset[str]

    @classmethod
    def of(cls, slot: Slot, state: State) -> Kind:
        """The kind of an adapter."""
        return cls(slot.rank, slot.gate, frozenset(map(module_of, state)))


class ServingTable:
    """Room for the adapters of ``capacity`` rows on the modules of ``host``. Not for several threads at once.

    Its tensors follow from the kinds of adapters that it holds: it grows with the first of a kind and shrinks with the last.
    Whatever needs memory is made aside and then taken as a whole, so that an allocation that fails changes nobody's row.
    """

    def __init__(self, host: StackedModel, capacity: int) -> None:
        self.host = host
        self.capacity = capacity
        self.beside = next((name for name, gate in GATES.items() if gate.beside_a), "")  # its matrix lies behind A
        self._linear: dict[str, nn.Linear] = {name: _linear_of(host, name) for name in host.modules}
        self._shapes = lru_cache(maxsize=64)(self._shapes_for)
        self.clear()

    def clear(self) -> None:
        """Forget every adapter, and give the memory back."""
        # By module, of all rows: A and the matrix behind it (capacity, 2, rank, d_in), B times the scaling, each gate's parameters
        self.held: dict[str, dict[str, Tensor]] = {}
        self._kinds: list[Kind | None] = [None] * self.capacity

    def __len__(self) -> int:
        """Rows that hold an adapter."""
        return sum(kind is not None for kind in self._kinds)

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of adapters that it holds."""
        return frozenset(kind for kind in self._kinds if kind is not None)

    @property
    def rank(self) -> int:
        """The rank that its tensors have room for."""
        return max((held["A"].shape[2] for held in self.held.values()), default=0)

    @property
    def bytes(self) -> int:
        """What the table occupies."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())

    def bytes_for(self, kinds: Iterable[Kind]) -> int:
        """What a table with adapters of these kinds occupies, however many rows they are in. From any thread."""
        sizes = (math.prod(shape) for shapes in self._shapes(frozenset(kinds)).values() for shape in shapes.values())
        return sum(sizes) * next(iter(self._linear.values())).weight.element_size()

    def put(self, row: int, slot: Slot | None, state: State | None = None) -> None:
        """Write an adapter into ``row``, or nothing (``slot`` None: the base).

        Raises :class:`AdapterMismatchError` for tensors that do not fit the model, and what torch raises without memory; the
        row is then empty, and the others are as they were.
        """
        self.drop(row)
        if slot is None or state is None:
            return
        kind = Kind.of(slot, state)
        self._check(kind, state)
        held = self._resized(self.kinds | {kind})
        try:
            for name, tensor in state.items():
                room = self._find(held[module_of(name)], slot.gate, part_of(name))[row][cut(name, slot)]
                room.copy_(tensor * slot.scaling if part_of(name) == "B" else tensor)
        except BaseException:
            self._zero(row)
            raise
        self.held, self._kinds[row] = held, kind

    def drop(self, row: int) -> None:
        """Overwrite a row with zeros, and give back what only its adapter needed."""
        if self._kinds[row] is not None:
            self._zero(row)
            self._kinds[row] = None
            with suppress(RuntimeError, MemoryError):  # without memory for smaller tensors the larger ones stay
                self.held = self._resized(self.kinds)

    def move(self, source: int, target: int) -> None:
        """Let ``target`` hold what ``source`` holds, and ``source`` nothing."""
        self.drop(target)
        if self._kinds[source] is not None:
            for tensor in self._tensors():
                tensor[target].copy_(tensor[source])
            self._kinds[target] = self._kinds[source]
            self.drop(source)

    @contextmanager
    def rows(self, first: int, count: int) -> Iterator[nn.Module]:
        """Within the block, the ``count`` rows of each batch use the table's rows from ``first`` on."""
        with self.host.through(TableRows(self, first, count)) as model:
            yield model

    def find(self, module: str, gate: str, what: str) -> Tensor:
        """One tensor of the adapters with ``gate``, of all rows. Raises KeyError where no adapter has it."""
        return self._find(self.held[module], gate, what)

    def _find(self, held: Mapping[str, Tensor], gate: str, what: str) -> Tensor:
        if what == "A" or self._is_beside(gate, what):
            return held["A"][:, 0 if what == "A" else 1]
        return held[_key(gate, what)]

    def _is_beside(self, gate: str, what: str) -> bool:
        return (gate, what) == (self.beside, GATES[gate].beside_a)

    def _tensors(self) -> Iterator[Tensor]:
        return (tensor for held in self.held.values() for tensor in held.values())

    def _zero(self, row: int) -> None:
        for tensor in self._tensors():
            tensor[row].zero_()

    def _check(self, kind: Kind, state: State) -> None:
        """Refuse what does not fit before anything is made or written."""
        unknown = sorted(kind.modules - self._linear.keys())
        if unknown:
            raise AdapterMismatchError(
                f"adapter has tensors for {len(unknown)} modules that this base does not adapt, first {unknown[0]!r}: "
                "was it trained on another base?"
            )
        for name, tensor in state.items():
            linear = self._linear[module_of(name)]
            shapes = GATES[kind.gate].shapes(linear.in_features, linear.out_features, kind.rank)
            if tuple(tensor.shape) != shapes.get(part_of(name)):
                raise AdapterMismatchError(
                    f"adapter does not fit this base: {name!r} is {tuple(tensor.shape)}, not {shapes.get(part_of(name))} "
                    f"(rank {kind.rank}, gate {kind.gate!r}): was it trained on another one, or with other sites?"
                )

    def _shapes_for(self, kinds: frozenset[Kind]) -> dict[str, dict[str, tuple[int, ...]]]:
        """By module, the shapes of the tensors that adapters of ``kinds`` share."""
        rank = max((kind.rank for kind in kinds), default=0)
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        for module, gate in sorted(
            {(module, kind.gate) for kind in kinds for module in kind.modules & self._linear.keys()}
        ):
            linear = self._linear[module]
            for what, shape in GATES[gate].shapes(linear.in_features, linear.out_features, rank).items():
                if not self._is_beside(gate, what):
                    whole = (self.capacity, 2, *shape) if what == "A" else (self.capacity, *shape)
                    found.setdefault(module, {})[_key(gate, what)] = whole
        return found

    def _resized(self, kinds: frozenset[Kind]) -> dict[str, dict[str, Tensor]]:
        """What the table holds in tensors for ``kinds``: those that have their shape already, and copies of the others."""
        return {
            module: {
                key: _in_shape(self.held.get(module, {}).get(key), shape, self._linear[module].weight)
                for key, shape in shapes.items()
            }
            for module, shapes in self._shapes(kinds).items()
        }


def _in_shape(old: Tensor | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """``old`` cut or filled with zeros to ``shape``; itself where that is its shape."""
    if old is not None and old.shape == shape:
        return old
    new = like.new_zeros(shape)
    if old is not None:
        both = tuple(slice(0, min(sizes)) for sizes in zip(old.shape, shape, strict=True))
        new[both] = old[both]
    return new


def _key(gate: str, what: str) -> str:
    """A and B are of the adapters of all gates, a gate's parameters of its own ones alone."""
    return what if what in NONE.dimensions else f"{gate}.{what}"


class TableRows:
    """``count`` rows of a table from ``first`` on, as the rows of a batch: what a linear map adds for each of them."""

    def __init__(self, table: ServingTable, first: int, count: int) -> None:
        self.table, self.host, self.count = table, table.host, count
        self._rows = slice(first, first + count)
        self._kinds = {kind for kind in table._kinds[self._rows] if kind is not None}

    def adapted(self, module: str, x: Tensor, frozen: Tensor) -> Tensor:
        """``frozen`` (N, ..., d_out) plus the update of each row for its ``x`` (N, ..., d_in).

        N is ``count`` or a multiple of it; raises :class:`AdapterError` otherwise: whose row would it be?
        """
        if x.shape[0] % self.count:
            raise AdapterError(f"a batch of {x.shape[0]} rows for {self.count} rows of the table: give a multiple")
        table, rows = self.table, self._rows
        kinds = {kind.gate for kind in self._kinds if module in kind.modules}
        if not kinds:
            return frozen
        wide, out = x.reshape(self.count, -1, x.shape[-1]), frozen.reshape(self.count, -1, frozen.shape[-1])
        gates = [GATES[kind] for kind in sorted(kinds) if GATES[kind].parameters]
        path = _TablePath(table, module, rows, gates, wide, out)
        v, up = path.coordinates(), table.held[module]["B"][rows].transpose(1, 2)
        if path.touches(OUTPUT):
            return (out + path.gated(OUTPUT, torch.bmm(v, up))).reshape(frozen.shape)
        return torch.baddbmm(out, v, up).reshape(frozen.shape)


class _TablePath(AdapterPath):
    """The path of a batch (rows, T, d_in). A gate is 1 in the rows of others: one after the other is each row's own."""

    def __init__(
        self, table: ServingTable, module: str, rows: slice, gates: Sequence[Gate], x: Tensor, frozen: Tensor
    ) -> None:
        super().__init__(gates, x, frozen)
        self.parameters = {
            gate.name: {what: table.find(module, gate.name, what)[rows] for what in gate.parameters} for gate in gates
        }
        self.both = table.held[module]["A"][rows].flatten(1, 2).transpose(1, 2)  # A and what lies behind it
        self.rank = table.held[module]["A"].shape[2]
        beside = next((gate for gate in gates if gate.name == table.beside), None)
        self.beside = self.parameters[beside.name][beside.beside_a] if beside else None
        self.logits: Tensor | None = None

    def down(self, u: Tensor) -> Tensor:
        if self.beside is None or u is not self.seen[INPUT]:
            return torch.bmm(u, self.both[..., : self.rank])
        both = torch.bmm(u, self.both)
        self.logits = both[..., self.rank :]
        return both[..., : self.rank]

    def times(self, gate: Gate, source: Tensor, value: Tensor) -> Tensor:
        own = {w: tensor if tensor.dim() == 3 else tensor[:, None] for w, tensor in self.parameters[gate.name].items()}
        return value * gate.factor(source, own, self._linear)

    def _linear(self, source: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if weight is not self.beside:
            return torch.baddbmm(bias, source, weight.transpose(1, 2))
        return (torch.bmm(source, weight.transpose(1, 2)) if self.logits is None else self.logits) + bias


def _linear_of(host: StackedModel, name: str) -> nn.Linear:
    linear = host.model.get_submodule(name).base_layer
    assert isinstance(linear, nn.Linear)
    return linear
