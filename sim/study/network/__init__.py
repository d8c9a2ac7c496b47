"""``idiolect study network``: link profiles, a proxy that imitates them, and what they cost.

Knows bytes and seconds; nothing of models.
"""
