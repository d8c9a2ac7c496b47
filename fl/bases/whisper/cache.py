"""What the decoder remembers of each row: keys and values of its own tokens, and of the speech it listens to.

Rows come and go while others go on, so each has its own number of tokens and of encoder states. Rows lie in tensors with
room for more; the last row is moved into the place of one that left. Whatever is not in use is zero: a masked entry is
multiplied by a weight of zero, and zero times the infinity that a damaged adapter left there would not be zero.

Speech lies on *shelves* by its length, so that a row of three seconds does not attend over the thirty of its neighbour.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional
from transformers import WhisperConfig

from fl.bases.batch import inside

FINE, COARSE, KNEE = 64, 256, 512  # widths of shelves: multiples of FINE states up to KNEE, of COARSE above it
TOKENS_AT_A_TIME = 32
ROWS_AT_A_TIME = 4

KeysAndValues = Sequence[tuple[Tensor, Tensor]]  # of each layer
Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Of a scaled query (rows, heads, 1, d) to keys and values (rows, heads, n, d) under a mask: (rows, heads, 1, d)."""


def shelf_width(states: int, most: int) -> int:
    """The width of the shelf for so many encoder states."""
    step = FINE if states <= KNEE else COARSE
    return min(-(-states // step) * step, most)


@dataclass
class _Shelf:
    """Speech of about the same length: keys and values (capacity, heads, width, d) by layer, of the rows in ``owners``."""

    kept: list[tuple[Tensor, Tensor]]
    owners: list[int] = field(default_factory=list)
    states: list[int] = field(default_factory=list)
    index: Tensor | None = None
    mask: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """Keys and values of all layers."""
        return [tensor for pair in self.kept for tensor in pair]

    def changed(self) -> None:
        """Work out again which rows attend to what."""
        keys = self.kept[0][0]
        self.index = torch.tensor(self.owners, dtype=torch.long, device=keys.device)
        real = inside(torch.tensor(self.states, device=keys.device), keys.shape[2])
        self.mask = None if bool(real.all()) else real[:, None, None, :]


class RowCache:
    """Keys and values of up to ``capacity`` rows, of which the first :attr:`count` are in use, of the type of ``like``."""

    def __init__(self, config: WhisperConfig, capacity: int, like: Tensor) -> None:
        self.layers, self.heads = config.decoder_layers, config.decoder_attention_heads
        self.width = config.d_model // self.heads
        self.most_states, self.most_tokens = config.max_source_positions, config.max_target_positions
        self.capacity, self._like = capacity, like
        self.clear()

    def clear(self) -> None:
        """Drop all rows and free their memory."""
        self.count = 0
        self.lengths: list[int] = []  # tokens of each row
        self.positions = torch.zeros(0, dtype=torch.long)  # of each row's next token
        self._own = self._like.new_zeros((self.layers, 2, 0, self.heads, 0, self.width))  # its fifth axis are tokens
        self._shelves: dict[int, _Shelf] = {}
        self._places: list[tuple[int, int]] = []  # shelf and place on it, of each row
        self._mask: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """Everything that is kept."""
        return [self._own, *(tensor for shelf in self._shelves.values() for tensor in shelf.tensors)]

    @property
    def bytes(self) -> int:
        """What the cache occupies."""
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def fill(self, own: KeysAndValues, speech: KeysAndValues, states: Sequence[int], times: int = 1) -> None:
        """Make a batch the rows of an empty cache, each ``times`` times: keys and values (batch, heads, n, d) by layer.

        They are on one shelf of exactly their width, and where ``times`` is 1 the speech is not copied.
        """
        self._like = own[0][0]  # of another type than the weights under autocast
        self.clear()
        rows, tokens = times * len(states), own[0][0].shape[2]
        self._reserve(rows, tokens + 1)
        for layer, pair in enumerate(own):
            for which in (0, 1):
                self._own[layer, which, :rows, :, :tokens] = _repeated(pair[which], times)
        width = speech[0][0].shape[2]
        shelf = self._shelves[width] = _Shelf([(_repeated(k, times), _repeated(v, times)) for k, v in speech])
        shelf.owners, shelf.states = list(range(rows)), [count for count in states for _ in range(times)]
        shelf.changed()
        self._places = [(width, row) for row in range(rows)]
        self.lengths, self.count = [tokens] * rows, rows
        self._changed()

    def join(self, own: KeysAndValues, speech: KeysAndValues, states: int, coming: int = 1) -> None:
        """Add a row: for each layer keys and values of its prompt (heads, tokens, d) and of its speech (heads, states, d).

        ``coming`` rows join one after the other, this one among them: a shelf that grows makes room for all of them at once.
        """
        row, tokens = self.count, own[0][0].shape[1]
        self._reserve(row + 1, tokens + 1)
        width = shelf_width(states, self.most_states)
        if width not in self._shelves:
            room = (min(max(ROWS_AT_A_TIME, coming), self.capacity), self.heads, width, self.width)
            kept = [(self._like.new_zeros(room), self._like.new_zeros(room)) for _ in range(self.layers)]
            self._shelves[width] = _Shelf(kept)
        shelf = self._shelves[width]
        place = len(shelf.owners)
        if place == shelf.kept[0][0].shape[0]:
            size = min(place + max(place, coming), self.capacity)
            shelf.kept = [(_grown(keys, 0, size), _grown(values, 0, size)) for keys, values in shelf.kept]
        for layer in range(self.layers):
            for which in (0, 1):
                self._own[layer, which, row, :, :tokens] = own[layer][which]
                shelf.kept[layer][which][place, :, :states] = speech[layer][which][:, :states]
        shelf.owners.append(row)
        shelf.states.append(states)
        shelf.changed()
        self._places.append((width, place))
        self.lengths.append(tokens)
        self.count += 1
        self._changed()

    def leave(self, row: int) -> int:
        """Take a row out; the last row takes its place. Returns the number that the row in its place had."""
        last = self.count - 1
        self._take_from_shelf(row)
        if row != last:
            self._own[:, :, row] = self._own[:, :, last]
            self.lengths[row], self._places[row] = self.lengths[last], self._places[last]
            shelf = self._shelves[self._places[row][0]]
            shelf.owners[self._places[row][1]] = row
            shelf.changed()
        self._own[:, :, last].zero_()
        self.lengths.pop()
        self._places.pop()
        self.count = last
        if not self.count:
            self.clear()
        self._changed()
        return last

    def _take_from_shelf(self, row: int) -> None:
        width, place = self._places[row]
        shelf = self._shelves[width]
        end = len(shelf.owners) - 1
        if place != end:
            for tensor in shelf.tensors:
                tensor[place] = tensor[end]
            shelf.owners[place], shelf.states[place] = shelf.owners[end], shelf.states[end]
            self._places[shelf.owners[place]] = (width, place)
        for tensor in shelf.tensors:
            tensor[end].zero_()
        shelf.owners.pop()
        shelf.states.pop()
        if shelf.owners:
            shelf.changed()
        else:
            del self._shelves[width]

    def reorder(self, rows: Sequence[int], sources: Sequence[int]) -> None:
        """Row ``rows[i]`` goes on from the tokens of row ``sources[i]``: the beams of an utterance, whose speech is the same."""
        moved = [(row, source) for row, source in zip(rows, sources, strict=True) if row != source]
        if moved:
            self._own[:, :, [row for row, _ in moved]] = self._own[:, :, [source for _, source in moved]]

    def begin_step(self) -> None:
        """Make room for one more token in each row."""
        self._reserve(self.count, max(self.lengths) + 1)

    def end_step(self) -> None:
        """Each row has one more token."""
        self.lengths = [length + 1 for length in self.lengths]
        self._changed()

    def attend_own(self, layer: int, query: Tensor, key: Tensor, value: Tensor, attention: Attention) -> Tensor:
        """Attention (rows, heads d) of each row's new token to its own tokens, after its ``key`` and ``value`` are added.

        All three are (rows, heads d); the query is scaled.
        """
        split = (self.count, self.heads, self.width)
        rows, longest = torch.arange(self.count, device=query.device), max(self.lengths) + 1
        keys, values = self._own[layer, 0, : self.count], self._own[layer, 1, : self.count]
        keys[rows, :, self.positions] = key.view(split)
        values[rows, :, self.positions] = value.view(split)
        return attention(
            query.view(split)[:, :, None], keys[:, :, :longest], values[:, :, :longest], self._mask
        ).reshape(self.count, -1)

    def attend_speech(self, layer: int, query: Tensor, attention: Attention) -> Tensor:
        """Attention (rows, heads d) of each row's new token, as a scaled ``query`` (rows, heads d), to its speech."""
        split = query.view(self.count, self.heads, 1, self.width)
        shelves = list(self._shelves.values())
        if len(shelves) == 1 and shelves[0].owners == list(range(self.count)):
            return self._from_shelf(shelves[0], layer, split, attention)
        out = torch.empty_like(query)
        for shelf in shelves:
            assert shelf.index is not None
            out[shelf.index] = self._from_shelf(shelf, layer, split[shelf.index], attention)
        return out

    def _from_shelf(self, shelf: _Shelf, layer: int, query: Tensor, attention: Attention) -> Tensor:
        keys, values = (tensor[: len(query)] for tensor in shelf.kept[layer])
        return attention(query, keys, values, shelf.mask).reshape(len(query), -1)

    def _changed(self) -> None:
        device = self._own.device
        self.positions = torch.tensor(self.lengths, dtype=torch.long, device=device)
        self._mask = None
        if self.count and len(set(self.lengths)) > 1:
            self._mask = inside(self.positions + 1, max(self.lengths) + 1)[:, None, None, :]

    def _reserve(self, rows: int, tokens: int) -> None:
        room = self._own.shape
        if rows > room[2]:
            self._own = _grown(self._own, 2, min(max(ROWS_AT_A_TIME, 2 * room[2], rows), self.capacity))
        if tokens > room[4]:
            self._own = _grown(self._own, 4, min(-(-tokens // TOKENS_AT_A_TIME) * TOKENS_AT_A_TIME, self.most_tokens))


def _repeated(tensor: Tensor, times: int) -> Tensor:
    return tensor if times == 1 else tensor.repeat_interleave(times, dim=0)


def _grown(tensor: Tensor, axis: int, size: int) -> Tensor:
    """A larger tensor with zeros behind what ``tensor`` has."""
    behind = (0, 0) * (tensor.ndim - 1 - axis)  # the axes behind it, which pad takes from the last on
    return functional.pad(tensor, (*behind, 0, size - tensor.shape[axis]))
