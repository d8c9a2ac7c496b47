"""One person's labelled speech as a task: what ``idiolect enrol`` and the server learn from."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from torch import Tensor, nn

from fl.bases.base import SpeechBase
from fl.metrics import Counts, score_utterance
from fl.speech.audio import Waveform
from fl.speech.features import Window
from fl.tasks.speech.recognition import Recognition
from fl.tasks.task import Example

PERSON = "you"
Spoken = tuple[str, Waveform, str]  # what a person knows it by, samples at 16 kHz, what was said


class OwnSpeech(Recognition):
    """One person's labelled speech as a task. Nothing of it is written to a disk.

    ``check`` is called before each computation and may raise to end the enrolment.
    """

    def __init__(
        self,
        base: SpeechBase,
        utterances: Iterable[Spoken],
        *,
        window: Window,
        language: str,
        targets: str | list[str],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__({PERSON: False})
        self.base, self.window, self.language, self.targets = base, window, language, targets
        self.base_name, self.fingerprint, self.model = base.name, base.fingerprint, base.model
        self.compute, self.check = next(base.model.parameters()).device, check
        self.languages = (language,) if language else ()
        self._utterances = utterances

    def _examples_of(self, device_id: str) -> Mapping[str, Iterable[Example]]:
        return {"train": map(self._example, self._utterances), "validation": (), "test": ()}

    def _example(self, utterance: Spoken) -> Example:
        name, audio, text = utterance
        self.check()
        features = self.base.features(audio, self.window)
        return Example(name, (None, features), text, self.base.frames(features), {})

    def losses(self, model: nn.Module, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """See :meth:`Recognition.losses`."""
        self.check()
        return super().losses(model, examples)

    def precomputed(self, model: nn.Module, examples: Sequence[Example], trained: Collection[str]) -> Sequence[Example]:
        """See :meth:`Recognition.precomputed`."""
        self.check()
        return super().precomputed(model, examples, trained)

    def predict(self, model: nn.Module, examples: Sequence[Example], *, adapted: bool, beams: int) -> list[str]:
        """See :meth:`Recognition.predict`."""
        self.check()
        return super().predict(model, examples, adapted=adapted, beams=beams)

    def score(self, example: Example, prediction: str) -> Mapping[str, Counts]:
        """Error counts of one transcript, by metric; the language of a word follows its script."""
        return score_utterance(example.target, prediction).metrics
