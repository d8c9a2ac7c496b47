"""Attackers of ``idiolect audit``: what recorded updates tell of a person.

Knows arrays; not how a run is recorded.
"""
