"""The server's HTTP: OpenAI's routes, tokens, limits, answers and problems.

Knows requests and responses; how they are decoded is the engine's.
"""
