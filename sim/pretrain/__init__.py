"""``idiolect pretrain``: a small Wav2Vec2-CTC from random weights.

Knows one base and its data; nothing of federation.
"""
