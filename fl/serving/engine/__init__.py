"""Continuous batching: many people's requests, each with an adapter, as rows of one batch.

Knows bases, adapters and whose turn it is; decoding itself is the base's, and nothing here knows HTTP.
"""
