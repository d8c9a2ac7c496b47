"""The table of sizes counts what the architectures really have, and the page shows that table."""

from pathlib import Path

from fl.bases.sizes import architecture_sizes, sizes_table
from fl.bases.speech import load_speech_base


def test_a_counted_size_is_that_of_the_loaded_base() -> None:
    rows = {row.name: row for row in architecture_sizes()}
    for name in ("whisper-nano", "wav2vec2-nano", "wav2vec2-nano-group"):
        base = load_speech_base(f"random:{name}")
        assert rows[name].parameters == sum(p.numel() for p in base.model.parameters())
    assert rows["whisper-base"].parameters == 72_593_920  # openai/whisper-base
    assert sizes_table() in (Path(__file__).parents[2] / "docs" / "bases.md").read_text(encoding="utf-8")
