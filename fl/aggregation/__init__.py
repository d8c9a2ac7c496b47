"""Linear algebra over many devices' tensors: updates, blocks of them, low-rank pairs.

Knows arrays and weights; not where they come from.
"""
