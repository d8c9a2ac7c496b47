"""How the devices' updates of the shared tensors become one, an algorithm a file.

Knows updates, weights and pairs of factors; nothing of what is personal.
"""
