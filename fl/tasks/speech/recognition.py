"""Learning and transcribing on a frozen recognizer, whoever's speech it is. Nothing is kept beyond a call."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fl.bases.base import SpeechBase
from fl.speech.features import Window
from fl.speech.prefix import frozen_layers
from fl.tasks.task import Example, NamedDevices

# A batch decodes as long as its longest row needs, so two batches where one would do cost nearly twice; long rows would take
# too much memory.
PREDICTION_ROWS, LONG_ROWS = 32, 16
LONG_FRAMES = 1_000
PROMPT = "prompt"  # in the details of an example that is trained behind a previous text


class Recognition(NamedDevices):
    """The half of a speech task that does not know where speech comes from.

    ``inputs`` of an example are what the subclass keeps of it, its features and, once they are computed for a phase in which the
    encoder is as it is, its states. ``compute`` is where ``base`` computes; ``language`` is what the base is told, "" for none.
    """

    base: SpeechBase
    compute: torch.device
    window: Window
    language: str
    languages: Sequence[str] = ()  # among which a base that is told none looks
    prompt = ""  # Whisper's previous text

    def new_model(self) -> nn.Module:
        """A further recognizer of its own modules on the same frozen tensors."""
        return self.base.new_model()

    def _computing(self) -> AbstractContextManager[object]:
        return nullcontext()

    def loss(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        """Mean loss in nats over the labelled tokens or symbols of the batch."""
        with self._computing():
            return self.base.loss(model, self._labelled(model, examples))

    def losses(self, model: nn.Module, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Summed loss in nats of each example (N,), and the number of its labelled tokens or symbols (N,)."""
        with self._computing():
            return self.base.row_losses(model, self._labelled(model, examples))

    def precomputed(self, model: nn.Module, examples: Sequence[Example], trained: Collection[str]) -> Sequence[Example]:
        """With encoder states, where all that is trained lies behind the encoder."""
        if any(name.startswith(f"{self.base.encoder}.") for name in trained):
            return examples
        with torch.no_grad(), self._computing():
            states, _ = self.base.encode(model, self._labelled(model, examples))
        lengths = [self.base.states_of(e.inputs[1].shape[1]) for e in examples]
        rows = [row[:length].float().cpu().numpy() for row, length in zip(states, lengths, strict=True)]
        return [replace(e, inputs=(*e.inputs[:2], row)) for e, row in zip(examples, rows, strict=True)]

    def _labelled(self, model: nn.Module, examples: Sequence[Example]) -> Any:
        """A batch for training."""
        rows, texts = [e.inputs[1] for e in examples], [e.target for e in examples]
        prompts = [e.details.get(PROMPT, "") for e in examples]
        batch = self.base.collate(rows, texts, self.window, self.language or None, prompts)
        return self._from_prefix(model, batch, examples)

    def _from_prefix(self, model: nn.Module, batch: Any, examples: Sequence[Example]) -> Any:
        """``batch`` where the base computes, with the encoder states of examples that have them."""
        if all(len(e.inputs) > 2 for e in examples):
            every = frozen_layers(self.base, ())
            batch = self.base.with_prefix(batch, [e.inputs[2] for e in examples], every)
        return batch.to(self.compute)

    def training_bytes(self, example: Example) -> int:
        """Bytes of activations in a training step, as the base estimates them."""
        return self.base.training_bytes(example.size, example.details.get(PROMPT, "") + example.target)

    def prediction_rows(self, examples: Sequence[Example], *, adapted: bool) -> int:
        """Fewer where rows are long: those of the frozen base alone are 30 s whatever was said."""
        short = adapted and all(example.size <= LONG_FRAMES for example in examples)
        return PREDICTION_ROWS if short else LONG_ROWS

    def predict(self, model: nn.Module, examples: Sequence[Example], *, adapted: bool, beams: int) -> list[str]:
        """Transcripts, with the window and the language that adapters are trained with."""
        batch = self.base.collate([e.inputs[1] for e in examples], None, self.window, self.language or None)
        return self._generate(model, self._from_prefix(model, batch, examples), beams)

    def _generate(self, model: nn.Module, batch: Any, beams: int, heard: Sequence[int] | None = None) -> list[str]:
        known = [code for code in self.languages if code in self.base.languages]
        with torch.inference_mode(), self._computing():
            return self.base.generate(
                model, batch, beams=beams, languages=known or None, heard=heard, prompt=self.prompt
            )
