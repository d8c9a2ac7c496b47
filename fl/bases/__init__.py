"""Frozen pretrained models: found by name, converted once, and the same for everybody (see ``resolve.load_base``)."""
