"""Populations, runs, reports and the command line: everything around the federation itself."""
