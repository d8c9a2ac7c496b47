"""Whisper as a frozen base: features in, tokens out, at an utterance's own length.

Knows transformers' modules; not where weights come from.
"""
