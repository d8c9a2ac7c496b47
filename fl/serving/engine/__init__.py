"""Continuous batching: many people's requests, each with an adapter, as rows of one batch.

Knows bases and adapters; nothing of HTTP.
"""
