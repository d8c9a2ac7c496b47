"""The table of sizes counts what the architectures really have, and the page shows that table."""

from pathlib import Path

from fl.bases.resolve import load_speech_base
from fl.bases.sizes import architecture_sizes, sizes_table


def test_a_counted_size_is_that_of_the_loaded_base() -> None:
    sizes = {name: size for name, (_, size) in architecture_sizes().items()}
    for name in ("whisper-nano", "wav2vec2-nano", "wav2vec2-nano-group"):
        base = load_speech_base(f"random:{name}")
        assert sizes[name] == sum(p.numel() for p in base.model.parameters())
    assert sizes["whisper-base"] == 72_593_920  # openai/whisper-base
    assert sizes_table() in (Path(__file__).parents[2] / "docs" / "bases.md").read_text(encoding="utf-8")
