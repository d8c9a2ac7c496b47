"""The ground that every other module stands on: errors, seeds, atomic files, paths, memory, the machine.

Knows nothing of speech, adapters or federation.
"""
