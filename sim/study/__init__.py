"""Studies: tables of runs that differ in a few settings, with their results as rows, tables and plots.

Knows settings and run folders; neither messages nor training.
"""
