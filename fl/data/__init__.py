"""Speech data: manifests, synthetic speakers, importers of corpora, and who trains on what.

Knows utterances and their audio files; neither features, models nor training.
"""
