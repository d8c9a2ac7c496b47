"""People per second on one frozen base: continuous batching of different adapters against what PEFT offers today.

    python -m benchmarks.serving [--people 16] [--repeats 5] [--smoke]

As many utterances as people, each with that person's own adapter, and as many tokens from each (the end token and the guard
against loops are off, so that all sides do the same work):

- ``engine``: fl.serving.engine.engine.BatchEngine, trimmed windows; its transcripts must be those of PEFT.
- ``engine_gated``: the same with `self` gates, which PEFT's LoRA has not.
- ``engine_base``: the same batch without any adapter.
- ``peft_switching_30s``: transformers' generate on the 30 s window, ``set_adapter`` before each request.
- ``peft_switching``: the same on trimmed windows.
- ``peft_mixed``: PEFT's own batch of mixed adapters (``adapter_names``) on trimmed windows.

``serving_people`` is the time of ``engine`` itself. Beside it: what of the engine's time its encoder and its decoder take, and
the floor from operations (encoder) and bytes (decoder) at the rates that the machine shows at that moment.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GenerationConfig
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from benchmarks._report import BenchmarkRow, machine, matrix_rate, spread, time_side_by_side, write_row
from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.files import AdapterInfo
from fl.adapters.layer import fresh_adapter
from fl.adapters.stacked import Slot
from fl.bases.resolve import load_base
from fl.bases.whisper import decoding, forward
from fl.bases.whisper.base import WhisperBase
from fl.core.rng import derive_generator, derive_seed
from fl.serving.engine.engine import BatchEngine, EngineSettings
from fl.serving.engine.requests import Request, ServedAdapter, Transcript
from fl.speech.audio import SAMPLE_RATE

SITES = ("encoder.self", "decoder.self", "decoder.cross")
TARGETS = {"peft_switching_30s": 6.0, "peft_switching": 2.5, "peft_mixed": 1.7}
MOST_OVER_BASE = 1.25
MOST_SECONDS = 2.6  # for 16 people; on a processor with matrix units for bfloat16 the project's table has another


def make_adapter(base: WhisperBase, person: int, gate: str, arguments: argparse.Namespace) -> ServedAdapter:
    """A person's adapter, with B and gates away from zero."""
    config = GatedLoraConfig(
        r=arguments.rank,
        lora_alpha=2.0 * arguments.rank,
        gate=gate,
        target_modules=target_pattern(SITES),
        init_seed=derive_seed(arguments.seed, "A", person),
    )
    generator = torch.Generator().manual_seed(derive_seed(arguments.seed, "rest", person) % 2**63)
    tensors = {
        name: tensor if name.endswith("_A") else 0.01 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in fresh_adapter(base.model, config).items()
    }
    info = AdapterInfo(base.name, base.fingerprint, "gates", config, window="trimmed", language=arguments.language)
    return ServedAdapter(tensors, Slot.of(config), info, str(person))


def bare(adapter: ServedAdapter) -> ServedAdapter:
    """No adapter at all, on the trimmed window."""
    return replace(adapter, tensors={})


class PeftBaseline:
    """The same adapters as ordinary LoRA in PEFT, on transformers' own generate."""

    def __init__(self, base: WhisperBase, adapters: Sequence[ServedAdapter], arguments: argparse.Namespace) -> None:
        self.base, self.arguments = base, arguments
        self.names = [f"person-{i}" for i in range(len(adapters))]
        config = LoraConfig(
            r=arguments.rank, lora_alpha=2 * arguments.rank, target_modules=target_pattern(SITES), lora_dropout=0.0
        )
        model = get_peft_model(base.new_model(), config, adapter_name=self.names[0])
        for name in self.names[1:]:
            model.add_adapter(name, config)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, adapter in zip(self.names, adapters, strict=True):
                for key, tensor in adapter.tensors.items():
                    module, _, what = key.rpartition(".gated_lora_")
                    parameters[f"{module}.lora_{what}.{name}.weight"].copy_(tensor)
        self.model: PeftModel = model.eval()
        self.prompt = base.prefix_ids(arguments.language or None)
        rules = base.rules
        self.config = GenerationConfig(
            max_new_tokens=arguments.tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=None,
            pad_token_id=rules.end,
            decoder_start_token_id=self.prompt[0],
            suppress_tokens=list(rules.suppress),
            begin_suppress_tokens=list(rules.begin_suppress) or None,
        )

    def _generate(self, features: list[np.ndarray], window: str) -> list[list[int]]:
        batch = self.base.collate(features, None, window)  # type: ignore[arg-type]
        inner = forward.unwrap(self.model)
        if window == "full":  # as transformers encodes it
            states = inner.model.encoder(batch.features.float()).last_hidden_state
        else:
            states, _ = self.base.encode(self.model, batch)
        prompts = torch.tensor([self.prompt] * len(features))
        found = GenerationMixin.generate(
            inner,
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            decoder_input_ids=prompts,
            generation_config=self.config,
        )
        return [row[len(self.prompt) :] for row in found.tolist()]

    @torch.inference_mode()
    def switching(self, audio: Sequence[np.ndarray], window: str) -> list[list[int]]:
        """One request after the other."""
        found = []
        for name, one in zip(self.names, audio, strict=True):
            self.model.set_adapter(name)
            found += self._generate([self.base.features(one, window)], window)  # type: ignore[arg-type]
        return found

    @torch.inference_mode()
    def mixed(self, audio: Sequence[np.ndarray]) -> list[list[int]]:
        """All in one batch."""
        features = [self.base.features(one, "trimmed") for one in audio]
        with self.model._enable_peft_forward_hooks(adapter_names=self.names):
            return self._generate(features, "trimmed")


def run_engine(
    engine: BatchEngine, audio: Sequence[np.ndarray], adapters: Sequence[ServedAdapter], tokens: int
) -> list[Transcript]:
    """Everybody asks at once."""
    futures = [
        engine.submit(Request(one, adapter, person=adapter.digest, max_new_tokens=tokens))
        for one, adapter in zip(audio, adapters, strict=True)
    ]
    while engine.turn():
        pass
    return [future.result(timeout=0) for future in futures]


def copy_rate(seconds: float = 0.5) -> float:
    """GB/s that the machine reads from memory: half of what copying moves."""
    source = torch.ones(2**25)
    target, count, start = torch.empty_like(source), 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        target.copy_(source)
        count += 1
    return 2 * source.numel() * 4 * count / (time.perf_counter() - start) / 1e9


def floor(base: WhisperBase, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds that the encoder's operations and the decoder's bytes take at the machine's own rates."""
    config = base.model.config
    states = int((arguments.seconds + 0.5) * 50)
    layer = 4 * config.d_model**2 + 2 * config.d_model * config.encoder_ffn_dim
    encoder = 2 * arguments.people * states * config.encoder_layers * (layer + 2 * states * config.d_model)
    decoder_layer = 6 * config.d_model**2 + 2 * config.d_model * config.decoder_ffn_dim
    weights = config.decoder_layers * decoder_layer + config.vocab_size * config.d_model
    speech = arguments.people * states * 2 * config.decoder_layers * config.d_model
    gflops, rate = matrix_rate(arguments.threads), copy_rate()
    return {
        "matrix_gflops": round(gflops, 1),
        "memory_gb_s": round(rate, 1),
        "encoder_floor_seconds": round(encoder / gflops / 1e9, 3),
        "decoder_floor_seconds": round(arguments.tokens * 4 * (weights + speech) / rate / 1e9, 3),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="whisper-base")
    parser.add_argument("--people", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each utterance")
    parser.add_argument("--tokens", type=int, default=16, help="of each transcript")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--language", default="ko")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="sizes that only show that it runs; nothing is written")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.base, arguments.people, arguments.repeats, arguments.tokens = "random:whisper-nano", 3, 1, 4
    return arguments


def main() -> int:
    """Measure, write ``benchmarks/results/serving_*.json``; 1 where a target is missed."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    decoding.MIN_REPEATS = 10**9  # no guard: all sides make as many tokens
    base = load_base(arguments.base)
    base.rules = replace(base.rules, suppress=(*base.rules.suppress, base.rules.end))
    noise = derive_generator(arguments.seed, "audio")
    samples = int(arguments.seconds * SAMPLE_RATE)
    audio = [0.05 * noise.standard_normal(samples, dtype=np.float32) for _ in range(arguments.people)]
    plain = [make_adapter(base, i, "none", arguments) for i in range(arguments.people)]
    gated = [make_adapter(base, i, "self", arguments) for i in range(arguments.people)]
    engine = BatchEngine(base, EngineSettings(rows=arguments.people), start=False)
    peft = PeftBaseline(base, plain, arguments)

    stages: list[Transcript] = []

    def ours(adapters: Sequence[ServedAdapter]) -> Callable[[], object]:
        def run() -> None:
            stages[:] = run_engine(engine, audio, adapters, arguments.tokens)

        return run

    expected = peft.mixed(audio)
    found = [list(t.tokens) for t in run_engine(engine, audio, plain, arguments.tokens)]
    same = sum(a == b for a, b in zip(found, expected, strict=True))
    print(f"transcripts equal to PEFT's: {same} of {arguments.people}")
    few = max(1, arguments.repeats // 2)
    timings = time_side_by_side(
        {
            "engine": ours(plain),
            "engine_gated": ours(gated),
            "engine_base": ours([bare(one) for one in plain]),
            "peft_mixed": lambda: peft.mixed(audio),
            "peft_switching": lambda: peft.switching(audio, "trimmed"),
            "peft_switching_30s": lambda: peft.switching(audio, "full"),
        },
        {
            "engine": arguments.repeats,
            "engine_gated": arguments.repeats,
            "engine_base": arguments.repeats,
            "peft_mixed": arguments.repeats,
            "peft_switching": few,
            "peft_switching_30s": few,
        },
    )
    ours(gated)()
    encode, decode = (float(np.median([getattr(t.stages, what) for t in stages])) for what in ("encode", "decode"))
    conditions = {
        **vars(arguments),
        **{name: timing.describe() for name, timing in timings.items()},
        "engine_encoder_seconds": round(encode, 3),
        "engine_decoder_seconds": round(decode, 3),
        **floor(base, arguments),
        "equal_transcripts": same,
        "machine": machine(),
    }
    for name, timing in timings.items():
        print(f"{name:>20}: {timing.median:7.2f} s ({min(timing.seconds):.2f} to {max(timing.seconds):.2f})")
    print(
        f"engine_gated: encoder {encode:.2f} s (floor {conditions['encoder_floor_seconds']}), "
        f"decoder {decode:.2f} s (floor {conditions['decoder_floor_seconds']})"
    )
    rows = [
        BenchmarkRow(
            f"serving_{name}",
            round(timings["engine"].median, 3),
            f"seconds for {arguments.people} people",
            round(timings[name].median / timings["engine"].median, 2),
            target,
            {**conditions, "per_repeat": spread(timings["engine"].seconds)},
        )
        for name, target in TARGETS.items()
    ]
    rows.append(
        BenchmarkRow(
            "serving_people",
            round(timings["engine"].median, 3),
            f"seconds for {arguments.people} people",
            round(timings["engine"].median, 3),
            MOST_SECONDS,
            {**conditions, "spread": spread(timings["engine"].seconds)},
            at_most=True,
        )
    )
    over = timings["engine_gated"].median / timings["engine_base"].median
    rows.append(
        BenchmarkRow(
            "serving_over_base",
            round(timings["engine_gated"].median, 3),
            f"seconds for {arguments.people} people with gates",
            round(over, 2),
            MOST_OVER_BASE,
            conditions,
            at_most=True,
        )
    )
    for row in rows:
        word = "at most" if row.at_most else "at least"
        print(f"{row.name:>28}: {row.ratio:.2f} ({word} {row.target}: {'met' if row.met else 'MISSED'})")
        if not arguments.smoke:
            write_row(row)
    return 0 if all(row.met for row in rows) and same == arguments.people else 1


if __name__ == "__main__":
    sys.exit(main())
