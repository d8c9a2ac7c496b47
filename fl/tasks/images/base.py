"""The frozen base of the digits: a small vision transformer that the project trains itself, once, on public images.

A ViT (Dosovitskiy et al. 2020, arXiv 2010.11929) on patches of 2 x 2 pixels. Training is a function of the seed below, in one
thread, so that the number of cores does not decide the last bits; what was trained is kept in the cache.
"""

from functools import lru_cache

import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import ViTConfig, ViTModel

from fl.core.errors import BaseModelError
from fl.core.files import write_atomically
from fl.core.paths import cache_root
from fl.core.rng import derive_seed
from fl.core.tensorfile import tensor_bytes
from fl.tasks.images.kind import DIGITS
from fl.tasks.images.writers import CLASSES, SIDE, public_digits
from fl.tasks.kind import Progress

TRAINED, NANO = DIGITS.default_base, "random:vit-nano"  # the second for unit tests: not trained
VERSION = 1  # raise it with every change that alters what is trained
EPOCHS, BATCH, RATE = 25, 50, 2e-3
WEIGHT_DECAY = 0.05


def vit_config(name: str) -> ViTConfig:
    """The shape of a base. Raises :class:`BaseModelError` for an unknown one."""
    shapes = {TRAINED: (64, 4, 4), NANO: (16, 2, 2)}
    if name not in shapes:
        raise BaseModelError(f"image base {name!r} not found: the task digits has {', '.join(shapes)}")
    width, layers, heads = shapes[name]
    return ViTConfig(
        image_size=SIDE,
        patch_size=2,
        num_channels=1,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


class Reader(nn.Module):
    """A ViT and a head on the state of its class token."""

    def __init__(self, vit: ViTModel, head: nn.Linear) -> None:
        super().__init__()
        self.vit = vit
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 1, 10) of images (N, 8, 8)."""
        states = self.vit(pixel_values=images[:, None]).last_hidden_state[:, 0]
        logits: Tensor = self.head(states)
        return logits[:, None, :CLASSES]


def fresh_reader(name: str) -> Reader:
    """A reader with weights from a seed of its own."""
    config = vit_config(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("image base", name, VERSION))
        return Reader(ViTModel(config, add_pooling_layer=False), nn.Linear(config.hidden_size, CLASSES))


@lru_cache(maxsize=2)
def load_reader(name: str, progress: Progress = lambda done, total: None) -> Reader:
    """The base ``name``, frozen: from the cache, or trained now. Raises :class:`BaseModelError`.

    Processes that ask at the same time wait for the first.
    """
    reader = fresh_reader(name)
    if name != NANO:
        path = cache_root() / "bases" / f"{name}-{VERSION}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file():
                train(reader, progress)
                try:
                    write_atomically(path, tensor_bytes(reader.state_dict(), {"format": "pt"}))
                except OSError as error:
                    free = "free some space, or set IDIOLECT_HOME"
                    raise BaseModelError(f"{path} cannot be written ({error}): {free}") from error
        try:
            reader.load_state_dict(load_file(path))
        except Exception as error:  # safetensors and torch have several unrelated types for a damaged file
            again = "remove it, it is made again"
            raise BaseModelError(f"{path} is not the base that was trained ({error}): {again}") from error
    reader.requires_grad_(False)
    return reader.eval()


def train(reader: Reader, progress: Progress = lambda done, total: None, epochs: int = EPOCHS) -> None:
    """Train on the public images, each a little turned and moved anew in every pass."""
    public = public_digits()
    generator = torch.Generator().manual_seed(derive_seed("image base training", VERSION))
    optimizer = torch.optim.AdamW(reader.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * (len(public.digits) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    reader.train()
    try:
        for epoch in range(epochs):
            order = torch.randperm(len(public.digits), generator=generator)
            for batch in order[: len(order) // BATCH * BATCH].view(-1, BATCH):
                images = _jittered(public.images[batch], generator)
                loss = functional.cross_entropy(reader(images)[:, 0], public.digits[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
            progress(epoch + 1, epochs)
    finally:
        torch.set_num_threads(before)


def _jittered(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turned by up to 10 degrees and moved by up to half a pixel, each image its own way."""
    turn, right, down = 2 * torch.rand(3, len(images), generator=generator) - 1
    angle = turn * torch.pi / 18
    rows = torch.stack(
        (
            torch.stack((angle.cos(), -angle.sin(), right / SIDE), 1),
            torch.stack((angle.sin(), angle.cos(), down / SIDE), 1),
        ),
        1,
    )
    grid = functional.affine_grid(rows, [len(images), 1, SIDE, SIDE], align_corners=False)
    return functional.grid_sample(images[:, None], grid, align_corners=False)[:, 0]
