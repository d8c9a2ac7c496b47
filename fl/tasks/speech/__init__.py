"""Speech recognition as a task: utterances of a population, features, a frozen recognizer, error counts.

Knows manifests and :class:`fl.bases.base.SpeechBase`; not which recognizer that is.
"""
