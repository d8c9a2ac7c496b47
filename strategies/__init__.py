"""What runs at the aggregator: the Flower strategies, the round loop, checkpoints, and the ServerApp around them.

Knows messages, devices by id and an algorithm's interface; no algorithm by name, and nothing that is private.
"""
