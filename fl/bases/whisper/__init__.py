"""Whisper as a frozen base: log-mel features in, tokens out, at an utterance's own length.

Knows transformers' modules, and the one decoder and beam search of batches, files and the server; not where weights come from.
"""
