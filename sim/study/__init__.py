"""Studies: tables of runs that differ in a few settings, with their results as rows, tables and plots."""
