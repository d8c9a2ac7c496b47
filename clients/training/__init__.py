"""Local training of a device, alone or many in one computation, and its evaluation.

Knows models and plans; nothing of messages.
"""
