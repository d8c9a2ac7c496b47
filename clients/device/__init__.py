"""The thin device: an adapter, a queue of recordings, and the HTTP of a server that holds the base.

Knows packed adapters as bytes and arrays; nothing of models or training. Loads without torch, transformers and Flower.
"""
