"""The adapters of the rows of a running batch: row i of the batch uses row i of the table.

:class:`fl.adapters.stacked.StackedAdapters` gathers each row's adapter by an index, which a training batch needs: many
rows use one slot. While transcribing, every row has its own adapter, rows come and go, and a step is so short that the
gathering would cost as much as the product. So here adapters lie where their rows are, in tensors that are made once:
a row is written when it joins, moved when one before it left, and zeroed when it leaves.

A row without adapter is a row of zeros: its update is exactly zero. A row whose adapter has another gate than its
neighbours has zeros in their gate, which is then exactly 1. So rows of any rank and gate share one computation.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fl.adapters.gates.base import INPUT, OUTPUT, AdapterPath, Gate
from fl.adapters.gates.table import GATES, NONE
from fl.adapters.stacked import Slot, StackedModel, cut
from fl.adapters.state import State, module_of, part_of
from fl.core.errors import AdapterError, AdapterMismatchError


class ServingTable:
    """Room for the adapters of ``capacity`` rows on the modules of ``host``. Not for several threads at once."""

    def __init__(self, host: StackedModel, capacity: int) -> None:
        self.host = host
        self.capacity = capacity
        self._linear: dict[str, nn.Linear] = {name: _linear_of(host, name) for name in host.modules}
        self.clear()

    def clear(self) -> None:
        """Forget every adapter, and give the memory back."""
        self.rank = 0
        self.beside = ""  # the gate whose matrix lies behind A, since both see the same
        # By module, of all rows: A and that matrix (capacity, 2, rank, d_in), B times the scaling, each gate's other parameters
        self.held: dict[str, dict[str, Tensor]] = {}
        self.gates: dict[str, set[str]] = {}  # of the adapters that it has had, by module
        self._slots: list[Slot | None] = [None] * self.capacity

    def __len__(self) -> int:
        """Rows that hold an adapter."""
        return sum(slot is not None for slot in self._slots)

    @property
    def bytes(self) -> int:
        """What the table occupies."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())

    def put(self, row: int, slot: Slot | None, state: State | None = None) -> None:
        """Write an adapter into ``row``, or nothing (``slot`` None: the base).

        Raises :class:`AdapterMismatchError` for tensors that do not fit the model; the row is then empty.
        """
        self.drop(row)
        if slot is None or state is None:
            return
        self._make_room(slot, state)
        try:
            for name, tensor in state.items():
                self._write(row, slot, name, tensor)
        except (RuntimeError, KeyError, ValueError) as error:
            self._zero(row)
            raise AdapterMismatchError(
                f"adapter does not fit this base (rank {slot.rank}, gate {slot.gate!r}: {type(error).__name__}): "
                "was it trained on another one, or with other sites?"
            ) from error
        self._slots[row] = slot

    def drop(self, row: int) -> None:
        """Overwrite a row with zeros."""
        if self._slots[row] is not None:
            self._zero(row)
            self._slots[row] = None

    def move(self, source: int, target: int) -> None:
        """Let ``target`` hold what ``source`` holds, and ``source`` nothing."""
        if self._slots[source] is None:
            self.drop(target)
            return
        for tensor in self._tensors():
            tensor[target].copy_(tensor[source])
        self._slots[target] = self._slots[source]
        self.drop(source)

    @contextmanager
    def rows(self, first: int, count: int) -> Iterator[nn.Module]:
        """Within the block, the ``count`` rows of each batch use the table's rows from ``first`` on."""
        with self.host.through(TableRows(self, first, count)) as model:
            yield model

    def find(self, module: str, gate: str, what: str) -> Tensor:
        """One tensor of the adapters with ``gate``, of all rows. Raises KeyError where no adapter has it."""
        held = self.held[module]
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

    def _make_room(self, slot: Slot, state: State) -> None:
        """Tensors for every module that the adapter has, and for its rank, before anything is written."""
        modules = {module_of(name) for name in state}
        unknown = sorted(modules - self._linear.keys())
        if unknown:
            raise AdapterMismatchError(
                f"adapter has tensors for {len(unknown)} modules that this base does not adapt, first {unknown[0]!r}: "
                "was it trained on another base?"
            )
        if not self.beside and GATES[slot.gate].beside_a:
            self.beside = slot.gate
        if slot.rank > self.rank:
            self._widen(slot.rank)
        for module in modules:
            self.gates.setdefault(module, set()).add(slot.gate)
            self._add(module, slot.gate)

    def _add(self, module: str, gate: str) -> None:
        """Zeros for what an adapter with ``gate`` has on a module and the table has not."""
        held, linear = self.held.setdefault(module, {}), self._linear[module]
        shapes = GATES[gate].shapes(linear.in_features, linear.out_features, self.rank)
        for what, shape in shapes.items():
            if _key(gate, what) not in held and not self._is_beside(gate, what):
                whole = (2, *shape) if what == "A" else shape
                held[_key(gate, what)] = linear.weight.new_zeros((self.capacity, *whole))

    def _widen(self, rank: int) -> None:
        """Make all tensors as wide as ``rank``; what they hold stays."""
        self.rank = rank
        old, self.held = self.held, {}
        for module, held in old.items():
            for gate in self.gates[module]:
                self._add(module, gate)
            for key, tensor in held.items():
                self.held[module][key][tuple(slice(0, size) for size in tensor.shape)] = tensor

    def _write(self, row: int, slot: Slot, name: str, tensor: Tensor) -> None:
        what = part_of(name)
        room = self.find(module_of(name), slot.gate, what)[row][cut(name, slot)]
        if room.shape != tensor.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, not {tuple(room.shape)}")
        room.copy_(tensor * slot.scaling if what == "B" else tensor)


def _key(gate: str, what: str) -> str:
    """A and B are of the adapters of all gates, a gate's parameters of its own ones alone."""
    return what if what in NONE.dimensions else f"{gate}.{what}"


class TableRows:
    """``count`` rows of a table from ``first`` on, as the rows of a batch: what a linear map adds for each of them."""

    def __init__(self, table: ServingTable, first: int, count: int) -> None:
        self.table, self.host, self.count = table, table.host, count
        self._rows = slice(first, first + count)
        kinds = {slot.gate for slot in table._slots[self._rows] if slot is not None}
        self._adapted = bool(kinds)
        self._gates = [GATES[kind] for kind in sorted(kinds) if GATES[kind].parameters]

    def adapted(self, module: str, x: Tensor, frozen: Tensor) -> Tensor:
        """``frozen`` (N, ..., d_out) plus the update of each row for its ``x`` (N, ..., d_in).

        N is ``count`` or a multiple of it; raises :class:`AdapterError` otherwise: whose row would it be?
        """
        if x.shape[0] % self.count:
            raise AdapterError(f"a batch of {x.shape[0]} rows for {self.count} rows of the table: give a multiple")
        table, rows = self.table, self._rows
        if not self._adapted or module not in table.held:
            return frozen
        wide, out = x.reshape(self.count, -1, x.shape[-1]), frozen.reshape(self.count, -1, frozen.shape[-1])
        gates = [gate for gate in self._gates if gate.name in table.gates[module]]
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
        self.rank = table.rank
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
