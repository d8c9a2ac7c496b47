"""An adapter as one small file, written one way and read with suspicion.

Loads without torch, so that a low-spec device can use it.
"""
