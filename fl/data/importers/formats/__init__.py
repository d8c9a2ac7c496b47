"""Forms in which many corpora come: Kaldi, tables, datasets, lists, our own manifest.

Each file knows one form; what happens to records is the importers' machinery.
"""
