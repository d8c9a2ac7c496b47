"""Frozen pretrained recognizers: found by name, converted once, the same for everybody; features in, text out.

Knows transformers' modules and where weights come from (``resolve.load_speech_base``); not which adapters sit in them, how these
are trained, or who asks for a transcript.
"""
