"""What runs at a device: local training, its private store, the Flower ClientApp, and the thin device without a base.

Knows its own examples and the messages to it; not how updates are aggregated, nor that it may be simulated.
"""
