"""The adapters of the rows of a running batch: row i of the batch uses row i of the table.

:class:`fl.adapters.stacked.StackedAdapters` gathers each row's adapter by an index, which a training batch needs: many
rows use one slot. While transcribing, every row has its own adapter, rows come and go, and a step is so short that the
gathering would cost as much as the product. So here adapters lie where their rows are, in tensors that are made once:
a row is written when it joins, moved when one before it left, and zeroed when it leaves.

A row without adapter is a row of zeros: its update is exactly zero. A row whose adapter has another gate than its
neighbours has zeros in their gate, and 2 sigma(0) is exactly 1. So rows of any rank and gate share one computation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fl.adapters.config import PREFIX
from fl.adapters.stacked import Slot, StackedModel, cut, module_of
from fl.adapters.state import State
from fl.core.errors import AdapterError, AdapterMismatchError


class AdapterTable:
    """Room for the adapters of ``capacity`` rows on the modules of ``host``. Not for several threads at once."""

    def __init__(self, host: StackedModel, capacity: int) -> None:
        self.host = host
        self.capacity = capacity
        self._linear: dict[str, nn.Linear] = {name: _linear_of(host, name) for name in host.modules}
        self.clear()

    def clear(self) -> None:
        """Forget every adapter, and give the memory back."""
        self.rank = 0
        self.down: dict[
            str, Tensor
        ] = {}  # (capacity, 2 rank, d_in): A, and the weights of a self gate, which see the same
        self.up: dict[str, Tensor] = {}  # (capacity, d_out, rank): B times the scaling
        self.gates: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}  # kind -> module -> weight and bias of all rows
        self._slots: list[Slot | None] = [None] * self.capacity

    def __len__(self) -> int:
        """Rows that hold an adapter."""
        return sum(slot is not None for slot in self._slots)

    @property
    def bytes(self) -> int:
        """What the table occupies."""
        tensors = [*self.down.values(), *self.up.values()]
        tensors += [t for kind in self.gates.values() for pair in kind.values() for t in pair]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

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

    def kinds(self, first: int, count: int) -> Counter[str]:
        """How many of these rows have a gate of each kind."""
        return Counter(slot.gate for slot in self._slots[first : first + count] if slot is not None)

    def _tensors(self) -> Iterator[Tensor]:
        yield from self.down.values()
        yield from self.up.values()
        for kind in self.gates.values():
            for weight, bias in kind.values():
                yield weight
                yield bias

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
        if slot.rank > self.rank:
            self._widen(slot.rank)
        for module in modules:
            linear = self._linear[module]
            if module not in self.down:
                self.down[module] = self._zeros(linear, 2 * self.rank, linear.in_features)
                self.up[module] = self._zeros(linear, linear.out_features, self.rank)
            kind = self.gates.setdefault(slot.gate, {})
            if slot.gate != "none" and module not in kind:
                kind[module] = self._gate(slot.gate, linear)

    def _gate(self, kind: str, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        shape = {
            "hidden": (linear.in_features,),
            "low-rank": (self.rank, self.rank),
            "self": (0,),  # its weights are with A
            "cross": (self.rank, linear.out_features),
            "scalar": (0,),  # it has none
        }[kind]
        bias = {"hidden": linear.in_features, "scalar": 1}.get(kind, self.rank)
        return self._zeros(linear, *shape), self._zeros(linear, bias)

    def _zeros(self, linear: nn.Linear, *shape: int) -> Tensor:
        return linear.weight.new_zeros((self.capacity, *shape))

    def _widen(self, rank: int) -> None:
        """Make all tensors as wide as ``rank``; what they hold stays."""
        old, downs, ups, gates = self.rank, self.down, self.up, self.gates
        self.rank, self.down, self.up, self.gates = rank, {}, {}, {}
        for module, down in downs.items():
            linear = self._linear[module]
            self.down[module] = self._zeros(linear, 2 * rank, linear.in_features)
            self.down[module][:, :old], self.down[module][:, rank : rank + old] = down[:, :old], down[:, old:]
            self.up[module] = self._zeros(linear, linear.out_features, rank)
            self.up[module][:, :, :old] = ups[module]
        for kind, modules in gates.items():
            for module, (weight, bias) in modules.items():
                wide = self._gate(kind, self._linear[module])
                for new, tensor in zip(wide, (weight, bias), strict=True):
                    new[tuple(slice(0, size) for size in tensor.shape)] = tensor
                self.gates.setdefault(kind, {})[module] = wide

    def _write(self, row: int, slot: Slot, name: str, tensor: Tensor) -> None:
        module, what = module_of(name), name.rsplit(f".{PREFIX}", 1)[-1]
        if what == "A":
            room = self.down[module][row, : self.rank]
        elif what == "B":
            room, tensor = self.up[module][row], tensor * slot.scaling
        elif what == "gate_weight" and slot.gate == "self":
            room = self.down[module][row, self.rank :]
        else:
            room = self.gates[slot.gate][module][what == "gate_bias"][row]
        room = room[cut(name, slot)]
        if room.shape != tensor.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, not {tuple(room.shape)}")
        room.copy_(tensor)


class TableRows:
    """``count`` rows of a table from ``first`` on, as the rows of a batch: what a linear map adds for each of them."""

    def __init__(self, table: AdapterTable, first: int, count: int) -> None:
        self.table, self.host, self.count = table, table.host, count
        self._rows = slice(first, first + count)
        kinds = table.kinds(first, count)
        self._adapted = bool(kinds)
        self._kinds = {kind for kind in kinds if kind != "none"}

    def adapted(self, module: str, x: Tensor, frozen: Tensor) -> Tensor:
        """``frozen`` (N, ..., d_out) plus the update of each row for its ``x`` (N, ..., d_in).

        N is ``count`` or a multiple of it; raises :class:`AdapterError` otherwise: whose row would it be?
        """
        if x.shape[0] % self.count:
            raise AdapterError(f"a batch of {x.shape[0]} rows for {self.count} rows of the table: give a multiple")
        table, rows = self.table, self._rows
        if not self._adapted or module not in table.down:
            return frozen
        down, up = table.down[module][rows].transpose(1, 2), table.up[module][rows].transpose(1, 2)
        gates = {kind: table.gates[kind][module] for kind in self._kinds if module in table.gates.get(kind, {})}
        wide, out = x.reshape(self.count, -1, x.shape[-1]), frozen.reshape(self.count, -1, frozen.shape[-1])
        u = wide
        if "hidden" in gates:
            weight, bias = (tensor[rows, None] for tensor in gates["hidden"])
            u = wide * _factor(wide * weight + bias)
        # All gates but a row's own are zero there, that is a factor of exactly 1: one after the other is each row's own.
        if "self" in gates and u is wide:
            both = torch.bmm(u, down)
            z = both[..., : table.rank] * _factor(both[..., table.rank :] + gates["self"][1][rows, None])
        else:
            z = torch.bmm(u, down[..., : table.rank])
            if "self" in gates:
                logits = torch.bmm(wide, down[..., table.rank :])
                z = z * _factor(logits + gates["self"][1][rows, None])
        if "scalar" in gates:
            z = z * _factor(gates["scalar"][1][rows, None])
        for kind, source in (("low-rank", z), ("cross", out)):
            if kind in gates:
                weight, bias = (tensor[rows] for tensor in gates[kind])
                z = z * _factor(torch.baddbmm(bias[:, None], source, weight.transpose(1, 2)))
        return torch.baddbmm(out, z, up).reshape(frozen.shape)


def _factor(logits: Tensor) -> Tensor:
    """2 sigma(logits) in (0, 2)."""
    return 2 * torch.sigmoid(logits)


def _linear_of(host: StackedModel, name: str) -> nn.Linear:
    linear = host.model.get_submodule(name).base_layer
    assert isinstance(linear, nn.Linear)
    return linear
