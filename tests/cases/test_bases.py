"""Bases as they lie on people's disks, and the fields of a request that concern the decoder itself."""

import json
import unicodedata
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import tokenizers
import torch
from safetensors.torch import save_file
from starlette.testclient import TestClient
from tokenizers import decoders, models, pre_tokenizers
from transformers import WhisperForConditionalGeneration
from transformers.generation.utils import GenerateEncoderDecoderOutput
from typer.testing import CliRunner

from fl.bases.resolve import load_base, load_speech_base
from fl.bases.sources import convert
from fl.bases.sources.wheels import WHEEL_BASES
from fl.bases.whisper import decoding
from fl.bases.whisper.alignment import timed_words, token_times
from fl.bases.whisper.loading import ARCHITECTURES, whisper_config
from fl.bases.whisper.tokenizer import FileTokenizer
from fl.core.errors import BaseModelError
from fl.core.paths import cache_root
from fl.data.synthetic.espeak import Espeak, Voice
from fl.serving.engine.engine import BatchEngine, EngineSettings
from fl.serving.http.app import create_app
from fl.serving.http.limits import ServerLimits
from fl.speech.features import heard_frames
from sim.cli.app import app

PROMPT = "회의: Flower, LoRA."


def speech(seconds=1.0, seed=0):
    """Noise under a moving envelope."""
    samples = int(seconds * 16_000)
    envelope = 0.1 + np.abs(np.sin(np.arange(samples) / 2_000))
    return (0.1 * np.random.default_rng(seed).normal(size=samples) * envelope).astype(np.float32)


@contextmanager
def serving(base):
    engine = BatchEngine(base, EngineSettings(rows=4))
    try:
        with TestClient(create_app(engine, base, ServerLimits()), base_url="http://127.0.0.1") as client:
            yield client
    finally:
        engine.close()


def ask(client, audio, **fields):
    out = BytesIO()
    soundfile.write(out, audio, 16_000, format="FLAC")
    return client.post(
        "/v1/audio/transcriptions", files={"file": ("a.flac", out.getvalue())}, data={"language": "ko", **fields}
    )


@pytest.fixture(scope="module")
def nano():
    return load_base("random:whisper-nano")


def theirs(base, features, prompt, tokens):
    """What transformers' own ``generate`` finds behind a prompt."""
    special, model = base.tokenizer.special, base.new_model()
    for name, value in {
        "is_multilingual": True,
        "lang_to_id": {f"<|{code}|>": index for code, index in special.languages.items()},
        "task_to_id": {"transcribe": special.transcribe},
        "no_timestamps_token_id": special.no_timestamps,
        "prev_sot_token_id": base.tokenizer.previous,
        "decoder_start_token_id": special.start,
        "eos_token_id": special.end,
        "pad_token_id": special.end,
        "suppress_tokens": list(base.rules.suppress),
        "begin_suppress_tokens": list(base.rules.begin_suppress) or None,
    }.items():
        setattr(model.generation_config, name, value)
    with torch.no_grad():
        found = model.generate(
            torch.from_numpy(features.astype(np.float32))[None],
            prompt_ids=torch.tensor(base.prompt_ids(prompt)),
            language="ko",
            task="transcribe",
            max_new_tokens=tokens,
        )
    return [token for token in found[0].tolist() if token != special.end]


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("random:whisper-nano", PROMPT),
        ("random:whisper-nano", "그러니까 meeting은 " * 60),  # over the limit
        pytest.param("whisper-base", PROMPT, marks=pytest.mark.slow),
    ],
)
def test_a_prompt_is_read_as_transformers_reads_it(name, prompt, monkeypatch):
    monkeypatch.setattr(decoding, "loop_length", lambda tokens: None)  # random weights love to loop
    base, audio = load_base(name), speech()
    features = base.features(audio, "full")
    assert len(base.prompt_ids(prompt)) <= 224
    batch = base.collate([features], None, "full", "ko")
    found = base.transcribe(base.model, batch, max_new_tokens=10, prompt=prompt)[0].tokens
    expected = theirs(base, features, prompt, 10)
    assert list(found) == expected[-len(found) :]
    assert found != base.transcribe(base.model, batch, max_new_tokens=10)[0].tokens


@pytest.mark.case("clients", "`prompt`", "answer", "read before each part, its last 223 tokens; not in the answer")
@pytest.mark.case("clients", "`temperature` 0 to 1", "answer", "taken; decoding is deterministic")
def test_the_server_reads_prompts_and_draws_nothing(nano):
    audio = speech()
    batch = nano.collate([nano.features(audio, "full")], None, "full", "ko")
    options = {"heard": [heard_frames(len(audio))]}
    with serving(nano) as client:
        for prompt in ("", " ", PROMPT):
            answers = [ask(client, audio, prompt=prompt, temperature=heat).json() for heat in ("0", "0.2", "1")]
            assert answers == [{"text": nano.generate(nano.model, batch, prompt=prompt, **options)[0]}] * 3
        assert ask(client, audio).json() == ask(client, audio, prompt="").json() != answers[0]


def attended(base, tokens, states, heard):
    """Token times by transformers' own alignment, from the prefix's last token on, which is where openai/whisper begins."""
    model, prefix = base.new_model(), base.prefix_ids("ko")
    model.set_attn_implementation("eager")
    ids = torch.tensor([[*prefix, *tokens]])
    out = model(encoder_outputs=(states,), decoder_input_ids=ids, output_attentions=True)
    found = GenerateEncoderDecoderOutput(sequences=ids, cross_attentions=(out.cross_attentions,))
    times = model._extract_token_timestamps(
        found, base.alignment_heads, num_frames=2 * heard, num_input_ids=len(prefix) - 1
    )
    return times[0, len(prefix) - 1 : -1].tolist()


@pytest.mark.parametrize("name", ["random:whisper-nano", pytest.param("whisper-base", marks=pytest.mark.slow)])
def test_token_times_are_those_of_transformers(name):
    base = load_base(name)
    assert len(base.alignment_heads) == {"random:whisper-nano": 2, "whisper-base": 8}[name]
    tokens = base.tokenizer.encode("그 meeting은 내일이에요")
    with torch.inference_mode():
        batch = base.collate([base.features(speech(3.0), "full")], None, "full", "ko")
        states, _ = base.encode(base.model, batch)
        found = token_times(base.model, base.alignment_heads, base.prefix_ids("ko"), tokens, states, 150)
        assert found == pytest.approx(attended(base, tokens, states, 150))
        assert token_times(base.model, base.alignment_heads, base.prefix_ids("ko"), [], states, 1) == [0.0]
    assert len(found) == len(tokens) + 1
    assert len(set(found)) > 1


@pytest.mark.slow
def test_words_end_where_they_were_spoken():
    base, voice, audio, ends = load_base("whisper-base"), Voice("m3", 150), [np.zeros(4_800, np.float32)], []
    for part in ("please send the report", "before", "tomorrow", "evening"):
        sound = soxr.resample(Espeak().render(part, "en-us", voice), 22_050, 16_000) / 2
        loud = np.flatnonzero(np.abs(sound) > 0.005)
        audio += [sound[loud[0] : loud[-1]], np.zeros(9_600, np.float32)]
        ends.append(sum(map(len, audio)) / 16_000 - 0.6)
    with serving(base) as client:
        answer = ask(client, np.concatenate(audio), language="en", response_format="verbose_json").json()
    assert answer["text"] == "Please send a report before tomorrow evening."
    found = {word["word"]: word["end"] for word in answer["words"]}
    assert [found[word] for word in ("report", "before", "tomorrow")] == pytest.approx(ends[:3], abs=0.15)


@pytest.mark.parametrize("text", [" 그 bug는 😀 뭐야", "bug"])
def test_a_word_begins_with_its_first_byte_and_lasts_until_the_next(nano, text):
    tokens = list(text.encode())  # a token each, so that characters lie across tokens
    found = timed_words(nano.tokenizer, tokens, range(len(tokens) + 1))
    assert [word.text for word in found] == text.split()
    starts = [len(text[: text.index(word.text)].encode()) for word in found]
    assert [(word.start, word.end) for word in found] == list(pairwise([*starts, len(tokens)]))
    syllable = "각".encode()
    assert timed_words(nano.tokenizer, unicodedata.normalize("NFD", "각").encode(), range(10))[0].text == "각"
    assert timed_words(nano.tokenizer, syllable[:2], (0, 1, 2))[0].end == 2


@pytest.mark.case("clients", "words of `verbose_json`", "answer", "times by alignment of the decoder's attention")
def test_the_server_finds_the_words_of_each_part_within_it(nano):
    audio = np.concatenate((speech(20.0), np.zeros(16_000, np.float32), speech(12.0, 1)))
    with serving(nano) as client:
        found = ask(client, audio, response_format="verbose_json", beams=2).json()
        assert (
            "words"
            not in ask(
                client, audio[:8_000], response_format="verbose_json", **{"timestamp_granularities[]": "segment"}
            ).json()
        )
    words, segments = list(found["words"]), found["segments"]
    assert len(segments) == 2
    for segment in segments:
        inside = [words.pop(0) for _ in segment["text"].split()]
        times = [time for word in inside for time in (word["start"], word["end"])]
        assert [word["word"] for word in inside] == segment["text"].split()
        assert sorted(times) == times
        assert inside == [] or segment["start"] <= times[0] <= times[-1] <= segment["end"]
    assert not words


@pytest.mark.case("clients", "`idiolect transcribe --prompt`", "answer", "the same as the server's")
def test_the_command_reads_a_prompt(nano, tmp_path):
    audio, path = speech(), tmp_path / "a.wav"
    soundfile.write(path, audio, 16_000, subtype="FLOAT")
    options = ["transcribe", str(path), "--base", nano.name, "--language", "ko", "--json"]
    found = [
        json.loads(CliRunner().invoke(app, [*options, *more]).stdout)["text"] for more in ([], ["--prompt", PROMPT])
    ]
    batch = nano.collate([nano.features(audio, "full")], None, "full", "ko")
    heard = [heard_frames(len(audio))]
    assert found == [nano.generate(nano.model, batch, prompt=prompt, heard=heard)[0] for prompt in ("", PROMPT)]
    assert found[0] != found[1]


@pytest.mark.case("bases", "CTC, with a prompt", "answer", "refused: it has no decoder")
def test_ctc_takes_no_prompt():
    base = load_speech_base("random:wav2vec2-nano")
    batch = base.collate([base.features(speech())])
    with pytest.raises(BaseModelError, match="takes no prompt"):
        base.generate(base.model, batch, prompt=PROMPT)


STEERING = [
    *map("<|{}|>".format, ("endoftext", "startoftranscript", "en", "ko", "translate", "transcribe", "startoflm"))
]
STEERING += ["<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]


@dataclass
class Folder:
    """A Whisper of the smallest size in transformers' layout, changed by a test before it is read."""

    path: Path
    weights: dict[str, torch.Tensor]
    config: dict[str, object]
    generation: dict[str, object] | None
    tokenizer: tokenizers.Tokenizer

    def load(self):
        """The base."""
        if not list(self.path.glob("*model*")):
            save_file(self.weights, self.path / "model.safetensors")
        (self.path / "config.json").write_text(json.dumps(self.config))
        if self.generation is not None:
            (self.path / "generation_config.json").write_text(json.dumps(self.generation))
        if not (self.path / "merges.txt").exists():
            self.tokenizer.save(str(self.path / "tokenizer.json"))
        return load_base(str(self.path), cache=self.path / "cache")


def files_of(kind, path, **changes):
    """A folder with ``changes`` in its architecture."""
    config = whisper_config(replace(kind, **changes), 256, 257)
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "proj_out.weight"}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(STEERING)
    made.add_tokens(["<|0.00|>"])  # in some published files the times are ordinary added tokens
    return Folder(path, weights, config.to_dict(), {"is_multilingual": True}, made)


@pytest.fixture
def folder(tmp_path):
    return files_of(ARCHITECTURES["whisper-nano"], tmp_path)


def hear(base, text=None):
    """A batch of one second, with ``text`` to train towards."""
    return base.collate([base.features(speech())], None if text is None else [text], "trimmed", "ko")


@pytest.mark.case("bases", "words added to the tokenizer", "answer", "trained and decoded")
def test_added_words_are_decoded_where_they_were_trained(folder):
    folder.tokenizer.add_tokens(["코딩", "Flower"])
    base, text = folder.load(), "코딩 나는 Flower해"  # a space alone may not begin a transcript
    ids = folder.tokenizer.token_to_id("코딩"), folder.tokenizer.token_to_id("Flower")
    assert set(ids) <= set(base.target_ids(text))
    model = base.new_model().requires_grad_()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    batch = hear(base, text)
    for _ in range(80):
        optimizer.zero_grad()
        base.loss(model, batch).backward()
        optimizer.step()
    assert base.generate(model, hear(base)) == [text]


@pytest.mark.case(
    "bases", "special tokens added to the tokenizer", "answer", "named in a line; texts spell their characters"
)
@pytest.mark.case("bases", "a text that writes a token of the decoder", "answer", "spelled, character by character")
def test_what_steers_the_decoder_is_never_text(folder, caplog):
    folder.tokenizer.add_special_tokens(["[웃음]", "<|cs|>"])
    base = folder.load()
    for text in ("그래 [웃음] 뭐", "a <|endoftext|> b", "<|0.00|><|cs|> c"):
        assert max(base.tokenizer.encode(text)) < 256
        assert base.tokenizer.decode(base.tokenizer.encode(text)) == text
        assert max(base.prompt_ids(text)[1:]) < 256
    assert set(range(257, 300)) == set(base.rules.suppress)
    assert "neither trained nor decoded: [웃음]" in caplog.text


def grow(folder):
    folder.tokenizer.add_tokens([f"말{number}" for number in range(40)])


def break_token(folder):
    folder.tokenizer.add_tokens(["café"])


def untie(folder):
    folder.weights["proj_out.weight"] = folder.weights["model.decoder.embed_tokens.weight"] + 1


def other_start(folder):
    folder.config["decoder_start_token_id"] = 258


def pickled(folder):
    (folder.path / "pytorch_model.bin").write_bytes(b"pickle")


def other_program(folder):
    (folder.path / "model.bin").write_bytes(b"CTranslate2")


def adapter(folder):
    (folder.path / "adapter_model.safetensors").write_bytes(b"PEFT")


def no_tokenizer(folder):
    (folder.path / "merges.txt").write_text("#version: 0.2\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            grow,
            r"'말33' and 6 more added tokens, the model only 300 rows: call `model.resize_token_embeddings",
            marks=pytest.mark.case("bases", "more added words than rows", "answer", "refused: resize_token_embeddings"),
        ),
        pytest.param(
            break_token,
            "'café' is decoded as 'caf",
            marks=pytest.mark.case(
                "bases", "an added word with é, ö, ...", "answer", "refused by name: comes back as other bytes"
            ),
        ),
        pytest.param(
            untie,
            "tie_word_embeddings=True",
            marks=pytest.mark.case("bases", "a head that is not the embedding", "answer", "refused: train it tied"),
        ),
        pytest.param(
            other_start,
            "tokenizer is of another model",
            marks=pytest.mark.case(
                "bases", "the tokenizer of another model", "answer", "refused: get both from one place"
            ),
        ),
        pytest.param(
            pickled,
            "safe_serialization=True",
            marks=pytest.mark.case(
                "bases", "only `pytorch_model.bin`", "answer", "refused: convert with save_pretrained"
            ),
        ),
        pytest.param(
            other_program,
            "CTranslate2",
            marks=pytest.mark.case(
                "bases", "CTranslate2's files (faster-whisper)", "answer", "refused: take the model they were made of"
            ),
        ),
        pytest.param(
            adapter,
            "of an adapter",
            marks=pytest.mark.case("bases", "an adapter's folder", "answer", "refused: take the model it was made for"),
        ),
        pytest.param(
            no_tokenizer,
            "vocab.json, merges.txt and added_tokens.json",
            marks=pytest.mark.case("bases", "no tokenizer at all", "answer", "refused: which files it needs"),
        ),
    ],
)
def test_what_would_be_heard_wrongly_is_refused_by_name(folder, change, message):
    change(folder)
    with pytest.raises(BaseModelError, match=message):
        folder.load()


def halve(folder):
    folder.weights = {name: tensor.half() for name, tensor in folder.weights.items()}


def split(folder):
    names = sorted(folder.weights)
    shards = {"model-1.safetensors": names[:20], "model-2.safetensors": names[20:]}
    for file, own in shards.items():
        save_file({name: folder.weights[name] for name in own}, folder.path / file)
    index = {"weight_map": {name: file for file, own in shards.items() for name in own}}
    (folder.path / "model.safetensors.index.json").write_text(json.dumps(index))


def tie_other_way(folder):
    folder.weights["proj_out.weight"] = folder.weights.pop("model.decoder.embed_tokens.weight")


def forget_generation(folder):
    folder.generation, folder.config["suppress_tokens"] = None, [1, 2]


def stale_processor(folder):
    (folder.path / "preprocessor_config.json").write_text('{"feature_size": 128, "sampling_rate": 16000}')


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(halve, marks=pytest.mark.case("bases", "weights in float16", "answer", "taken")),
        pytest.param(split, marks=pytest.mark.case("bases", "weights in shards", "answer", "taken")),
        pytest.param(
            tie_other_way,
            marks=pytest.mark.case("bases", "`proj_out` or `embed_tokens` alone, the other tied", "answer", "taken"),
        ),
        pytest.param(
            forget_generation,
            marks=pytest.mark.case("bases", "no `generation_config.json`", "answer", "the lists of `config.json`"),
        ),
        pytest.param(
            stale_processor,
            marks=pytest.mark.case(
                "bases", "`preprocessor_config.json` of other mel bands", "answer", "those of `config.json`"
            ),
        ),
    ],
)
def test_what_comes_in_another_form_is_the_same_base(folder, change, tmp_path):
    expected = {name: tensor.half().float() if change is halve else tensor for name, tensor in folder.weights.items()}
    change(folder)
    base = folder.load()
    assert base.weights.keys() == expected.keys()
    assert all(torch.equal(base.weights[name], tensor) for name, tensor in expected.items())
    assert base.new_model().proj_out.weight.data_ptr() == base.new_model().model.decoder.embed_tokens.weight.data_ptr()
    assert (1 in base.rules.suppress) == (change is forget_generation)
    base.transcribe(
        base.model, hear(base) if base.languages else base.collate([base.features(speech())]), max_new_tokens=2
    )


@pytest.mark.case("bases", "128 mel bands (large-v3)", "answer", "taken")
@pytest.mark.case(
    "bases",
    "two decoder layers, alignment heads of the teacher (distil-whisper)",
    "answer",
    "taken; heads of its upper half",
)
def test_other_shapes_are_heard(tmp_path):
    folder = files_of(ARCHITECTURES["whisper-nano"], tmp_path, mels=128, encoder_layers=3)
    folder.generation = {"is_multilingual": True, "alignment_heads": [[7, 0], [10, 17]]}
    base = folder.load()
    assert base.features(speech()).shape[0] == 128
    assert list(base.alignment_heads) == [(1, 0), (1, 1)]
    with serving(base) as client:
        answer = ask(client, speech(), response_format="verbose_json").json()
    assert [word["word"] for word in answer["words"]] == answer["text"].split()


@pytest.mark.parametrize("name", ["whisper-base", "whisper-tiny.en"])
@pytest.mark.slow
@pytest.mark.case(
    "bases", "`vocab.json` and `merges.txt`, no `tokenizer.json`", "answer", "the same ids, by transformers' converter"
)
@pytest.mark.case("bases", "`.en` without `generation_config.json`", "answer", "English only, by the id of its end")
def test_a_tokenizer_in_the_older_files_gives_the_same_ids(name, tmp_path):
    base = load_base(name)
    source = convert.ensure_converted(WHEEL_BASES[name], cache_root() / "bases") / "tokenizer.json"
    facts = json.loads(source.read_text(encoding="utf-8"))
    (tmp_path / "vocab.json").write_text(json.dumps(facts["model"]["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in facts["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    added = {token["content"]: token["id"] for token in facts["added_tokens"]}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    made = FileTokenizer(tmp_path / "tokenizer.json", multilingual=True)
    assert made.digest == base.tokenizer.digest
    assert made.special == base.tokenizer.special  # of the English one without languages, though nothing says so
    for text in ("그 meeting은 내일이에요, 3시 반", "it's  <|endoftext|> naïve 😀", "各位 おはよう"):
        assert made.encode(text) == base.tokenizer.encode(text)
