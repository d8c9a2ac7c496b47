"""Linear algebra over many devices' tensors: blocks, low-rank pairs, products.

Knows arrays and weights; not where they come from.
"""
