"""Corpora of others, read into a manifest: what each corpus looks like, and what is checked in all of them alike.

Knows files of labels and where their audio lies; not what a run does with them. :mod:`fl.data.importers.table` lists the importers.
"""
