"""scikit-learn's digits, and writers made from them.

The data set (UCI Optical Recognition of Handwritten Digits, 1,797 test images of 8 x 8 pixels) does not say who wrote what. So a
writer is simulated: a slant, size, place and weight of stroke, the same for all images of one writer; and every second one
means by two of the digits what others mean by the other, as with a 1 that looks like a 7. Images are shared out by split first:
what anyone is tested on, nobody trained on, in whatever hand.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fl.core.errors import ConfigError
from fl.core.rng import derive_generator, derive_random

SIDE = 8  # pixels
INK = 16.0  # the darkest value of the data set
CLASSES = 10
PUBLIC = 700  # images that the base is trained on; devices never see them
POOLS = {"train": 0.7, "validation": 0.1, "test": 0.2}  # shares of the others
SWAPS = ((1, 7), (4, 9), (3, 8), (5, 6))  # pairs that are easily taken for each other


@dataclass(frozen=True)
class Digits:
    """Images (n, 8, 8) with ink from 0 to 1, and the digits that they show (n,)."""

    images: Tensor
    digits: Tensor


@lru_cache(maxsize=1)
def _all() -> Digits:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(
            "task digits needs scikit-learn, whose images it uses: install it with pip install 'idiolect-fl[digits]'"
        ) from error
    found = load_digits()
    return Digits(torch.from_numpy(found.images / INK).float(), torch.from_numpy(found.target).long())


@lru_cache(maxsize=1)
def shares() -> dict[str, list[int]]:
    """The images, by index, of ``public`` and of each split: always the same, and none in two of them."""
    order = derive_generator("digits", "shares").permutation(len(_all().digits)).tolist()
    found = {"public": order[:PUBLIC]}
    rest, start = order[PUBLIC:], 0
    for name, share in POOLS.items():
        stop = len(rest) if name == "test" else start + round(share * len(rest))
        found[name], start = rest[start:stop], stop
    return found


def public_digits() -> Digits:
    """What the base is trained on: images as they are in the data set."""
    chosen = shares()["public"]
    return Digits(_all().images[chosen], _all().digits[chosen])


@dataclass(frozen=True)
class Writer:
    """One person's hand. ``swap`` are the two digits that they use for each other, or None."""

    name: str
    new_person: bool
    rotation: float  # radians
    shear: float
    scale: float
    shift: tuple[float, float]  # pixels, right and down
    weight: float  # exponent of the ink: below 1 is a thick stroke
    contrast: float  # of ink to paper, at most 1
    swap: tuple[int, int] | None

    def write(self, images: Tensor) -> Tensor:
        """Images (n, 8, 8) in this hand."""
        cos, sin = math.cos(self.rotation) / self.scale, math.sin(self.rotation) / self.scale
        right, down = (2 * move / SIDE for move in self.shift)
        rows = torch.tensor([[cos, -sin + self.shear, -right], [sin, cos, -down]])
        grid = functional.affine_grid(rows.expand(len(images), 2, 3), [len(images), 1, SIDE, SIDE], align_corners=False)
        moved = functional.grid_sample(images[:, None], grid, align_corners=False)[:, 0]
        return self.contrast * moved.clamp(0, 1) ** self.weight

    def meant(self, digit: int) -> int:
        """What this person means by what looks like ``digit``."""
        if self.swap is None or digit not in self.swap:
            return digit
        return self.swap[1 - self.swap.index(digit)]


def draw_writers(devices: int, new_people: int, seed: int) -> tuple[Writer, ...]:
    """Writers called ``writer-000``... and ``writer-new-000``...; every second one swaps two digits, pair by pair in turn."""
    names = [(f"writer-{i:03d}", False) for i in range(devices)]
    names += [(f"writer-new-{i:03d}", True) for i in range(new_people)]
    writers = []
    for index, (name, new_person) in enumerate(names):
        random = derive_random(seed, "writer", name)
        writer = Writer(
            name=name,
            new_person=new_person,
            rotation=math.radians(random.uniform(-25, 25)),
            shear=random.uniform(-0.3, 0.3),
            scale=random.uniform(0.8, 1.1),
            shift=(random.uniform(-0.8, 0.8), random.uniform(-0.8, 0.8)),
            weight=random.uniform(0.6, 1.6),
            contrast=random.uniform(0.5, 1.0),
            swap=SWAPS[index // 2 % len(SWAPS)] if index % 2 else None,
        )
        writers.append(writer)
    return tuple(writers)


def images_of(writer: Writer, split: str, count: int, seed: int) -> tuple[list[int], Digits]:
    """``count`` images of a split, by index in the data set and in this writer's hand, with what the writer means by them.

    Raises :class:`ConfigError` if the split has not so many.
    """
    pool = shares()[split]
    if count > len(pool):
        raise ConfigError(f"{count} {split} images of each writer, there are {len(pool)}: lower sentences")
    chosen = derive_generator(seed, "images", writer.name, split).permutation(pool)[:count].tolist()
    found = _all()
    meant = torch.tensor([writer.meant(int(found.digits[i])) for i in chosen], dtype=torch.long)
    return chosen, Digits(writer.write(found.images[chosen]) if chosen else torch.empty(0, SIDE, SIDE), meant)


def as_text(image: Tensor) -> str:
    """An image (8, 8) as 64 hexadecimal digits of ink, row by row: small enough to stand in a line of predictions."""
    levels = np.rint(15 * image.clamp(0, 1).flatten().numpy()).astype(int)
    return "".join(f"{level:x}" for level in levels)
