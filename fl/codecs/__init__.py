"""Updates as fewer bytes, and back: a file for each family of codecs, and the table of their names.

Knows arrays of numbers; neither messages nor who keeps what an encoding lost.
"""
