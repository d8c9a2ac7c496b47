"""Speech data: manifests, synthetic populations, and who trains on what."""
