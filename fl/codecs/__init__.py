"""Updates as fewer bytes, and back.

Knows arrays of numbers; not messages.
"""
