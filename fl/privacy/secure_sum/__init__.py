"""Secure aggregation: sums of masked vectors, with people dropping out (Bonawitz et al. 2017).

Knows keys, shares and vectors; not Flower's messages around them.
"""
