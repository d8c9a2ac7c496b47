"""Updates as fewer bytes, and back: each entry by itself or the largest alone, and the table of their names.

Knows arrays of numbers; neither messages nor who keeps what an encoding lost.
"""
