"""Wav2Vec2 with a CTC head as a frozen base: waveforms in, symbols out.

Knows transformers' modules; not where weights come from.
"""
