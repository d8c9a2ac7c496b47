"""Keeping private what is private."""
