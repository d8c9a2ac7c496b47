"""The report of a run: read its rows, sum them up, show them in a terminal and on one page.

Knows the files of a run folder and the words of each task; not how the run was made.
"""
