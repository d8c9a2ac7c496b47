"""A task of regression that trains in milliseconds, and a handful of recordings for what only speech can show."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from clients.worker import Worker, get_worker, kept
from fl.adapters.config import GatedLoraConfig
from fl.adapters.split import Split, make_split
from fl.adapters.state import State, adapter_parameters, adapter_state, load_state
from fl.metrics import Counts
from fl.settings.config import RunConfig, make_config
from fl.tasks.task import Example

TARGETS = ["first", "second"]


class Net(nn.Module):
    """Two linear maps with something bent between them."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = self.second(torch.tanh(self.first(x)))
        return mapped


@dataclass
class Regression:
    """See :class:`fl.tasks.task.Task`: each example is a vector and the vector that it should map to."""

    gate: str = "self"
    split_name: str = "gates"
    base_name: str = "net"
    fingerprint: str = "net:6-5-3"
    learns: bool = True
    adapter_facts: Mapping[str, str] = field(default_factory=dict)
    targets: str | list[str] = field(default_factory=lambda: list(TARGETS))
    loss_of: Callable[[Tensor, Tensor], Tensor] = nn.functional.mse_loss
    seen: list[tuple[str, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = GatedLoraConfig(r=2, lora_alpha=4.0, gate=self.gate, target_modules=TARGETS, init_seed=1)
        self.model: PeftModel = get_peft_model(Net(), config)
        self.model.eval()
        fresh = adapter_state(self.model)
        generator = torch.Generator().manual_seed(3)
        # B away from zero, as after some rounds: from zero, A and the gates would get no gradient in the first step.
        self.start: State = {
            name: torch.randn(value.shape, generator=generator) * 0.3 if name.endswith("_B") else value
            for name, value in fresh.items()
        }
        self.restart()

    def restart(self) -> None:
        load_state(self.model, self.start)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return adapter_parameters(self.model)

    @property
    def split(self) -> Split:
        return make_split(self.split_name, self.start)

    def state(self) -> State:
        return adapter_state(self.model)

    def moved(self) -> dict[str, float]:
        """The largest change of each tensor since the start."""
        return {name: float((value - self.start[name]).abs().max()) for name, value in self.state().items()}

    def device_ids(self) -> tuple[str, ...]:
        return ()

    def is_new(self, device_id: str) -> bool:
        return False

    def device(self, device_id: str) -> None:
        raise NotImplementedError

    def examples(self, count: int, seed: int = 0) -> list[Example]:
        rng = np.random.default_rng(seed)
        return [
            Example(
                f"e{i}", tuple(torch.from_numpy(rng.standard_normal(n).astype(np.float32)) for n in (6, 3)), "", 1, {}
            )
            for i in range(count)
        ]

    def loss(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        self.seen.append(tuple(e.key for e in examples))
        return self.loss_of(
            model(torch.stack([e.inputs[0] for e in examples])), torch.stack([e.inputs[1] for e in examples])
        )

    def new_model(self) -> nn.Module:
        return Net().requires_grad_(False)

    def losses(self, model: nn.Module, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        assert self.loss_of is nn.functional.mse_loss
        wanted = torch.stack([e.inputs[1] for e in examples])
        errors = model(torch.stack([e.inputs[0] for e in examples])) - wanted
        return errors.square().sum(1), torch.full((len(examples),), wanted.shape[1])

    def precomputed(self, model: nn.Module, examples: Sequence[Example], trained: Collection[str]) -> Sequence[Example]:
        return examples

    def training_bytes(self, example: Example) -> int:
        return 100

    def prediction_rows(self, examples: Sequence[Example], *, adapted: bool) -> int:
        return len(examples)

    def predict(self, model: nn.Module, examples: Sequence[Example], *, adapted: bool, beams: int) -> list[str]:
        raise NotImplementedError

    def score(self, example: Example, prediction: str) -> Mapping[str, Counts]:
        raise NotImplementedError


@pytest.fixture
def regression() -> Callable[..., Regression]:
    """Makes a regression task, by default with ``self`` gates that are private."""
    return Regression


@pytest.fixture(scope="session", autouse=True)
def cache(own_home: Path) -> Path:
    """A cache folder of the tests' own."""
    return own_home


@pytest.fixture(scope="session")
def manifest(noise_manifest: Callable[..., Path]) -> Path:
    """Four speakers with eight recordings each."""
    return noise_manifest([f"화자 {number}" for number in range(4)], 8)


@pytest.fixture
def config(manifest: Path, tmp_path: Path) -> RunConfig:
    """The smallest run: one round of one step."""
    return make_config(
        {
            "base": "random:whisper-nano",
            "manifest": str(manifest),
            "rounds": 1,
            "local-steps": 1,
            "batch-size": 2,
            "cohort": 1,
            "rank": 2,
            "gate": "self",
            "new-people": 1,
            "language": "ko",
            "output": str(tmp_path / "run"),
        }
    )


@pytest.fixture
def worker(config: RunConfig, tmp_path: Path) -> Iterator[Worker]:
    """The worker that the ClientApp uses for ``config``."""
    kept.worker.cache_clear()
    yield get_worker(config, tmp_path / "run" / "devices", "")
    kept.worker.cache_clear()
