"""Local steps that a server runs for a device that cannot hold the base.

Knows the route and its checks; the training itself comes from outside.
"""
