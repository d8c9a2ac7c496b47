"""Differential privacy, secure sums and the attackers of an audit: clipping, noise, accounting, masks.

Knows updates as arrays by name; not how they were trained, nor the messages that carry them.
"""
