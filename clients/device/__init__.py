"""The thin device: an adapter, a queue of recordings and a server elsewhere.

Loads without torch, transformers and Flower.
"""
