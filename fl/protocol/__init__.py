"""What aggregator and device say to each other: records, forms of an update, the guard.

Knows Flower's records; not what is computed from them.
"""
