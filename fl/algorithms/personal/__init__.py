"""How a device comes to a personalized model, an algorithm a file.

Knows adapters and local plans; nothing of how the shared part is aggregated.
"""
