"""Rows of a table compute what the same adapters do as a stack, and nothing of a row is left when it is dropped."""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.gates.table import GATES
from fl.adapters.layer import fresh_adapter
from fl.adapters.stacked import BASE, Slot, StackedAdapters, StackedModel
from fl.adapters.state import State
from fl.adapters.table import Kind, ServingTable
from fl.core.errors import AdapterError, AdapterMismatchError
from fl.settings.names import SITES

Adapter = tuple[Slot, State]
ALL = target_pattern(tuple(SITES))


@pytest.fixture
def host(whisper) -> StackedModel:
    return StackedModel(whisper().double(), ALL)


@pytest.fixture
def adapter(whisper) -> Callable[..., Adapter]:
    def make(seed: int, gate: str = "self", rank: int = 3, sites: Sequence[str] = tuple(SITES)) -> Adapter:
        config = GatedLoraConfig(r=rank, lora_alpha=2.0 * rank, gate=gate, target_modules=target_pattern(tuple(sites)))
        generator = torch.Generator().manual_seed(seed)
        fresh = fresh_adapter(whisper(), config)
        return Slot.of(config), {
            name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64) for name, tensor in fresh.items()
        }

    return make


def make_rows(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(count, 8, 20, generator=generator, dtype=torch.float64),
        torch.randint(3, 40, (count, 4), generator=generator),
    )


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    return make_rows(6)


def compute(model, mel: Tensor, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_features=mel, decoder_input_ids=tokens).logits
    return logits


def stacked(host: StackedModel, adapters: Sequence[Adapter | None], mel: Tensor, tokens: Tensor) -> Tensor:
    """The reference: the same adapters through an index."""
    there = [a for a in adapters if a is not None]
    stack = StackedAdapters.from_states([slot for slot, _ in there], [state for _, state in there])
    numbers = iter(range(len(there)))
    with host.rows(stack, [BASE if a is None else next(numbers) for a in adapters]) as model:
        return compute(model, mel, tokens)


class NoMemory(TorchDispatchMode):
    """Lets the operation number ``at`` fail, of all but views and overwriting with zeros."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        if not func.is_view and "zero_" not in str(func):
            self.left -= 1
            if self.left == -1:
                raise torch.OutOfMemoryError(f"no memory for {func}")
        return func(*args, **(kwargs or {}))


def test_rows_of_every_gate_and_rank_equal_a_stack_of_them(host, adapter) -> None:
    adapters = [adapter(i, gate, rank=(2, 5, 3)[i % 3]) for i, gate in enumerate(GATES)]
    adapters.insert(2, None)
    mel, tokens = make_rows(len(adapters))
    table = ServingTable(host, 8)
    for row, one in enumerate(adapters):
        table.put(row, *(one or (None,)))
    with table.rows(0, len(adapters)) as model:
        found = compute(model, mel, tokens)
    assert torch.allclose(found, stacked(host, adapters, mel, tokens), atol=1e-10)
    base = compute(host.model, mel, tokens)
    assert torch.equal(found[2], base[2])  # zeros add exactly nothing
    assert all((found[i] - base[i]).abs().max() > 1e-3 for i in range(len(adapters)) if i != 2)


@pytest.mark.parametrize("gate", GATES)
def test_a_part_of_the_table_and_several_rows_for_each_of_it(host, adapter, rows, gate: str) -> None:
    """The first rows of a table belong to others; a batch may have a multiple of the rows, as for beams."""
    adapters = [adapter(i, gate) for i in range(5)]
    table = ServingTable(host, 5)
    for row, one in enumerate(adapters):
        table.put(row, *one)
    with table.rows(2, 3) as model:
        found = compute(model, *rows)
    twice = [adapters[i] for i in (2, 2, 3, 3, 4, 4)]
    assert torch.allclose(found, stacked(host, twice, *rows), atol=1e-10)


def test_a_wider_adapter_moves_in_beside_narrow_ones(host, adapter) -> None:
    rows = make_rows(7)
    adapters = [adapter(i, gate, rank=2) for i, gate in enumerate(GATES)]
    table = ServingTable(host, 7)
    for row, one in enumerate(adapters):
        table.put(row, *one)
    adapters.append(adapter(9, "low-rank", rank=7))
    table.put(6, *adapters[6])
    assert table.rank == 7
    with table.rows(0, 7) as model:
        found = compute(model, *rows)
    assert torch.allclose(found, stacked(host, adapters, *rows), atol=1e-10)


def test_rows_move_and_leave_zeros_behind(host, adapter, rows) -> None:
    first, second, third = (adapter(i, gate) for i, gate in enumerate(("cross", "hidden", "self")))
    table = ServingTable(host, 3)
    for row, one in enumerate((first, second, third)):
        table.put(row, *one)
    table.drop(0)
    table.move(2, 0)
    assert len(table) == 2
    with table.rows(0, 2) as model:
        found = compute(model, rows[0][:2], rows[1][:2])
    assert torch.allclose(found, stacked(host, [third, second], rows[0][:2], rows[1][:2]), atol=1e-10)
    for tensor in table._tensors():
        assert not tensor[2].any()
    table.drop(0)
    table.drop(1)
    assert all(not tensor.any() for tensor in table._tensors())
    table.clear()
    assert table.bytes == 0


def test_an_adapter_of_some_sites_leaves_the_others_alone(host, adapter, rows) -> None:
    some, all_sites = adapter(1, "self", sites=("decoder.cross",)), adapter(2, "self")
    table = ServingTable(host, 2)
    table.put(0, *some)
    table.put(1, *all_sites)
    with table.rows(0, 2) as model:
        found = compute(model, rows[0][:2], rows[1][:2])
    assert torch.allclose(found, stacked(host, [some, all_sites], rows[0][:2], rows[1][:2]), atol=1e-10)


@pytest.mark.parametrize("wrong", ["shape", "module", "gate"])
def test_what_does_not_fit_is_refused_and_leaves_an_empty_row(host, adapter, rows, wrong: str) -> None:
    slot, state = adapter(1, "self")
    name = next(n for n in state if n.endswith("_B"))
    if wrong == "shape":
        state = {**state, name: state[name][:, :-1]}
    elif wrong == "module":
        state = {**state, name.replace("q_proj", "nowhere").replace("k_proj", "nowhere"): state[name]}
    else:
        slot = Slot(slot.rank, slot.scaling, "cross")
    table = ServingTable(host, 2)
    table.put(1, *adapter(2))
    with pytest.raises(AdapterMismatchError, match="base"):
        table.put(0, slot, state)
    assert len(table) == 1
    assert all(not tensor[0].any() for tensor in table._tensors())
    with table.rows(0, 1) as model:
        assert torch.equal(compute(model, rows[0][:1], rows[1][:1]), compute(host.model, rows[0][:1], rows[1][:1]))


def test_a_batch_that_is_no_multiple_of_the_rows_is_refused(host, adapter, rows) -> None:
    table = ServingTable(host, 4)
    for row in range(4):
        table.put(row, *adapter(row))
    with pytest.raises(AdapterError, match="multiple"), table.rows(0, 4) as model:
        compute(model, *rows)
    assert torch.equal(compute(host.model, *rows), compute(host.model, *rows))
    with table.rows(0, 1):
        pass
    assert torch.isfinite(compute(host.model, *rows)).all()


@pytest.mark.parametrize("rank", [2, 7])
def test_wherever_memory_ends_while_an_adapter_enters_nobody_elses_row_changes(host, adapter, rank: int) -> None:
    others = [adapter(0, "self", 2), adapter(1, "hidden", 2, ("decoder.cross",)), adapter(2, "low-rank", 1)]
    late, rows, table = adapter(3, "cross", rank), make_rows(3), ServingTable(host, 4)
    for row, one in enumerate(others):
        table.put(row, *one)
    with table.rows(0, 3) as model:
        before = compute(model, *rows)
    size = table.bytes
    for failed in count():
        try:
            with NoMemory(failed):
                table.put(3, *late)
        except torch.OutOfMemoryError:
            with table.rows(0, 3) as model:
                assert torch.equal(compute(model, *rows), before), failed
            assert (len(table), table.bytes) == (3, size)
            assert all(not tensor[3].any() for tensor in table._tensors())
        else:
            break
    assert failed > 100  # each tensor that is made and each that is written
    with table.rows(0, 4) as model:
        found = compute(model, *make_rows(4))
    assert torch.allclose(found, stacked(host, [*others, late], *make_rows(4)), atol=1e-10)


def test_what_only_one_adapter_needed_goes_with_it_wherever_memory_ends(host, adapter) -> None:
    others, rows, table = (
        [adapter(i, "self", 2, ("decoder.cross",)) for i in range(3)],
        make_rows(3),
        ServingTable(host, 4),
    )
    for row, one in enumerate(others):
        table.put(row, *one)
    size = table.bytes
    with table.rows(0, 3) as model:
        alone = compute(model, *rows)
    for failed in count():
        table.put(3, *adapter(3, "cross", 7))
        assert table.bytes > 4 * size
        with NoMemory(failed) as memory:
            table.drop(3)
        with table.rows(0, 3) as model:
            assert torch.allclose(compute(model, *rows), alone, atol=1e-10), failed
        if memory.left >= 0:
            break
    assert failed > 8
    assert (table.bytes, table.rank) == (size, 2)
    for row in range(3):
        table.drop(row)
    assert table.bytes == 0


def test_what_a_table_will_occupy_is_known_before(host, adapter) -> None:
    table, adapters = ServingTable(host, 4), [adapter(0, "self", 2), adapter(1, "cross", 5, ("encoder.self",))]
    kinds = [Kind.of(*one) for one in adapters]
    for row, one in enumerate(adapters):
        table.put(row, *one)
        assert table.bytes == table.bytes_for(kinds[: row + 1])
    assert table.bytes_for([]) == 0
