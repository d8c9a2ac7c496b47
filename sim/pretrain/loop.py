"""Supervised CTC training of all weights, resumable to the step: what a checkpoint holds decides everything that follows.

The batch of a step, and every other random choice in it, is a function of the seed and the step's number alone. So weights,
the optimizer's moments and the number of steps done are the whole state; it is written to one file, at once.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from fl.bases.ctc.base import CtcBase
from fl.bases.ctc.loading import CTC_ARCHITECTURES, assemble_ctc, ctc_config, random_ctc
from fl.bases.sources.mapped import write_aligned
from fl.core.compute import AUTO, autocast, choose_device, choose_precision
from fl.core.errors import ConfigError, RunError
from fl.core.files import PUBLIC, new_folder, write_atomically
from fl.core.rng import derive_generator, derive_seed
from fl.core.tensorfile import tensor_bytes
from fl.data.manifest import Utterance
from fl.metrics import Counts, score_utterance
from fl.speech.audio import check_speech, load_audio
from sim.pretrain.settings import PretrainSettings as PretrainSettings

FACTS_NAME = "pretraining.json"
DROPOUT = 0.1
DROPPED = ("hidden_dropout", "feat_proj_dropout", "final_dropout")
CLIPPING_NORM = 1.0
WEIGHT_DECAY = 0.01
HELD_OUT_SHARE = 0.05


@dataclass(frozen=True)
class PretrainFacts:
    """What came out. Losses are in nats for each symbol; ``cer`` is of greedy decoding on sentences that were held out."""

    fingerprint: str
    parameters: int
    utterances: int
    held_out: int
    steps: int
    first_loss: float
    last_loss: float
    cer: float


@dataclass(frozen=True)
class SpokenText:
    """One utterance: its waveform (1, samples) and its text."""

    features: np.ndarray
    text: str


def rate_factor(step: int, settings: PretrainSettings) -> float:
    """The learning rate of a step (from 0) as a share of the largest: a linear rise, then a linear fall to a twentieth."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    return 1.0 - 0.95 * (step - settings.warmup) / max(1, settings.steps - settings.warmup)


def pretrain_base(
    out: Path,
    settings: PretrainSettings,
    utterances: Sequence[Utterance],
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> PretrainFacts:
    """Train and write the base to ``out``; a run that was stopped goes on. ``progress(steps done, loss)`` after each step.

    Raises :class:`RunError` for a folder or a checkpoint of other settings or other speech, :class:`ConfigError` for too
    little speech, :class:`fl.core.errors.VocabularyError` for text that the tokens cannot write.
    """
    stamp = _stamp(settings, utterances)
    finished = _finished(out, stamp)
    if finished is not None:
        return finished
    training = _Training(settings, utterances)
    partial = out.with_name(f".{out.name}.pretrain")
    training.restore(partial / "checkpoint.safetensors", stamp)
    while training.step < settings.steps:
        progress(training.step + 1, training.take_step())
        if training.step % settings.checkpoint_every == 0 and training.step < settings.steps:
            training.save(partial / "checkpoint.safetensors", stamp)
    facts = training.facts()
    with new_folder(out, PUBLIC) as folder:
        training.write(folder)
        (folder / FACTS_NAME).write_text(
            json.dumps({"stamp": stamp, "settings": asdict(settings), **asdict(facts)}, indent=1), encoding="utf-8"
        )
    shutil.rmtree(partial, ignore_errors=True)
    return facts


def _stamp(settings: PretrainSettings, utterances: Sequence[Utterance]) -> str:
    """A hash of what decides the weights."""
    said = [(u.id, u.text, u.start, u.end) for u in utterances]
    return hashlib.sha256(json.dumps([asdict(settings), said]).encode()).hexdigest()


def _finished(out: Path, stamp: str) -> PretrainFacts | None:
    if not out.exists():
        return None
    try:
        found = json.loads((out / FACTS_NAME).read_text(encoding="utf-8"))
        same = found["stamp"] == stamp
        facts = PretrainFacts(**{name: found[name] for name in PretrainFacts.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{out} exists and is not a base that was pretrained here: give another folder") from error
    if not same:
        raise RunError(f"{out} was pretrained with other settings or other speech: give another folder, or delete it")
    return facts


class _Training:
    """The model with weights of its own, the optimizer, and the speech in memory."""

    def __init__(self, settings: PretrainSettings, utterances: Sequence[Utterance]) -> None:
        self.settings = settings
        self.device = choose_device()
        start, vocabulary = random_ctc(settings.architecture, settings.tokens)
        shape = CTC_ARCHITECTURES[settings.architecture]
        config = ctc_config(shape, len(vocabulary), **dict.fromkeys(DROPPED, DROPOUT))
        own = {name: tensor.clone().to(self.device) for name, tensor in start.state_dict().items()}
        self.model: nn.Module = assemble_ctc(config, own, settings.architecture)
        self.model.requires_grad_(True)
        self.base = CtcBase(settings.architecture, "", start, vocabulary)
        vocabulary.require((u.text for u in utterances), "the speech to learn from")
        self.train, self.held_out = self._divided([_read_utterance(self.base, u) for u in utterances])
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=0.0, weight_decay=WEIGHT_DECAY)
        self.step = 0
        self.losses: list[float] = []

    def _divided(self, spoken: list[SpokenText]) -> tuple[list[SpokenText], list[SpokenText]]:
        """Training and held-out utterances; a text is never in both."""
        texts = sorted({one.text for one in spoken})
        count = max(1, round(HELD_OUT_SHARE * len(texts)))
        if len(texts) < 3:
            raise ConfigError(f"{len(texts)} different sentences in one language are too few to learn from: give more")
        order = derive_generator(self.settings.seed, "held out").permutation(len(texts))
        chosen = {texts[int(index)] for index in order[:count]}
        return [one for one in spoken if one.text not in chosen], [one for one in spoken if one.text in chosen]

    def batch(self, step: int) -> list[SpokenText]:
        """The utterances of a step: shuffled passes over all, cut into batches."""
        size = min(self.settings.batch_size, len(self.train))
        each = len(self.train) // size
        order = derive_generator(self.settings.seed, "epoch", step // each).permutation(len(self.train))
        first = step % each * size
        return [self.train[int(index)] for index in order[first : first + size]]

    def take_step(self) -> float:
        """One optimizer step; the loss before it."""
        chosen = self.batch(self.step)
        torch.manual_seed(derive_seed(self.settings.seed, "step", self.step))
        batch = self.base.collate([one.features for one in chosen], [one.text for one in chosen]).to(self.device)
        self.model.train()
        with autocast(self.device, choose_precision(AUTO, self.device)):
            loss = self.base.loss(self.model, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), CLIPPING_NORM)
        value = float(loss.detach())
        if not math.isfinite(value) or not bool(torch.isfinite(norm)):
            raise RunError(f"pretraining diverged at step {self.step + 1}: lower learning-rate, or give more warmup")
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * rate_factor(self.step, self.settings)
        self.optimizer.step()
        self.step += 1
        self.losses.append(value)
        return value

    def save(self, path: Path, stamp: str) -> None:
        """Write the whole state; a reader finds the one before or this one."""
        tensors = {f"model.{name}": p.detach().cpu() for name, p in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"{moment}.{name}"] = self.optimizer.state[parameter][moment].cpu()
        facts = {"stamp": stamp, "step": str(self.step), "losses": json.dumps([self.losses[0], self.losses[-1]])}
        write_atomically(path, tensor_bytes(tensors, facts), mode=PUBLIC)

    def restore(self, path: Path, stamp: str) -> None:
        """Go on from a checkpoint, if there is one. Raises :class:`RunError` for one of another run."""
        if not path.is_file():
            return
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata()
                if facts["stamp"] != stamp:
                    raise RunError(f"{path} is of other settings or other speech: delete it, or give another folder")
                with torch.no_grad():
                    for name, parameter in self.parameters.items():
                        parameter.copy_(file.get_tensor(f"model.{name}"))
                        self.optimizer.state[parameter] = {
                            "step": torch.tensor(float(facts["step"])),
                            "exp_avg": file.get_tensor(f"exp_avg.{name}").to(self.device),
                            "exp_avg_sq": file.get_tensor(f"exp_avg_sq.{name}").to(self.device),
                        }
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise RunError(f"{path} cannot be read ({error}): delete it to begin again") from error
        self.step = int(facts["step"])
        self.losses = json.loads(facts["losses"])

    def facts(self) -> PretrainFacts:
        """The finished model, and how it does on what it did not see."""
        self.model.eval()
        counts = []
        for first in range(0, len(self.held_out), 16):
            part = self.held_out[first : first + 16]
            with torch.inference_mode():
                texts = self.base.generate(self.model, self.base.collate([h.features for h in part]).to(self.device))
            counts += [score_utterance(one.text, text).metrics["cer"] for one, text in zip(part, texts, strict=True)]
        cer = sum(counts, Counts())
        return PretrainFacts(
            fingerprint=self.base.on_weights(self.model.state_dict()).compute_fingerprint(),
            parameters=sum(p.numel() for p in self.parameters.values()),
            utterances=len(self.train) + len(self.held_out),
            held_out=len(self.held_out),
            steps=self.step,
            first_loss=self.losses[0],
            last_loss=self.losses[-1],
            cer=cer.errors / max(1, cer.reference),
        )

    def write(self, folder: Path) -> None:
        """The base's files, as transformers names them. Dropout is of training, and not written."""
        shape = CTC_ARCHITECTURES[self.settings.architecture]
        config = ctc_config(shape, len(self.base.vocabulary), architectures=["Wav2Vec2ForCTC"])
        weights = {name: p.detach() for name, p in self.model.state_dict().items()}
        write_aligned(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=1, sort_keys=True), encoding="utf-8")
        self.base.vocabulary.save(folder)


def _read_utterance(base: CtcBase, utterance: Utterance) -> SpokenText:
    audio = load_audio(utterance.audio, utterance.start, utterance.end)
    check_speech(audio, str(utterance.audio))
    spoken = SpokenText(base.features(audio), utterance.text)
    base.collate([spoken.features], [spoken.text])  # refuses a text that does not fit, before the first step
    return spoken
