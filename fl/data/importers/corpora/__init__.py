"""Corpora with a layout that no other corpus has, one file each.

Each file knows one corpus; what happens to records is the importers' machinery.
"""
