"""Runs on one machine, studies, the audit, reports and the command line: everything around the federation itself.

Knows both Flower apps and what a run writes; it adds nothing to what a device or the aggregator does.
"""
