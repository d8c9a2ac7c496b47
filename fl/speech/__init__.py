"""Speech: waveforms, features, augmentation and caches of them, and transcripts as text.

Knows arrays and strings; neither who spoke nor how a recognizer is trained.
"""
