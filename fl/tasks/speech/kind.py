"""Speech recognition in the table of tasks."""

from fl.tasks.kind import Measure, TaskKind, imported_later

SPEECH = TaskKind(
    imported_later("fl.tasks.speech.task:SpeechTask"),
    {
        "wer": Measure("WER", "word error rate"),
        "cer": Measure("CER", "character error rate"),
        "mer": Measure("MER", "mixed error rate: Hangul syllables and other words"),
        "jer_compat": Measure("JER", "jamo error rate: Hangul taken apart into letters"),
        "pier": Measure("PIER", "error rate at the embedded-language words only"),
        "mer_folded": Measure("Folded MER", "MER with both spellings of a loanword counted as right"),
    },
    main="mer",
    prepare=imported_later("fl.tasks.speech.population:prepare"),
    takes_manifest=True,
    augments=True,
    field="Speech recognition",
    model="recognizer",
    example="sentence",
    person="speaker",
)
