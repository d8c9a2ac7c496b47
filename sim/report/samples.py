"""Which test utterances the page shows, and their sound small enough to lie inside the page."""

import base64
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import soundfile

from fl.core.errors import AudioError
from fl.runs.schema import PredictionRow
from fl.settings.names import ARMS, DEFAULT_TASK
from fl.speech.audio import SAMPLE_RATE, load_audio
from sim.report.scoring import ScoredRow, kind_of_run, score

MAX_SAMPLES = 24
MAX_AUDIO_BYTES = 5 << 20  # of all samples together, before base64 adds a third
TOLERANCE_SECONDS = 1.0  # resampling and padding may add a little
FOLDED = "mer_folded"
KINDS = {  # in the order in which they take turns; the share of the samples that each may fill
    "spelling": ("Spelling habit learned", 9),
    "better": ("Personalized is better", 5),
    "worse": ("Personalized is worse", 3),
    "both": ("Both have errors", 2),
    "new": ("Held-out", 4),
    "right": ("No errors", 1),
}


@dataclass(frozen=True)
class Sample:
    """One utterance with what each arm wrote, in the order of the arms."""

    row: PredictionRow
    arms: tuple[ScoredRow, ...]
    metric: str  # the main one of the task

    def errors(self, arm: str, metric: str = "") -> int | None:
        """The errors of ``arm`` by the main metric or another; ``None`` where it did not see this utterance."""
        return next((each.counts[metric or self.metric].errors for each in self.arms if each.row.arm == arm), None)

    @cached_property
    def kind(self) -> str:
        """Why it is worth showing: a key of :data:`KINDS`."""
        if self.row.new_person:
            return "new"
        ours, theirs = self.errors("personalized"), self.errors("global")
        if ours is None or theirs is None:
            return "both" if any(each.counts[self.metric].errors for each in self.arms) else "right"
        if ours < theirs:
            folded = (self.errors("global", FOLDED) or 0) if FOLDED in self.arms[0].counts else theirs
            return "spelling" if theirs > folded and ours <= folded else "better"
        if ours > theirs:
            return "worse"
        return "both" if ours else "right"


def choose(transcripts: Sequence[PredictionRow], task: str = DEFAULT_TASK) -> list[Sample]:
    """Up to :data:`MAX_SAMPLES` telling utterances: wins by spelling, other wins, failures, held-out people, spread over devices.

    A function of the transcripts alone. What one kind leaves free goes to the others in the order of :data:`KINDS`.
    """
    metric = kind_of_run(task).main
    groups: dict[tuple[str, str], list[ScoredRow]] = defaultdict(list)
    for each in score(transcripts, task):
        groups[each.utterance].append(each)
    by_kind: dict[str, list[Sample]] = defaultdict(list)
    for key in sorted(groups):
        arms = tuple(sorted(groups[key], key=lambda each: ARMS.index(each.row.arm)))
        sample = Sample(arms[0].row, arms, metric)
        by_kind[sample.kind].append(sample)
    queues = {kind: _spread_over_devices(by_kind[kind]) for kind in KINDS}
    chosen = [sample for kind, (_, quota) in KINDS.items() for sample in queues[kind][:quota]]
    rest = [sample for kind, (_, quota) in KINDS.items() for sample in queues[kind][quota:]]
    order = list(KINDS)
    chosen = (chosen + rest)[:MAX_SAMPLES]
    return sorted(chosen, key=lambda sample: (order.index(sample.kind), sample.row.device, sample.row.utterance))


def spotlight(chosen: Sequence[Sample]) -> list[Sample]:
    """Three to begin with: the largest gain, the largest loss, a held-out speaker; for one that is missing the largest of the rest."""
    first: list[Sample] = []
    for kinds in (("spelling", "better"), ("worse",), ("new",)):
        first += sorted((sample for sample in chosen if sample.kind in kinds), key=lambda one: -_contrast(one))[:1]
    rest = sorted((sample for sample in chosen if sample not in first), key=lambda one: -_contrast(one))
    return (first + rest)[:3]


def _spread_over_devices(samples: Sequence[Sample]) -> list[Sample]:
    """Largest gain or loss of each device first, then the second of each, and so on."""
    by_device: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda sample: (-_contrast(sample), sample.row.utterance)):
        by_device[sample.row.device].append(sample)
    ranked = [(rank, device, sample) for device, own in by_device.items() for rank, sample in enumerate(own)]
    return [sample for _, _, sample in sorted(ranked, key=lambda entry: entry[:2])]


def _contrast(sample: Sample) -> int:
    other = "neutral" if sample.row.new_person else "personalized"
    return abs((sample.errors(other) or 0) - (sample.errors("global") or 0))


def embed_audio(path: Path | None, seconds: float, budget: int, start: float | None = None) -> str | None:
    """The recording as a ``data:`` address of mono MP3 of at most ``budget`` bytes; ``None`` if it cannot be had.

    ``start`` is where the utterance begins in a longer file, in seconds. A file that should be the utterance and is longer than its
    ``seconds`` was replaced since: it is left out rather than played under the wrong text.
    MP3 is small, plays in every browser and, unlike Ogg with its random serial numbers, is the same each time.
    """
    if path is None:
        return None
    try:
        first = start or 0.0
        audio = load_audio(path, first, first + seconds + (2 * TOLERANCE_SECONDS if start is None else 0.0))
        if len(audio) > (seconds + TOLERANCE_SECONDS) * SAMPLE_RATE:
            return None
        packed, kind = io.BytesIO(), "mpeg"
        try:
            soundfile.write(packed, audio, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III")
        except (soundfile.LibsndfileError, ValueError):  # an old libsndfile
            packed, kind = io.BytesIO(), "wav"
            soundfile.write(packed, audio, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    except (AudioError, OSError, RuntimeError):  # LibsndfileError is a RuntimeError
        return None
    data = packed.getvalue()
    return None if len(data) > budget else f"data:audio/{kind};base64,{base64.b64encode(data).decode('ascii')}"
