"""Corpora with a form of their own, one file each.

Each file knows one corpus; what happens to records is the importers' machinery.
"""
